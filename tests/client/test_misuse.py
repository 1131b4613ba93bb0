"""What a program does wrong is refused at once, and the error names it."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from pyderp import (
    Client,
    ClientConfig,
    ConfigError,
    ConnectError,
    LocalProtocolError,
    NetworkSettings,
    Relay,
    UpgradeRejected,
)
from tests.conftest import Run

from .fakes import DIRECT, PEER, LoginLink, bounded, fake_relay, linked


@pytest.mark.parametrize("dst", ["nodekey:" + "1" * 64, bytes(32), None], ids=["text", "raw", "no"])
def test_a_destination_that_is_no_key(run: Run, dst: Any) -> None:
    async def main() -> None:
        async with linked() as (client, links):
            with pytest.raises(TypeError, match=r"want a NodePublic, which NodePublic\.parse"):
                await client.send(dst, b"x")
            with pytest.raises(TypeError, match=r"NodePublic\.parse"):
                await client.send_many(dst, [b"x"])
            assert links.last.words() == []

    run(main())


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
    ],
)
def test_a_setting_of_another_type(name: str, value: Any, want: str) -> None:
    with pytest.raises(ConfigError, match=f"^{name} is a .*; {want}$"):
        ClientConfig(**{name: value})


def test_a_second_event_loop() -> None:
    """Connecting, sending and receiving all say whose loop it is."""

    async def opens() -> LoginLink:
        return LoginLink()

    client = Client.over_stream(opens)
    with asyncio.Runner() as first, asyncio.Runner() as second:
        first.run(client.connect())
        for call in (client.connect, client.recv, lambda: client.send(PEER, b"x")):
            with pytest.raises(LocalProtocolError, match="belongs to the event loop that it first"):
                second.run(call())

        async def end() -> None:
            assert client._life.connection is not None
            client._life.connection.link.lose()  # type: ignore[attr-defined]  # a fake one
            await client.aclose()

        first.run(end())


def test_a_url_without_derp_says_so(run: Run) -> None:
    async def main() -> None:
        async with Relay() as relay, bounded():
            url = relay.url.removesuffix("/derp") + "/nothing?x=1"
            config = ClientConfig(network=NetworkSettings(), websocket=False)
            async with Client.for_url(url, config=config) as client:
                with pytest.raises(ConnectError, match="path is /nothing; that of relays is /derp"):
                    await client.connect()

    run(main())


def test_a_web_page_in_an_error_is_cut_to_its_words(run: Run) -> None:
    page = "<html><head><title>x</title></head><body><h1>Not here</h1>" + "<p>and so on" * 99

    async def main() -> None:
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

    run(main())
