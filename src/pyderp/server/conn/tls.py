"""TLS under a relay connection, on the ssl module's memory buffers.

The event loops' own TLS would do, but asyncio's keeps 256 KiB a connection, and neither
tells how much the kernel still has to take. Here all connections share their buffers,
OpenSSL gets 16 KiB at a time so that its own stay small, and the transport below is plain
TCP with all that the relay knows about it.
"""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from collections.abc import Callable
from typing import Any, Final

from pyderp.certs.context import ServerContexts
from pyderp.errors import RemoteProtocolError
from pyderp.relay.ending import EndReason, How
from pyderp.server.conn.context import Core
from pyderp.server.conn.http import HttpStage
from pyderp.server.conn.protocol import RelayProtocol, endpoint
from pyderp.server.conn.reading import Stage, closed_stage
from pyderp.server.site.routes import Routes
from pyderp.wire.clienthello import parse_client_hello_untrusted

__all__ = ["TLSRelayProtocol", "protocol_factory"]

_RECORD: Final = 16 * 1024
"""The most plain bytes of one record (RFC 8446 §5.1)."""
_SLICE: Final = 16 * 1024
"""A memory buffer of OpenSSL never shrinks again."""
_PLAIN_HTTP: Final = (
    b"HTTP/1.0 400 Bad Request\r\nConnection: close\r\n\r\n"
    b"This port speaks HTTPS; the request was plain HTTP.\n"
)

_HANDSHAKE_RECORD: Final = 22
_RECORD_HEADER: Final = 5
_ILLEGAL_PARAMETER: Final = bytes((21, 3, 3, 0, 2, 2, 47))
"""A fatal alert (RFC 8446 §6.2), before anything is encrypted."""
_MOST_WITHOUT_DATA: Final = 40 * 1024
"""Bytes of records that bring nothing. The largest record has 16 KiB; a key update that asks for
another one has 22 bytes, and costs as much as a handshake's part."""


