"""TLS over real sockets, on both event loops, with servers of several implementations."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import os
import re
import socket
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import pytest

from pyderp import ManualTLS, Relay, RelayConfig
from pyderp.errors import CertificateError, PinMismatch, TLSError
from pyderp.net.link import Link, TcpLink, link_over_socket
from pyderp.net.settings import NetworkSettings
from pyderp.net.tls import TLSConfig, TlsLink, start_tls
from pyderp.wire.metacert import scan_chain_untrusted
from tests.interop.peers import need
from tests.interop.relays import Kind, each_derper, running
from tests.server.certificates import write_pair

from .certificates import META, RELAY, ROOT, certificate
from .tlspeer import NAME, TRUSTING, TlsPeer

GOOD = certificate(NAME, "127.0.0.1", issuer=ROOT).followed_by(META)
BIG = os.urandom(1 << 20)
NO_ROOTS = TLSConfig(system_roots=False, builtin_roots=False)
VERSIONS = [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3]

Handler = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


@contextlib.asynccontextmanager
async def serving(
    handler: Handler, context: ssl.SSLContext | None = None
) -> AsyncIterator[tuple[str, int]]:
    """A server; yields its address. At the end all its connections are closed."""
    writers: list[asyncio.StreamWriter] = []
    handlers: list[asyncio.Future[None]] = []

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writers.append(writer)
        done = asyncio.get_running_loop().create_future()
        handlers.append(done)
        try:
            with contextlib.suppress(ConnectionError, ssl.SSLError):
                await handler(reader, writer)
        finally:
            writer.transport.abort()
            done.set_result(None)

    server = await asyncio.start_server(handle, "127.0.0.1", 0, ssl=context)
    try:
        yield server.sockets[0].getsockname()
    finally:
        server.close()
        for writer in writers:
            writer.transport.abort()
        await asyncio.gather(*handlers)


async def dial(address: tuple[str, int]) -> TcpLink:
    sock = socket.socket()
    sock.setblocking(False)
    try:
        await asyncio.get_running_loop().sock_connect(sock, address[:2])
    except BaseException:
        sock.close()
        raise
    return await link_over_socket(sock)


async def tls_over(
    link: Link, server_name: str = NAME, *, cert_name: str = "", config: TLSConfig = TRUSTING
) -> TlsLink:
    return await start_tls(
        link,
        server_name=server_name,
        cert_name=cert_name,
        config=config,
        settings=NetworkSettings(),
    )


class Collector:
    """A receiver that can be waited for."""

    def __init__(self) -> None:
        self.data = bytearray()
        self.came = asyncio.Event()
        self.end: asyncio.Future[Exception | None] = asyncio.get_running_loop().create_future()

    def data_received(self, data: bytes) -> None:
        self.data += data
        self.came.set()

    def connection_lost(self, error: Exception | None) -> None:
        self.end.set_result(error)

    def writable(self) -> None:
        pass

    async def has(self, data: bytes) -> None:
        while len(self.data) < len(data):
            self.came.clear()
            await self.came.wait()
        assert self.data == data


async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while data := await reader.read(1 << 16):
        writer.write(data)
        await writer.drain()


@pytest.mark.parametrize("version", VERSIONS)
async def test_a_megabyte_passes_both_ways(version: ssl.TLSVersion) -> None:
    async with serving(echo, GOOD.server(version)) as address:
        tls = await tls_over(await dial(address))
        assert tls.state.peer_chain == (GOOD.der, META)
        assert scan_chain_untrusted(tls.state.peer_chain) == (RELAY, 2)
        assert tls.remote_address == address
        assert tls.local_address is not None
        collector = Collector()
        tls.start(collector)
        tls.write(BIG)
        await collector.has(BIG)
        assert tls.pending == 0
        tls.abort()
        assert await collector.end is None


async def test_reads_before_start_work() -> None:
    async with serving(echo, GOOD.server()) as address:
        tls = await tls_over(await dial(address), "127.0.0.1")
        tls.write(b"a request")
        assert await tls.read() == b"a request"
        collector = Collector()
        tls.start(collector)
        tls.write(b"the rest")
        await collector.has(b"the rest")
        tls.abort()
        await collector.end


async def test_a_close_of_the_server_is_a_clean_end() -> None:
    async def goodbye(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"goodbye")
        writer.close()
        await writer.wait_closed()

    async with serving(goodbye, GOOD.server()) as address:
        tls = await tls_over(await dial(address))
        collector = Collector()
        tls.start(collector)
        assert await collector.end is None
        assert collector.data == b"goodbye"


@pytest.mark.parametrize(
    ("server_name", "cert_name", "error"),
    [
        ("other.example.com", "", CertificateError),
        ("127.0.0.2", "", CertificateError),
        (NAME, "other.example.com", CertificateError),
        (NAME, "sha256-raw:" + "0" * 64, PinMismatch),
        (NAME, "", None),
        ("127.0.0.1", "", None),
        ("front.example.com", NAME, None),
        (NAME, "sha256-raw:" + hashlib.sha256(GOOD.der).hexdigest(), None),
    ],
    ids=[
        *("other name", "other address", "other expected name", "other pin"),
        *("name", "address", "expected name", "pin"),
    ],
)
@pytest.mark.parametrize("version", VERSIONS)
async def test_no_byte_leaves_before_all_is_verified(
    server_name: str,
    cert_name: str,
    error: type[TLSError] | None,
    version: ssl.TLSVersion,
) -> None:
    """The server can decrypt nothing, or `secret` where all is well."""
    received = bytearray()

    gone = asyncio.Event()

    async def record(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        peer = TlsPeer(GOOD.server(version))
        try:
            while bytes(peer.received) != b"secret" and (data := await reader.read(1 << 16)):
                writer.write(peer.answer(data))
        finally:
            received.extend(peer.received)
            gone.set()

    async with serving(record) as address:
        link = await dial(address)
        if error is None:
            tls = await tls_over(link, server_name, cert_name=cert_name)
            tls.write(b"secret")
        else:
            with pytest.raises(error) as caught:
                (await tls_over(link, server_name, cert_name=cert_name)).write(b"secret")
            assert type(caught.value) is error
        await gone.wait()
        assert bytes(received) == (b"secret" if error is None else b"")
        link.abort()


async def test_a_cancelled_handshake_closes_the_connection() -> None:
    hello, hung_up = asyncio.Event(), asyncio.Event()

    async def silent(reader: asyncio.StreamReader, _: asyncio.StreamWriter) -> None:
        assert await reader.read(1 << 16)
        hello.set()
        try:
            assert await reader.read(1 << 16) == b""
        finally:
            hung_up.set()

    async with serving(silent) as address:
        link = await dial(address)
        connecting = asyncio.ensure_future(tls_over(link))
        await hello.wait()
        connecting.cancel()
        await asyncio.wait([connecting])
        assert connecting.cancelled()
        await hung_up.wait()
        assert len(asyncio.all_tasks()) <= 2  # the client's, and the server's


async def test_plain_http_on_the_port_is_named() -> None:
    async def http(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(100)
        writer.write(b"HTTP/1.1 400 Bad Request\r\n\r\n")
        await reader.read()

    async with serving(http) as address:
        with pytest.raises(TLSError, match="does not speak TLS"):
            await tls_over(await dial(address))


async def test_tls_in_tls_carries_bytes() -> None:
    proxy = certificate("proxy.example.com", issuer=ROOT)

    async def pipe(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError):
            while data := await reader.read(1 << 16):
                writer.write(data)
                await writer.drain()
        writer.transport.abort()

    async with serving(echo, GOOD.server()) as address:

        async def forward(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            to_reader, to_writer = await asyncio.open_connection(*address)
            await asyncio.gather(pipe(reader, to_writer), pipe(to_reader, writer))

        async with serving(forward, proxy.server()) as proxy_address:
            outer = await tls_over(await dial(proxy_address), "proxy.example.com")
            inner = await tls_over(outer)
            collector = Collector()
            inner.start(collector)
            inner.write(BIG)
            await collector.has(BIG)
            inner.abort()
            assert await collector.end is None


# Relays


async def test_a_relay_can_be_pinned(tmp_path: Path) -> None:
    """With the self-signed certificate and the meta certificate that it really sends."""
    pin = "sha256-raw:" + hashlib.sha256(write_pair(tmp_path, "127.0.0.1")).hexdigest()

    config = RelayConfig(
        address="127.0.0.1:0", tls=ManualTLS(certdir=tmp_path, hostname="127.0.0.1")
    )
    async with Relay(config) as relay:
        await greeted(relay.address, pin)
        with pytest.raises(PinMismatch):
            await tls_over(await dial(relay.address), "127.0.0.1", cert_name=pin[:-1] + "x")
        with pytest.raises(CertificateError, match="self-signed"):
            await tls_over(await dial(relay.address), "127.0.0.1")


@each_derper
async def test_derper_can_be_pinned(derper: Kind, tmp_path: Path) -> None:
    with running(derper, "pinned", tmp_path) as relay:
        pin = relay.pin
        assert pin is not None
        await greeted(("127.0.0.1", relay.port), pin)


async def greeted(address: tuple[str, int], pin: str) -> None:
    """A pinned handshake with a relay, the meta certificate, and an answer over HTTP."""
    tls = await tls_over(await dial(address), "127.0.0.1", cert_name=pin, config=NO_ROOTS)
    assert tls.state.version == "TLSv1.3"
    assert len(tls.state.peer_chain) == 2
    found = scan_chain_untrusted(tls.state.peer_chain)
    assert found is not None
    assert found[1] == 2
    tls.write(b"GET /derp/probe HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n")
    answer = bytearray()
    while data := await tls.read():
        answer += data
    assert answer.startswith(b"HTTP/1.1 200 OK\r\n")
    tls.abort()


# Features of OpenSSL's own server only


@contextlib.asynccontextmanager
async def openssl_server(
    directory: Path, *flags: str
) -> AsyncIterator[tuple[asyncio.subprocess.Process, tuple[str, int]]]:
    """`openssl s_server`; a line on its standard input with a single letter is a command."""
    path = directory / "server.pem"
    key = GOOD.key_pem()
    path.write_bytes(key + GOOD.pem())
    process = await asyncio.create_subprocess_exec(
        str(need("openssl")),
        *("s_server", "-accept", "127.0.0.1:0", "-cert", str(path), *flags),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    try:
        yield process, ("127.0.0.1", int(await said(process, rb"ACCEPT 127\.0\.0\.1:(\d+)\n")))
    finally:
        process.kill()
        await process.communicate()


async def said(process: asyncio.subprocess.Process, pattern: bytes) -> bytes:
    """Wait for output of a process that matches; returns the group."""
    assert process.stdout is not None
    text = b""
    while not (match := re.search(pattern, text)):
        more = await process.stdout.read(1 << 16)
        assert more, text.decode(errors="replace")
        text += more
    return match[1]


@pytest.mark.parametrize("order", [b"k\n", b"K\n"], ids=["theirs", "both"])
async def test_data_flows_on_after_key_updates(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, order: bytes
) -> None:
    """One that requests an update in return, and one that does not."""
    async with openssl_server(tmp_path, "-tls1_3") as (process, address):
        assert process.stdin is not None
        tls = await tls_over(await dial(address))
        came, take = asyncio.Event(), tls.data_received

        def taken(data: bytes) -> None:
            take(data)
            came.set()

        monkeypatch.setattr(tls, "data_received", taken)
        collector = Collector()
        tls.start(collector)
        text = b""
        for number in range(3):
            mark = b"mark %d\n" % number
            text += mark
            process.stdin.write(mark)
            await collector.has(text)
            came.clear()
            process.stdin.write(order)
            await came.wait()
            tls.write(mark)
            await said(process, b"(%s)" % mark)
        tls.abort()
        await collector.end


async def test_a_renegotiation_is_refused(tmp_path: Path) -> None:
    """It could bring another certificate after the first was verified."""
    async with openssl_server(tmp_path, "-tls1_2") as (process, address):
        assert process.stdin is not None
        tls = await tls_over(await dial(address))
        collector = Collector()
        tls.start(collector)
        process.stdin.write(b"R\n")
        await process.stdin.drain()
        await said(process, b"(?i)(no renegotiation)")
        tls.abort()
        await collector.end
