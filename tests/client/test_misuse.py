"""Mistakes of a program are refused at once, with an error that names them."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest

from pyderp import (
    Client,
    ClientConfig,
    ConfigError,
    ConnectError,
    DERPMap,
    LocalProtocolError,
    MeshKey,
    NetworkSettings,
    NodePrivate,
    NodePublic,
    Relay,
    RelayConfig,
    UpgradeRejected,
    blocking,
    is_transient,
)
from pyderp.testing import FaultyRelay, RelayThread

from .fakes import DIRECT, PEER, LoginLink, bounded, fake_relay, linked


@pytest.mark.parametrize("dst", ["nodekey:" + "1" * 64, bytes(32), None], ids=["text", "raw", "no"])
async def test_a_destination_that_is_not_a_key_is_refused(dst: Any) -> None:
    async with linked() as (client, links):
        with pytest.raises(TypeError, match=r"want a NodePublic, which NodePublic\.parse"):
            await client.send(dst, b"x")
        with pytest.raises(TypeError, match=r"NodePublic\.parse"):
            await client.send_many(dst, [b"x"])
        assert links.last.words() == []


@pytest.mark.parametrize(
    ("name", "value", "want"),
    [
        ("websocket", "yes", r"want bool \| None"),
        ("websocket", 1, r"want bool \| None"),
        ("is_prober", "no", "want bool"),
        ("mesh_key", "1" * 64, r"want MeshKey \| None"),
        ("tls", True, "want TLSConfig"),
        ("network", "http://proxy", r"want NetworkSettings \| None"),
        ("connect_timeout", "5", r"want int \| float"),
        ("dialer", 3, "want a function or None"),
        ("prefer_ipv6", True, "want a function or None"),
        ("connect_scope", 3.0, "want a function or None"),
    ],
)
def test_a_setting_of_another_type_is_refused(name: str, value: Any, want: str) -> None:
    with pytest.raises(ConfigError, match=f"^{name} is a .*; {want}$"):
        ClientConfig(**{name: value})


KEY = NodePrivate.generate()
URL = "http://127.0.0.1:1/derp"


@pytest.mark.parametrize("make", [Client.for_url, blocking.Client.for_url])
@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        ({"private_key": KEY.to_text()}, r"private_key is a str; want NodePrivate or None: .*load"),
        ({"private_key": bytes(32)}, "private_key is a bytes; want NodePrivate"),
        ({"private_key": KEY.public}, "private_key is a NodePublic; want NodePrivate"),
        ({"private_key": Path("me.key")}, "private_key is a PosixPath; want NodePrivate"),
        ({"config": {}}, "config is a dict; want ClientConfig or None"),
        ({"config": "x"}, "config is a str; want ClientConfig"),
        ({"config": 0}, "config is a int; want ClientConfig"),
        ({"url": URL.encode()}, "url is a bytes; want str"),
        ({"url": None}, "url is a NoneType; want str"),
    ],
)
def test_an_argument_of_another_type_is_refused(
    make: Any, arguments: dict[str, Any], error: str
) -> None:
    with pytest.raises(ConfigError, match=f"^{error}") as caught:
        make(**{"url": URL} | arguments)
    assert KEY.to_text() not in str(caught.value)


@pytest.mark.parametrize("make", [Client.for_region, blocking.Client.for_region])
@pytest.mark.parametrize("region", ["fra", 900, DERPMap(), None])
def test_an_object_that_is_not_a_region_is_refused(make: Any, region: Any) -> None:
    kind = type(region).__name__
    with pytest.raises(ConfigError, match=f"^region is a {kind}; want DERPRegion, as DERPMap.reg"):
        make(region)


async def test_a_function_that_returns_no_region_is_refused() -> None:
    returns: Any = lambda: "fra"  # noqa: E731
    async with Client.for_region(returns) as client:
        with pytest.raises(ConnectError, match="what the function returned is a str") as caught:
            await client.connect()
        assert not is_transient(caught.value)


@pytest.mark.parametrize(
    "peer", ["nodekey:" + "1" * 64, bytes(32), None], ids=["text", "raw", "no"]
)
def test_a_sealed_peer_that_is_not_a_key_is_refused(peer: Any) -> None:
    for client in (Client.for_url(URL), blocking.Client.for_url(URL)):
        with pytest.raises(TypeError, match=r"^the peer is a .*; want a NodePublic"):
            client.sealed(peer)


@pytest.mark.parametrize("seconds", ["3", None, True])
async def test_times_that_are_not_numbers_are_refused(seconds: Any) -> None:
    async with linked() as (client, _):
        with pytest.raises(TypeError, match=r"^within is a .*; want seconds"):
            await client.send(PEER, b"x", reconnect=True, within=seconds)
    if seconds is not None:  # None means no limit
        with pytest.raises(TypeError, match=r"^timeout is a .*; want seconds"):
            blocking.Client.for_url(URL).recv(timeout=seconds)


@pytest.mark.parametrize("parse", [NodePublic.parse, NodePrivate.parse, MeshKey.parse])
@pytest.mark.parametrize("text", [None, b"nodekey:", 3])
def test_parsing_a_key_that_is_not_text_is_refused(parse: Any, text: Any) -> None:
    with pytest.raises(TypeError, match=r"^a key to parse is a .*; want str$"):
        parse(text)


@pytest.mark.parametrize("config", [{}, {"a": 1}, 3, "x", RelayConfig])
def test_a_relay_setting_of_another_type_is_refused(config: Any) -> None:
    for make in (Relay, FaultyRelay, RelayThread):
        with pytest.raises(ConfigError, match=r"^config is a .*; want RelayConfig or None$"):
            make(config)


@pytest.mark.parametrize(("name", "value"), [("tls", "yes"), ("seed", "x"), ("seed", True)])
def test_a_faulty_relay_argument_of_another_type_is_refused(name: str, value: Any) -> None:
    for make in (FaultyRelay, RelayThread):
        with pytest.raises(ConfigError, match=f"^{name} is a .*; want (bool|int)$"):
            make(**{name: value})


def test_use_in_a_second_event_loop_is_refused() -> None:
    """Calls that use or close a connection name its loop; nothing happens."""

    async def opens() -> LoginLink:
        return LoginLink()

    client = Client.over_stream(opens)

    async def leave() -> None:
        async with client:
            pass

    with asyncio.Runner() as first, asyncio.Runner() as second:
        first.run(client.connect())
        calls: list[Callable[[], Coroutine[Any, Any, object]]] = [
            *(client.connect, client.recv, client.ping, client.aclose, client.wait_closed),
            *(lambda: client.send(PEER, b"x"), lambda: client.send_many(PEER, [b"x"])),
            *(lambda: client.send_ping(bytes(8)), lambda: client.send_pong(bytes(8))),
            *(lambda: client.close_peer(PEER), lambda: client.note_preferred(True)),
            *(lambda: client.watch_connection_changes(again=True), leave),
            lambda: client.forward_frames([b"x"]),
        ]
        for call in calls:
            with pytest.raises(LocalProtocolError, match="belongs to the event loop that it first"):
                second.run(call())
            assert client.connected

        async def end() -> None:
            assert client._life.connection is not None
            client._life.connection.link.lose()  # type: ignore[attr-defined]  # of the fake
            await client.aclose()

        first.run(end())


def test_a_client_whose_event_loop_is_closed_can_be_closed() -> None:
    """Nothing is open any more."""

    async def opens() -> LoginLink:
        return LoginLink()

    async def leave(client: Client) -> None:
        async with client:
            assert client.connected

    for end in (Client.aclose, leave):
        client = Client.over_stream(opens)
        asyncio.run(client.connect())
        for call in (client.ping, client.recv):
            with pytest.raises(LocalProtocolError, match="belongs to the event loop"):
                asyncio.run(call())
        asyncio.run(end(client))
        assert client.connection_state == "closed"
        asyncio.run(client.aclose())


async def test_a_url_without_derp_says_so() -> None:
    async with Relay() as relay, bounded():
        url = relay.url.removesuffix("/derp") + "/nothing?x=1"
        config = ClientConfig(network=NetworkSettings(), websocket=False)
        async with Client.for_url(url, config=config) as client:
            with pytest.raises(ConnectError, match="path is /nothing; that of relays is /derp"):
                await client.connect()


async def test_a_web_page_in_an_error_is_cut_to_its_words() -> None:
    page = "<html><head><title>x</title></head><body><h1>Not here</h1>" + "<p>and so on" * 99

    config = ClientConfig(network=DIRECT, websocket=False)
    async with fake_relay() as relay, Client.for_url(relay.url, config=config) as client:
        connecting = asyncio.create_task(client.connect())
        peer = await relay.accept()
        await peer.head()
        peer.say(f"HTTP/1.1 404 No\r\nContent-Length: {len(page)}\r\n\r\n{page}".encode())
        with pytest.raises(ConnectError) as caught:
            await connecting
        (cause,) = caught.value.attempts
        assert isinstance(cause, UpgradeRejected)
        assert str(cause).startswith("upgrade refused: 404 No: Not here and so on and so")
        assert len(str(cause)) < 250
        assert cause.body == page
