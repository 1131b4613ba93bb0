"""A small server that uses a `CertificateSource` as the relay does."""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from collections.abc import AsyncIterator
from dataclasses import dataclass

from pyderp.certs import CertificateSource, ServerContexts
from pyderp.errors import RemoteProtocolError
from pyderp.wire.clienthello import parse_client_hello_untrusted
from tests.server.certificates import trusting_nobody

from .handshake import META


@dataclass
class Served:
    http_port: int
    tls_port: int


class _Server:
    """Answers challenges over HTTP; over TLS it does handshakes and echoes lines."""

    def __init__(self, source: CertificateSource) -> None:
        self.source = source
        self.contexts = ServerContexts(source, META)

    async def http(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError, asyncio.IncompleteReadError):
            head = await reader.readuntil(b"\r\n\r\n")
            body = self.source.http_challenge(head.split()[1].decode())
            status = b"404 Not Found" if body is None else b"200 OK"
            body = body or b""
            size = str(len(body)).encode()
            writer.write(
                b"HTTP/1.0 " + status + b"\r\nContent-Length: " + size + b"\r\n\r\n" + body
            )
        writer.close()

    async def tls(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            first = await self._first(reader)
            context = self.contexts.challenge_context(memoryview(first))
            if context is None:
                context = self.contexts.context(writer.get_extra_info("sockname")[0])
            await _Handshake(context, reader, writer).echo(first)
        writer.close()

    async def _first(self, reader: asyncio.StreamReader) -> bytes:
        data = await reader.read(65536)
        with contextlib.suppress(RemoteProtocolError):
            while self.source.challenge_pending and parse_client_hello_untrusted(data) is None:
                more = await reader.read(65536)
                if not more:
                    break
                data += more
        return data


class _Handshake:
    def __init__(
        self, context: ssl.SSLContext, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        self.incoming, self.outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self.tls = context.wrap_bio(self.incoming, self.outgoing, server_side=True)
        self.reader, self.writer = reader, writer

    async def echo(self, first: bytes) -> None:
        self.incoming.write(first)
        established = False
        while True:
            try:
                if not established:
                    self.tls.do_handshake()
                    established = True
                data = self.tls.read(65536)
                if not data:
                    return
                self.tls.write(data)
            except ssl.SSLWantReadError:
                pass
            except ssl.SSLError:
                self.writer.write(self.outgoing.read())
                return
            self.writer.write(self.outgoing.read())
            if not self.incoming.pending:
                more = await self.reader.read(65536)
                if not more:
                    return
                self.incoming.write(more)


@contextlib.asynccontextmanager
async def serving(
    source: CertificateSource, host: str = "127.0.0.1", http_port: int = 0, tls_port: int = 0
) -> AsyncIterator[Served]:
    """Serve challenges and handshakes; the source is started, and closed at the end."""
    server = _Server(source)
    async with contextlib.AsyncExitStack() as stack:
        ports = []
        for answer, port in ((server.http, http_port), (server.tls, tls_port)):
            listening = await asyncio.start_server(answer, host, port)
            # Closed also if the other port is in use.
            stack.callback(listening.close)
            ports.append(listening.sockets[0].getsockname()[1])
        stack.push_async_callback(source.aclose)
        await source.start()
        yield Served(*ports)


@contextlib.asynccontextmanager
async def connected(
    port: int, name: str | None, host: str = "127.0.0.1"
) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter, bytes]]:
    """Yield a client's connection, and the leaf certificate that it was shown."""
    # asyncio refuses an empty name, and sends no name for an address.
    context = trusting_nobody()
    reader, writer = await asyncio.open_connection(
        host, port, ssl=context, server_hostname=name or host
    )
    try:
        leaf = writer.get_extra_info("ssl_object").getpeercert(True)
        yield reader, writer, leaf
    finally:
        writer.close()
        with contextlib.suppress(OSError, ssl.SSLError):
            await writer.wait_closed()
