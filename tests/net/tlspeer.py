"""A TLS server in memory, and a link to it: no sockets, no loop, no time."""

from __future__ import annotations

import contextlib
import ssl
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

from pyderp.net.link import Link, Receiver
from pyderp.net.settings import NetworkSettings
from pyderp.net.tls import HealthTracker, TLSConfig, TlsLink, start_tls

from .certificates import ROOT

T = TypeVar("T")

TRUSTING = TLSConfig(system_roots=False, builtin_roots=False, extra_roots=(ROOT.der,))
NAME = "derp.example.com"


class TlsPeer:
    """The server's side."""

    def __init__(self, context: ssl.SSLContext) -> None:
        self.incoming = ssl.MemoryBIO()
        self.outgoing = ssl.MemoryBIO()
        self.sni: str | None = None
        self.refusal: int | None = None
        """The alert that answers any name of the client."""
        context.sni_callback = self._on_name
        self.tls = context.wrap_bio(self.incoming, self.outgoing, server_side=True)
        self.established = False
        self.received = bytearray()
        """The bytes that it decrypted."""
        self.error: ssl.SSLError | None = None

    def _on_name(self, _object: object, name: str | None, _context: object) -> int | None:
        self.sni = name
        return self.refusal

    def answer(self, data: bytes) -> bytes:
        """Take bytes of the client; return the bytes to send back."""
        self.incoming.write(data)
        try:
            if not self.established:
                self.tls.do_handshake()
                self.established = True
            while more := self.tls.read(1 << 16):
                self.received += more
        except ssl.SSLWantReadError:
            pass
        except ssl.SSLError as e:
            self.error = e
        return self.outgoing.read()

    def say(self, data: bytes) -> bytes:
        """Encrypt, as one record or several."""
        view = memoryview(data)
        while view:
            view = view[self.tls.write(view) :]
        return self.outgoing.read()

    def close_alert(self) -> bytes:
        with contextlib.suppress(ssl.SSLWantReadError):
            self.tls.unwrap()
        return self.outgoing.read()


class MemoryLink(Link):
    """A link whose other side is a function; when that returns nothing, the stream ends."""

    def __init__(self, answer: Callable[[bytes], bytes]) -> None:
        self.answer = answer
        self.unread = bytearray()
        self.written: list[bytes] = []
        self.receiver: Receiver | None = None
        self.aborted = False
        self.paused = False
        self.pending_bytes = 0
        self.error: OSError | None = None
        """What the stream ends with."""

    async def read(self) -> bytes:
        data = bytes(self.unread)
        self.unread.clear()
        if not data and self.error is not None:
            raise self.error
        return data

    def start(self, receiver: Receiver) -> None:
        self.receiver = receiver
        if self.unread:
            data = bytes(self.unread)
            self.unread.clear()
            receiver.data_received(data)

    def feed(self, data: bytes) -> None:
        """Deliver bytes."""
        if self.receiver is None:
            self.unread += data
        else:
            self.receiver.data_received(data)

    def write(self, data: bytes) -> None:
        self.written.append(data)
        if back := self.answer(data):
            self.feed(back)

    @property
    def pending(self) -> int:
        return self.pending_bytes

    def pause_reading(self) -> None:
        self.paused = True

    def resume_reading(self) -> None:
        self.paused = False

    def abort(self) -> None:
        self.aborted = True

    @property
    def local_address(self) -> tuple[str, int] | None:
        return ("127.0.0.1", 1)

    @property
    def remote_address(self) -> tuple[str, int] | None:
        return ("127.0.0.2", 2)


class Sink:
    """A receiver that keeps what it gets."""

    def __init__(self) -> None:
        self.chunks: list[bytes] = []
        self.ends: list[Exception | None] = []
        self.times_writable = 0

    def data_received(self, data: bytes) -> None:
        assert not self.ends
        assert type(data) is bytes
        self.chunks.append(data)

    def connection_lost(self, error: Exception | None) -> None:
        self.ends.append(error)

    def writable(self) -> None:
        self.times_writable += 1


def finish(coroutine: Coroutine[Any, Any, T]) -> T:
    """Run a coroutine that never has to wait."""
    try:
        coroutine.send(None)
    except StopIteration as e:
        value: T = e.value
        return value
    coroutine.close()
    raise AssertionError("it waits")


def handshake(
    link: Link,
    *,
    server_name: str = NAME,
    cert_name: str = "",
    insecure: bool = False,
    config: TLSConfig = TRUSTING,
    settings: NetworkSettings | None = None,
    health: HealthTracker | None = None,
) -> TlsLink:
    """`start_tls` over a link that never waits."""
    return finish(
        start_tls(
            link,
            server_name=server_name,
            cert_name=cert_name,
            insecure=insecure,
            config=config,
            settings=settings or NetworkSettings(),
            health=health,
        )
    )
