from __future__ import annotations

import asyncio
import socket
import struct

import pytest

from pyderp.errors import DialError, ProxyError
from pyderp.net.link import link_over_socket
from pyderp.net.settings import NetworkSettings, parse_proxy
from pyderp.net.tunnel import _Stream, connect_through_socks

from .proxy_servers import FakeSocksProxy
from .ways_out import Sockets, carries, closed_port, read_exactly, serving

HOST = "derp.example.com"
NAME = b"\x03\x10derp.example.com\x01\xbb"
# version 5, one method: none
HELLO = (b"\x05\x01\x00", b"\x05\x00")
# two methods: none, or user and password, which the proxy wants
HELLO_USER = (b"\x05\x02\x00\x02", b"\x05\x02")
USER = (b"\x01\x04user\x04pass", b"\x01\x00")
BOUND_V4 = b"\x01\x7f\x00\x00\x01\x00\x50"
CONNECT = (b"\x05\x01\x00" + NAME, b"\x05\x00\x00" + BOUND_V4)


async def fails(proxy: FakeSocksProxy, *, host: str = HOST, userinfo: str = "") -> tuple[str, str]:
    """The error's text, and its name of the proxy."""
    sockets = Sockets()
    async with serving(proxy) as port:
        url = parse_proxy(f"socks5://{userinfo}127.0.0.1:{port}")
        with pytest.raises(ProxyError) as caught:
            await connect_through_socks(url, host, 443, settings=sockets.watch())
        await sockets.closed()
    return str(caught.value), f"SOCKS5 proxy {url.redacted}"


@pytest.mark.parametrize("scheme", ["socks5", "socks5h"])
@pytest.mark.parametrize(
    ("userinfo", "script"),
    [
        ("", [HELLO, CONNECT]),
        ("user:pass@", [HELLO_USER, USER, CONNECT]),
        ("user:pass@", [(HELLO_USER[0], b"\x05\x00"), CONNECT]),
    ],
)
async def test_the_proxy_resolves_the_name(
    scheme: str, userinfo: str, script: list[tuple[bytes, bytes]]
) -> None:
    proxy, sockets = FakeSocksProxy(script), Sockets()
    async with serving(proxy) as port:
        url = parse_proxy(f"{scheme}://{userinfo}127.0.0.1:{port}")
        sock = await connect_through_socks(url, HOST, 443, settings=sockets.watch())
        assert sockets.all == [sock]
        link = await link_over_socket(sock)
        await carries(link)
        link.abort()
    assert proxy.received == [expected for expected, _ in script]


@pytest.mark.parametrize(
    ("host", "address"),
    [
        ("192.0.2.1", b"\x01\xc0\x00\x02\x01"),
        ("2001:db8::1", b"\x04\x20\x01\x0d\xb8" + bytes(11) + b"\x01"),
    ],
)
async def test_an_address_is_sent_as_an_address(host: str, address: bytes) -> None:
    connect = (b"\x05\x01\x00" + address + b"\x01\xbb", CONNECT[1])
    proxy = FakeSocksProxy([HELLO, connect])
    async with serving(proxy) as port:
        url = parse_proxy(f"socks5://127.0.0.1:{port}")
        sock = await connect_through_socks(url, host, 443, settings=NetworkSettings())
        sock.close()
    assert proxy.received[1] == connect[0]


@pytest.mark.parametrize(
    "bound",
    [BOUND_V4, b"\x04" + bytes(18), b"\x03\x05proxy\x00\x50", b"\x03\x00\x00\x00"],
)
async def test_bytes_after_the_answer_belong_to_the_tunnel(bound: bytes) -> None:
    connect = (CONNECT[0], b"\x05\x00\x00" + bound + b"greeting")
    async with serving(FakeSocksProxy([HELLO, connect])) as port:
        url = parse_proxy(f"socks5://127.0.0.1:{port}")
        sock = await connect_through_socks(url, HOST, 443, settings=NetworkSettings())
        link = await link_over_socket(sock)
        assert await read_exactly(link, 8) == b"greeting"
        link.abort()


