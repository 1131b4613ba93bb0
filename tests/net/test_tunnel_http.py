from __future__ import annotations

import asyncio
import logging
import ssl
from pathlib import Path

import pytest

from pyderp.errors import DialError, ProxyError
from pyderp.net import tunnel
from pyderp.net.link import Link, TcpLink
from pyderp.net.settings import NetworkSettings, parse_proxy
from pyderp.net.tls import TLSConfig
from pyderp.net.tunnel import connect_through_http
from pyderp.text import printable
from tests.server.certificates import write_pair

from .proxy_servers import FakeConnectProxy
from .ways_out import Sockets, carries, closed_port, fixed, read_exactly, serving

HOST = "derp.example.com"
TOO_LONG = b"HTTP/1.1 200 OK\r\nX: " + b"x" * 70_000


async def through(
    port: int,
    *,
    host: str = HOST,
    userinfo: str = "",
    scheme: str = "http",
    settings: NetworkSettings | None = None,
) -> Link:
    proxy = parse_proxy(f"{scheme}://{userinfo}127.0.0.1:{port}")
    return await connect_through_http(proxy, host, 8443, settings=settings or NetworkSettings())


@pytest.mark.parametrize(
    ("userinfo", "authorization", "line"),
    [
        ("", "", b""),
        ("user@", "", b""),
        (":pass@", "", b""),
        ("user:@", "", b"Proxy-Authorization: Basic dXNlcjo=\r\n"),
        ("user:pass@", "", b"Proxy-Authorization: Basic dXNlcjpwYXNz\r\n"),
        ("%C3%BC:%40@", "", b"Proxy-Authorization: Basic w7w6QA==\r\n"),
        ("user:pass@", "Bearer of news", b"Proxy-Authorization: Bearer of news\r\n"),
        ("", "Bearer of news", b"Proxy-Authorization: Bearer of news\r\n"),
    ],
)
async def test_the_request_is_exact_to_the_byte(
    userinfo: str, authorization: str, line: bytes
) -> None:
    proxy = FakeConnectProxy()
    async with serving(proxy) as port:
        settings = NetworkSettings(proxy_authorization=authorization)
        link = await through(port, userinfo=userinfo, settings=settings)
        await carries(link)
        link.abort()
    target = b"derp.example.com:8443"
    assert proxy.heads == [
        b"CONNECT " + target + b" HTTP/1.1\r\nHost: " + target + b"\r\n" + line + b"\r\n"
    ]


async def test_an_ipv6_target_has_brackets() -> None:
    proxy = FakeConnectProxy()
    async with serving(proxy) as port:
        (await through(port, host="2001:db8::1")).abort()
    assert proxy.heads[0].startswith(b"CONNECT [2001:db8::1]:8443 HTTP/1.1\r\n")


@pytest.mark.parametrize("in_pieces", [False, True])
@pytest.mark.parametrize("tail", [b"", b"\x01 greeting", b"HTTP/1.1 200 OK\r\n\r\n" * 9])
async def test_bytes_after_the_answer_belong_to_the_tunnel(tail: bytes, in_pieces: bool) -> None:
    answer = b"HTTP/1.1 103 Early\r\n\r\nHTTP/1.0 200\r\nVia: x\r\n\r\n" + tail
    async with serving(FakeConnectProxy(answer, in_pieces=in_pieces)) as port:
        link = await through(port)
        assert await read_exactly(link, len(tail)) == tail
        await carries(link)
        link.abort()


async def test_a_receiver_first_gets_bytes_after_the_answer() -> None:
    class Receiver:
        def __init__(self) -> None:
            self.data = b""
            self.lost = asyncio.Event()
            self.whole = asyncio.Event()

        def data_received(self, data: bytes) -> None:
            self.data += data
            if len(self.data) == 14:
                self.whole.set()

        def connection_lost(self, error: Exception | None) -> None:
            self.lost.set()

        def writable(self) -> None: ...

    answer = b"HTTP/1.1 200 OK\r\n\r\nfirst, "
    async with serving(FakeConnectProxy(answer)) as port:
        link = await through(port)
        receiver = Receiver()
        link.start(receiver)
        assert receiver.data == b"first, "
        link.pause_reading()
        link.resume_reading()
        link.write(b"echoed.")
        await receiver.whole.wait()
        assert receiver.data == b"first, echoed."
        assert link.pending == 0
        assert link.remote_address == ("127.0.0.1", port)
        assert link.local_address is not None
        link.abort()
        await receiver.lost.wait()