class TLSRelayProtocol(RelayProtocol):
    """A connection that begins with a TLS handshake.

    Args:
        contexts: have the server-side context for a new connection.
    """

    __slots__ = (
        "_closed_by_peer",
        "_contexts",
        "_established",
        "_hello",
        "_incoming",
        "_layout",
        "_outgoing",
        "_read_record",
        "_tls",
        "_undelivered",
        "_without_data",
        "_write_record",
    )

    def __init__(
        self,
        core: Core,
        first: Callable[[RelayProtocol], Stage],
        contexts: ServerContexts,
    ) -> None:
        super().__init__(core, first)
        self._contexts = contexts
        self._incoming = ssl.MemoryBIO()
        self._outgoing = ssl.MemoryBIO()
        self._established = False
        self._closed_by_peer = False
        # What came of the ClientHello; None once it was looked at.
        self._hello: bytes | None = b""
        self._without_data = 0
        # Of the last write, if the kernel did not take all: bytes before and after encryption.
        self._layout = (0, 0)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """A client connected (asyncio)."""
        super().connection_made(transport)
        # Only now is it known which of the relay's addresses it came to.
        self.local = self.local or endpoint(transport, "sockname")[0]
        self._use(self._contexts.context(self.local))

    def _use(self, context: ssl.SSLContext) -> None:
        self._tls = context.wrap_bio(self._incoming, self._outgoing, server_side=True)
        # The object below SSLObject has the same methods without a Python call around
        # each. It is private, so where it is missing the public one serves.
        fast: Any = getattr(self._tls, "_sslobj", self._tls)
        self._read_record: Callable[[int, memoryview], int] = fast.read
        self._write_record: Callable[[bytes | memoryview], int] = fast.write
        self._undelivered: Callable[[], int] = fast.pending

    def get_buffer(self, sizehint: int) -> memoryview:
        """Where the next encrypted bytes go (asyncio)."""
        core = self.core
        return core.encrypted if self.room is core.view else core.small_encrypted

    def buffer_updated(self, nbytes: int) -> None:
        """Encrypted bytes arrived (asyncio)."""
        view = self.core.encrypted
        if self._hello is not None:
            self._on_hello(self._hello + view[:nbytes])
            return
        try:
            if self._established and nbytes <= _SLICE:
                self._incoming.write(view[:nbytes])
                self._read(nbytes)
            else:
                self._receive_slices(view[:nbytes])
        except ssl.SSLError as e:
            self._fail_tls(e)
        self._speak()
        if nbytes >= self.fair_share:
            self.let_others()

    def _speak(self) -> None:
        # Whatever OpenSSL has to say by itself: handshake, alerts, key updates.
        if self._outgoing.pending:
            super().write(self._outgoing.read())

    def _on_hello(self, data: bytes) -> None:
        """Look at the ClientHello before OpenSSL does, once it is whole.

        An authority that checks this relay needs a certificate of its own. And the ssl module
        prints a traceback for a name that is not ASCII, which strangers may send at will.
        """
        if self.ended:
            return
        if len(data) < _RECORD_HEADER or (
            data[0] == _HANDSHAKE_RECORD and len(data) < _RECORD_HEADER + _record_length(data)
        ):
            self._hello = data  # nearly always it is one record
            return
        if not self._contexts.challenge_pending and self.core.server_name in data:
            self._start(data)  # nearly all: they ask for the right name, or there is none
            return
        try:
            hello = parse_client_hello_untrusted(data)
        except RemoteProtocolError as e:
            if data[0] == _HANDSHAKE_RECORD:
                self._refuse(e)
                return
            # No TLS at all: OpenSSL knows what it is.
        else:
            if hello is None:
                self._hello = data
                return
            if self._contexts.challenge_pending:
                challenge = self._contexts.challenge_context(memoryview(data))
                if challenge is not None:
                    self._use(challenge)
        self._start(data)

    def _start(self, data: bytes) -> None:
        self._hello = None
        try:
            self._receive_slices(memoryview(data))
        except ssl.SSLError as e:
            self._fail_tls(e)
        self._speak()

    def _refuse(self, error: RemoteProtocolError) -> None:
        super().write(_ILLEGAL_PARAMETER)
        self.end(EndReason.PROTOCOL_ERROR, How.GRACEFUL, str(error))

    def _receive_slices(self, view: memoryview) -> None:
        for start in range(0, len(view), _SLICE):
            records = view[start : start + _SLICE]
            self._incoming.write(records)
            if not self._established and not self._handshake():
                continue
            if not self._read(len(records)):
                break

    def _handshake(self) -> bool:
        try:
            self._tls.do_handshake()
        except ssl.SSLWantReadError:
            return False
        self._established = True
        return True

    def _read(self, size: int) -> bool:
        """Decrypt all that is there; returns whether more may follow.

        Args:
            size: bytes that came.
        """
        again = True
        empty = True
        while again:
            filled, again = self._decrypt(RelayProtocol.get_buffer(self, -1))
            if filled:
                empty = False
                RelayProtocol.buffer_updated(self, filled)
            if self.stage is closed_stage:
                return False
        if self._closed_by_peer:
            self.end(EndReason.CLIENT_CLOSED, How.GRACEFUL)
            return False
        if empty:
            self._without_data += size
            if self._without_data > _MOST_WITHOUT_DATA:
                self.on_protocol_error(RemoteProtocolError("TLS: records that bring nothing"))
                return False
        elif self._without_data:
            self._without_data = 0
        return True

    def _decrypt(self, room: memoryview) -> tuple[int, bool]:
        """Fill `room`; gives how many bytes there are, and whether there may be more."""
        incoming = self._incoming
        read = self._read_record
        size = len(room)
        filled = 0
        try:
            # A call a record: one read never gives more than one.
            while filled < size:
                # Asking for what is not there costs an exception.
                if not incoming.pending and not self._undelivered():
                    return filled, False
                count = read(size - filled, room[filled:] if filled else room)
                if not count:
                    self._closed_by_peer = True
                    return filled, False
                filled += count
        except ssl.SSLWantReadError:
            return filled, False  # the rest is an incomplete record
        except ssl.SSLZeroReturnError:
            self._closed_by_peer = True
            return filled, False
        return filled, True

    def _fail_tls(self, error: ssl.SSLError) -> None:
        if self.ended:
            return
        if error.reason == "HTTP_REQUEST":
            self._outgoing.read()
            super().write(_PLAIN_HTTP)
        self._speak()  # the alert
        self._established = False  # no close alert after this
        reason = error.reason or str(error)
        if reason == "HTTP_REQUEST":
            reason = "plain HTTP on the TLS port"
        elif reason == "CALLBACK_FAILED":
            reason = "the server name asked for has no certificate here"
        self.end(EndReason.PROTOCOL_ERROR, How.GRACEFUL, f"TLS: {reason}")

    def write(self, data: bytes) -> bool:
        """Encrypt and write. Returns False if that failed, which ends the connection."""
        transport = self.transport
        if transport is None or not data:
            return False
        try:
            sent = self._write_record(data)
            encrypted = self._outgoing.read()
            if sent != len(data):
                encrypted = self._write_rest(data, sent, encrypted)
        except ssl.SSLError as e:
            self._fail_tls(e)
            return False
        if self._progress is not None:
            return super().write(encrypted)
        transport.write(encrypted)
        if self._progress is not None:
            self._layout = (len(data), len(encrypted))
        return True

    def _write_rest(self, data: bytes, sent: int, first: bytes) -> bytes:
        # OpenSSL makes one record a call, of 16 KiB at most.
        records = [first]
        with memoryview(data) as view:
            while sent < len(data):
                sent += self._write_record(view[sent:])
                records.append(self._outgoing.read())
        return b"".join(records)

    def _unsent_stream(self, held: int) -> int:
        return super()._unsent_stream(unsent_plain(held, *self._layout))

    def drop_rest(self) -> None:
        """Forget what was left unused, and discard what still comes."""
        super().drop_rest()
        self._hello = b""

    def _say_goodbye(self, words: list[bytes]) -> None:
        super()._say_goodbye(words)
        if self._established:
            with contextlib.suppress(ssl.SSLError):
                self._tls.unwrap()  # the client's own close alert is not waited for
            self._speak()

    @property
    def tls_version(self) -> str:
        """The TLS version agreed on, such as `1.3`."""
        return (self._tls.version() or "").removeprefix("TLSv")