@pytest.mark.parametrize(
    ("script", "message"),
    [
        ([(HELLO[0], b"\x05\xff")], " to derp.example.com:443: "),
        ([(HELLO[0], b"\x04\x00")], " to derp.example.com:443: "),
        ([(HELLO[0], b"HTTP/1.1 400")], " to derp.example.com:443: "),
        ([(HELLO[0], b"\x05\x02")], " to derp.example.com:443: "),
        ([HELLO, (CONNECT[0], b"\x05\x05\x00" + BOUND_V4)], " to derp.example.com:443: "),
        ([HELLO, (CONNECT[0], b"\x05\x63\x00" + BOUND_V4)], " to derp.example.com:443: "),
        ([HELLO, (CONNECT[0], b"\x05\x00\x01" + BOUND_V4)], " to derp.example.com:443: "),
        ([HELLO, (CONNECT[0], b"\x05\x00\x00\x09" + bytes(20))], " to derp.example.com:443: "),
        (
            [HELLO, (CONNECT[0], b"\x05\x00\x00\x03\x02\xff\xfe\x00\x50")],
            " to derp.example.com:443: ",
        ),
        ([], ": it closed the connection"),
        ([(HELLO[0], b"\x05")], ": it closed the connection"),
        ([HELLO, (CONNECT[0], b"\x05\x00\x00\x01\x7f")], ": it closed the connection"),
    ],
)
async def test_a_refusal_or_nonsense_closes_the_socket(
    script: list[tuple[bytes, bytes]], message: str
) -> None:
    text, proxy = await fails(FakeSocksProxy(script or [(HELLO[0], b"")], hang_up=True))
    assert text.startswith(proxy + message)


async def test_a_wrong_password_is_not_repeated() -> None:
    script = [HELLO_USER, (USER[0], b"\x01\x01")]
    text, proxy = await fails(FakeSocksProxy(script), userinfo="user:pass@")
    assert text.startswith(f"{proxy} to derp.example.com:443: ")
    assert "://***@127" in text
    assert "pass@" not in text


@pytest.mark.parametrize(
    ("userinfo", "host"),
    [
        ("user:" + "p" * 256 + "@", HOST),
        ("user:p%C3%A4ss@", HOST),
        ("user:pass@", "x" * 64 + ".net"),
        ("user:pass@", ".".join(["x" * 60] * 5)),
    ],
)
async def test_text_that_cannot_be_encoded_in_socks5_is_refused(userinfo: str, host: str) -> None:
    proxy = FakeSocksProxy([HELLO_USER, USER])
    text, name = await fails(proxy, userinfo=userinfo, host=host)
    assert text.startswith(f"{name} to {host}:443: cannot be encoded in SOCKS5: ")


async def test_a_proxy_that_resets_the_connection_is_a_proxy_error() -> None:
    async def reset(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readexactly(3)
        at_once = struct.pack("ii", 1, 0)
        writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, at_once)
        writer.transport.abort()

    sockets = Sockets()
    async with serving(reset) as port:
        url = parse_proxy(f"socks5://127.0.0.1:{port}")
        with pytest.raises(ProxyError) as caught:
            await connect_through_socks(url, HOST, 443, settings=sockets.watch())
    assert str(caught.value) == f"SOCKS5 proxy {url.redacted}: Connection reset by peer"
    await sockets.closed()


async def test_a_proxy_that_closes_before_the_greeting_is_a_proxy_error() -> None:
    ours, theirs = socket.socketpair()
    ours.setblocking(False)
    theirs.close()
    stream = _Stream(ours, parse_proxy("socks5://me:secret@p"))
    with pytest.raises(ProxyError) as caught:
        await stream.write(b"\x05\x01\x00")
    assert str(caught.value) == "SOCKS5 proxy socks5://***@p:1080: Broken pipe"
    await stream.close()


async def test_a_proxy_that_refuses_connections_is_named() -> None:
    url = parse_proxy(f"socks5://user:pass@127.0.0.1:{closed_port()}")
    with pytest.raises(DialError) as caught:
        await connect_through_socks(url, HOST, 443, settings=NetworkSettings())
    assert str(caught.value) == (
        f"proxy {url.redacted}: connect to 127.0.0.1:{url.port}: Connection refused"
    )
