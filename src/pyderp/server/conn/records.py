"""TLS without a socket: the interface `RecordLayer`, and its implementation on the ssl module.

The event loops have TLS of their own, but asyncio's keeps 256 KiB for each connection, and neither
asyncio's nor uvloop's says how many bytes the kernel has yet to take, which the relay's queues need
to know. Here TLS runs on memory buffers over a plain TCP transport.
"""

from __future__ import annotations

import contextlib
import ssl
from collections.abc import Callable
from typing import Any, Final, Protocol

from pyderp.text import openssl_words

__all__ = ["BRINGS_NOTHING", "NO_CERTIFICATE", "PLAIN_HTTP", "RecordLayer", "SSLRecords"]

BRINGS_NOTHING: Final = "records that bring nothing"
NO_CERTIFICATE: Final = "no certificate for this client"
PLAIN_HTTP: Final = "plain HTTP on the TLS port"
"""Reasons of a failure that are the same for all engines."""

_RECORD: Final = 16 * 1024
"""Most plain bytes of one record (RFC 8446 §5.1)."""
_SLICE: Final = 16 * 1024
"""Most bytes given to OpenSSL at once, because its memory buffers never shrink."""
_MOST_WITHOUT_DATA: Final = 40 * 1024
"""Most bytes of records in a row that bring no data. The largest record has 16 KiB. A flood of key
updates has 22 bytes for each, and each costs as much as a part of a handshake."""
_VERSIONS: Final[dict[str | None, str]] = {"TLSv1.2": "1.2", "TLSv1.3": "1.3"}
"""Shared by all connections, which saves a string for each."""
_REASONS: Final = {
    "HTTP_REQUEST": PLAIN_HTTP,
    "CALLBACK_FAILED": NO_CERTIFICATE,
}


class RecordLayer(Protocol):
    """The TLS of one connection, without its socket.

    Attributes:
        news: set by `feed` if the handshake is complete, TLS failed, the client closed it, or
            `output` has bytes.
        is_closed: the client's close alert arrived: it sends nothing more.
        failure: why the connection must end; empty: it goes on. `feed` and `seal` must not be
            called afterwards.
    """

    news: bool
    is_closed: bool
    failure: str

    def feed(self, encrypted: memoryview, room: memoryview) -> int:
        """Take encrypted bytes and decrypt all complete records.

        Args:
            room: where the plain bytes go; at least as long as `encrypted` and one record.

        Returns:
            the number of plain bytes.
        """

    def seal(self, chunks: list[bytes]) -> bytes:
        """Encrypt bytes of the stream; return what to write, after what `output` has."""

    def output(self) -> bytes:
        """Return what TLS itself has to write: handshake, alerts, key updates; usually nothing."""

    def close(self) -> bytes:
        """Return the close alert; empty if the handshake is incomplete."""

    def unsent_size(self, outer: int, plain: int, encrypted: int) -> int:
        """Return how many plain bytes a client misses that does not get the end of a `seal`.

        Args:
            outer: encrypted bytes that are missing; a client decrypts complete records only.
            plain: bytes that were passed to `seal`.
            encrypted: bytes that it returned.
        """

    @property
    def version(self) -> str:
        """The version of TLS, such as `1.3`; empty before it was negotiated."""