async def test_bytes_that_were_read_are_not_delivered_again() -> None:
    class Receiver:
        def __init__(self) -> None:
            self.data = asyncio.Queue[bytes]()

        def data_received(self, data: bytes) -> None:
            self.data.put_nowait(data)

        def connection_lost(self, error: Exception | None) -> None: ...

        def writable(self) -> None: ...

    async with serving(FakeConnectProxy(b"HTTP/1.1 200 OK\r\n\r\nfirst")) as port:
        link = await through(port)
        assert await read_exactly(link, 5) == b"first"
        receiver = Receiver()
        link.start(receiver)
        link.write(b"then")
        assert await receiver.data.get() == b"then"
        link.abort()


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (
            b"HTTP/1.1 407 Proxy Authentication Required\r\n\r\n",
            "invalid response status from {what}: 407 Proxy Authentication Required",
        ),
        (
            b"HTTP/1.1 407 Login\r\nProxy-Authenticate: NTLM\r\n"
            b"Proxy-Authenticate: Negotiate dG9rZW4=\r\n\r\n",
            "invalid response status from {what}: 407 Login; it offers the login by NTLM, "
            "Negotiate, and not by Basic",
        ),
        (
            b'HTTP/1.1 407 Login\r\nProxy-Authenticate: Basic realm="x"\r\n\r\n',
            "invalid response status from {what}: 407 Login; it offers the login by Basic",
        ),
        (b"HTTP/1.1 201 Created\r\n\r\n", "invalid response status from {what}: 201 Created"),
        (b"HTTP/1.1 503\r\n\r\n", "invalid response status from {what}: 503"),
        (
            b"HTTP/1.1 502 \x9b31m\tBad\r\n\r\n",
            r"invalid response status from {what}: 502 \x9b31m\tBad",
        ),
        (b"HTTP/1.1 101 Switch\r\n\r\n", "bad response from {what}: "),
        (b"", "bad response from {what}: "),
        (b"HTTP/1.1 200 OK\r\nX", "bad response from {what}: "),
        (b"SSH-2.0-OpenSSH\r\n\r\n", "bad response from {what}: "),
        (TOO_LONG, "bad response from {what}: "),
        (b"HTTP/1.1 100 Go\r\n\r\n" * 10_000, "bad response from {what}: the head is too long"),
    ],
)
async def test_other_answers_are_errors_without_a_password(
    answer: bytes, message: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.clear()
    caplog.set_level(logging.DEBUG, "pyderp.net")
    sockets = Sockets()
    async with serving(FakeConnectProxy(answer, hang_up=True)) as port:
        with pytest.raises(ProxyError) as caught:
            await through(port, userinfo="me:secret@", settings=sockets.watch())
    what = f"HTTP proxy http://***@127.0.0.1:{port} on CONNECT to {HOST}:8443"
    assert str(caught.value).startswith(message.format(what=what))
    assert caplog.messages == [f"derphttp: CONNECT dial to {HOST}:8443: {caught.value}"]
    assert "secret" not in caplog.text
    await sockets.closed()


async def test_success_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    caplog.clear()
    caplog.set_level(logging.DEBUG, "pyderp.net")
    async with serving(FakeConnectProxy(b"HTTP/1.1 200 Go\r\n\r\n")) as port:
        (await through(port)).abort()
    assert caplog.messages == [f"derphttp: CONNECT dial to {HOST}:8443: 200 Go"]


async def test_a_proxy_that_resets_the_connection_is_a_proxy_error() -> None:
    async def reset(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.transport.abort()

    async with serving(reset) as port:
        with pytest.raises(ProxyError, match=r"on CONNECT to derp\.example\.com:8443: "):
            await through(port)


async def test_a_broken_link_is_no_response() -> None:
    class Broken(TcpLink):
        aborted = False

        async def read(self) -> bytes:
            raise ConnectionResetError(104, "Connection reset by peer")

        def abort(self) -> None:
            self.aborted = True

    link = Broken()
    proxy = parse_proxy("http://p:1")
    with pytest.raises(ProxyError) as caught:
        await tunnel.open_tunnel(link, HOST, 1, proxy=proxy, settings=NetworkSettings())
    assert str(caught.value) == (
        "no response from HTTP proxy http://p:1 on CONNECT to derp.example.com:1: "
        "Connection reset by peer"
    )
    assert link.aborted


@pytest.mark.parametrize(
    "host",
    [
        "",
        "a b",
        "a\r\nX: y",
        "a\0",
        "a\x7f",
        "bücher.example",
        *(f"a{c}b" for c in '/@"<>\\^`{|}#?'),
    ],
)
async def test_a_host_that_cannot_be_in_a_request_is_refused(host: str) -> None:
    """The proxy is not even dialled: it would refuse the connection, with another error."""
    with pytest.raises(DialError) as caught:
        await through(closed_port(), host=host)
    assert str(caught.value) == f'invalid DERP node hostname "{printable(host)}"'


@pytest.mark.parametrize(
    ("host", "target"),
    [
        ("derp1.example.com", "derp1.example.com:8443"),
        ("198.51.100.7", "198.51.100.7:8443"),
        ("fe80::1", "[fe80::1]:8443"),
        ("fe80::1%eth0", "[fe80::1%eth0]:8443"),
        ("a_b", "a_b:8443"),
        ("a%20b", "a%20b:8443"),
        ("a,b;c", "a,b;c:8443"),
        ("a'b!$&()*+=~", "a'b!$&()*+=~:8443"),
    ],
)
async def test_any_host_that_go_requests_is_requested(host: str, target: str) -> None:
    proxy = FakeConnectProxy()
    async with serving(proxy) as port:
        link = await through(port, host=host)
        link.abort()
    assert proxy.heads[0].startswith(f"CONNECT {target} HTTP/1.1\r\n".encode())


@pytest.mark.parametrize("authorization", ["x\r\ny", "x\0"])
async def test_an_authorization_that_cannot_be_in_a_request_is_refused(authorization: str) -> None:
    proxy = FakeConnectProxy()
    settings = NetworkSettings(proxy_authorization=authorization)
    async with serving(proxy) as port:
        with pytest.raises(DialError, match="cannot be sent"):
            await through(port, settings=settings)
    assert not proxy.heads


async def test_a_refused_connection_to_the_proxy_hides_the_password() -> None:
    port = closed_port()
    with pytest.raises(DialError) as caught:
        await through(port, userinfo="me:secret@")
    assert str(caught.value) == (
        f"proxy http://***@127.0.0.1:{port}: connect to 127.0.0.1:{port}: Connection refused"
    )


@pytest.fixture
def certificate(tmp_path: Path) -> tuple[ssl.SSLContext, bytes]:
    certificate = write_pair(tmp_path, "proxy.test")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(tmp_path / "proxy.test.crt", tmp_path / "proxy.test.key")
    return context, certificate


@pytest.mark.parametrize("tail", [b"", b"greeting"])
async def test_the_proxy_can_be_reached_over_tls(
    certificate: tuple[ssl.SSLContext, bytes],
    monkeypatch: pytest.MonkeyPatch,
    tail: bytes,
) -> None:
    context, root = certificate
    monkeypatch.setattr(tunnel, "_PROXY_TLS", TLSConfig(extra_roots=(root,)))
    proxy = FakeConnectProxy(b"HTTP/1.1 200 OK\r\n\r\n" + tail)
    async with serving(proxy, ssl=context) as port:
        link = await connect_through_http(
            parse_proxy(f"https://proxy.test:{port}"),
            HOST,
            443,
            settings=NetworkSettings(),
            resolver=fixed("127.0.0.1"),
        )
        assert await read_exactly(link, len(tail)) == tail
        await carries(link)
        link.abort()
    assert proxy.heads[0].startswith(b"CONNECT derp.example.com:443 HTTP/1.1\r\n")


async def test_an_untrusted_certificate_of_the_proxy_is_refused(
    certificate: tuple[ssl.SSLContext, bytes],
) -> None:
    sockets, proxy = Sockets(), FakeConnectProxy()
    async with serving(proxy, ssl=certificate[0]) as port:
        with pytest.raises(ProxyError) as caught:
            await through(port, scheme="https", userinfo="me:secret@", settings=sockets.watch())
        await sockets.closed()
    what = f"TLS to HTTP proxy https://***@127.0.0.1:{port}: "
    assert str(caught.value).startswith(what)
    assert not proxy.heads


async def test_a_proxy_that_refuses_connections_is_named() -> None:
    port = closed_port()
    proxy = parse_proxy(f"http://me:secret@127.0.0.1:{port}")
    with pytest.raises(DialError) as caught:
        await tunnel.connect_to_proxy(proxy, settings=NetworkSettings())
    assert str(caught.value) == (
        f"proxy http://***@127.0.0.1:{port}: connect to 127.0.0.1:{port}: Connection refused"
    )
    assert isinstance(caught.value.__cause__, ExceptionGroup)