def unsent_plain(unsent: int, plain: int, encrypted: int) -> int:
    """Bytes that a client cannot decrypt if the end of a write does not reach it.

    Args:
        unsent: how many encrypted bytes at its end are missing; a record counts as a whole.
        plain: bytes of the write before encryption.
        encrypted: and after it.
    """
    if unsent <= 0 or not plain:
        return 0
    records = -(-plain // _RECORD)
    overhead = (encrypted - plain) // records
    last = plain - (records - 1) * _RECORD
    if unsent <= last + overhead:
        return last
    more = -(-(unsent - last - overhead) // (_RECORD + overhead))
    return min(last + more * _RECORD, plain)


def _record_length(record: bytes) -> int:
    return int.from_bytes(record[3:_RECORD_HEADER], "big")


def protocol_factory(
    core: Core, routes: Routes, contexts: ServerContexts | None, *, derp: bool = True
) -> Callable[[], RelayProtocol]:
    """Makes the protocol of each accepted connection.

    Args:
        contexts: have the TLS context of each connection; `None`: plain TCP.
        derp: whether `/derp` is served.
    """

    def first(protocol: RelayProtocol) -> HttpStage:
        return HttpStage(protocol, routes, derp=derp)

    if contexts is None:
        return lambda: RelayProtocol(core, first)
    return lambda: TLSRelayProtocol(core, first, contexts)