class SSLRecords:
    """A `RecordLayer` on the ssl module.

    Args:
        context: certificate and settings of the server's side.
    """

    __slots__ = (
        "_established",
        "_incoming",
        "_outgoing",
        "_read_record",
        "_tls",
        "_undelivered",
        "_without_data",
        "_write_record",
        "failure",
        "is_closed",
        "news",
    )

    def __init__(self, context: ssl.SSLContext) -> None:
        self.news = False
        self.is_closed = False
        self.failure = ""
        self._established = False
        self._without_data = 0
        self._incoming = ssl.MemoryBIO()
        self._outgoing = ssl.MemoryBIO()
        self._tls = context.wrap_bio(self._incoming, self._outgoing, server_side=True)
        # The private object inside SSLObject has the same methods without a Python function
        # around each. If a Python lacks it, the public one is used.
        fast: Any = getattr(self._tls, "_sslobj", self._tls)
        self._read_record: Callable[[int, memoryview], int] = fast.read
        self._write_record: Callable[[bytes | memoryview], int] = fast.write
        self._undelivered: Callable[[], int] = fast.pending

    def feed(self, encrypted: memoryview, room: memoryview) -> int:
        """Decrypt (`RecordLayer.feed`)."""
        filled = 0
        was_established = self._established
        try:
            # The usual case in one step. Otherwise the handshake may end in the middle.
            if was_established and len(encrypted) <= _SLICE:
                self._incoming.write(encrypted)
                filled = self._decrypt(room, 0, len(encrypted))
            else:
                for start in range(0, len(encrypted), _SLICE):
                    some = encrypted[start : start + _SLICE]
                    self._incoming.write(some)
                    if self._established or self._handshake():
                        filled = self._decrypt(room, filled, len(some))
                        if self.is_closed or self.failure:
                            break
        except ssl.SSLError as e:
            self._fail(e)
        self.news = bool(
            self._outgoing.pending
            or self.failure
            or self.is_closed
            or self._established is not was_established
        )
        return filled

    def _handshake(self) -> bool:
        try:
            self._tls.do_handshake()
        except ssl.SSLWantReadError:
            return False
        self._established = True
        return True

    def _decrypt(self, room: memoryview, filled: int, came: int) -> int:
        """Decrypt into `room` from `filled` on; return how many bytes it then has."""
        incoming = self._incoming
        read = self._read_record
        size = len(room)
        before = filled
        try:
            # One call for each record, because OpenSSL reads at most one. The condition saves the
            # exception that a call without data would raise.
            while incoming.pending or self._undelivered():
                count = read(size - filled, room[filled:] if filled else room)
                if not count:
                    # The client's close alert. The ssl module returns 0 for it, but raises
                    # SSLZeroReturnError if this side has sent one too.
                    self.is_closed = True
                    break
                filled += count
        except ssl.SSLWantReadError:
            pass  # the rest is an incomplete record
        except ssl.SSLZeroReturnError:
            self.is_closed = True
        except ssl.SSLError as e:
            self._fail(e)
        # Key updates, empty records and alerts cost CPU and have no data. A client could send them
        # for ever; the rate limit counts only bytes of the stream.
        if filled > before:
            self._without_data = 0
        else:
            self._without_data += came
            if self._without_data > _MOST_WITHOUT_DATA:
                self.failure = BRINGS_NOTHING
        return filled

    def _fail(self, error: ssl.SSLError) -> None:
        self.failure = _REASONS.get(error.reason or "") or openssl_words(error)
        self._established = False  # no close alert after this

    def seal(self, chunks: list[bytes]) -> bytes:
        """Encrypt (`RecordLayer.seal`)."""
        data = chunks[0] if len(chunks) == 1 else b"".join(chunks)
        if not data:
            return b""
        try:
            sent = self._write_record(data)
            encrypted = self._outgoing.read()
            return encrypted if sent == len(data) else self._seal_rest(data, sent, encrypted)
        except ssl.SSLError as e:
            self._fail(e)
            return b""

    def _seal_rest(self, data: bytes, sent: int, first: bytes) -> bytes:
        # OpenSSL makes one record for each call, of at most 16 KiB.
        records = [first]
        with memoryview(data) as view:
            while sent < len(data):
                sent += self._write_record(view[sent:])
                records.append(self._outgoing.read())
        return b"".join(records)

    def output(self) -> bytes:
        """Take out what OpenSSL has to write by itself (`RecordLayer.output`)."""
        return self._outgoing.read() if self._outgoing.pending else b""

    def close(self) -> bytes:
        """Make the close alert, without waiting for the client's (`RecordLayer.close`)."""
        if self._established:
            # It raises because the client's close alert is missing; its own is written by then.
            with contextlib.suppress(ssl.SSLError):
                self._tls.unwrap()
        return self.output()

    def unsent_size(self, outer: int, plain: int, encrypted: int) -> int:
        """Count plain bytes of incomplete records (`RecordLayer.unsent_size`)."""
        if outer <= 0 or not plain:
            return 0
        # All records but the last are full, and each has the same overhead.
        records = -(-plain // _RECORD)  # rounded up
        overhead = (encrypted - plain) // records
        last = plain - (records - 1) * _RECORD
        if outer <= last + overhead:
            return last
        more = -(-(outer - last - overhead) // (_RECORD + overhead))
        return min(last + more * _RECORD, plain)

    @property
    def version(self) -> str:
        """The version agreed on (`RecordLayer.version`)."""
        return _VERSIONS.get(self._tls.version(), "")
