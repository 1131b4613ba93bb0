"""A relay that reads the login and closes: what is raised, and when the client tries again."""

from __future__ import annotations

import asyncio

import pytest

from pyderp import (
    AdmissionConfig,
    Client,
    ClientConfig,
    ConnectionClosed,
    LoginRefused,
    NetworkSettings,
    NodePrivate,
    RelayConfig,
    ServerInfo,
    is_transient,
)
from pyderp.client import refusals
from pyderp.testing import FaultyRelay
from pyderp.wire.frames import pack_server_key
from pyderp.wire.upgrade import switching_protocols
from tests.waiting import until

from .fakes import DIRECT, RELAY, Links, bounded, connects, fake_relay, linked, packet_frame

DIRECT_CONFIG = ClientConfig(network=DIRECT)
GREETING = switching_protocols(RELAY.public) + pack_server_key(RELAY.public)
PEER = NodePrivate.generate().public
TEXT = "the relay took the login and closed the connection: it may not admit this key"


@pytest.mark.parametrize("tls", [False, True], ids=["plain", "tls"])
@pytest.mark.parametrize("websocket", [False, True], ids=["upgrade", "websocket"])
async def test_a_relay_that_does_not_admit_the_key_refuses_the_login(
    websocket: bool, tls: bool
) -> None:
    """Receivers and senders raise `LoginRefused`, over any kind of stream."""
    denying = RelayConfig(admission=AdmissionConfig(decide=lambda key, address: False))
    network = NetworkSettings(use_derp_http=not tls)
    config = ClientConfig(network=network, websocket=websocket)
    async with (
        bounded(),
        FaultyRelay(denying, tls=tls) as relay,
        Client.for_region(relay.region, config=config) as client,
    ):
        with pytest.raises(LoginRefused, match=f"^derp.Recv: {TEXT}"):
            await client.recv()
        with pytest.raises(LoginRefused, match=TEXT):
            await anext(client.messages())
        assert client.stats.disconnects == {"refused": 2}


@pytest.mark.parametrize("reset", [False, True], ids=["closed", "reset"])
async def test_an_end_before_server_info_is_a_refusal(reset: bool) -> None:
    async with (
        bounded(),
        fake_relay() as relay,
        Client.for_url(relay.url, config=DIRECT_CONFIG) as client,
    ):
        connecting = asyncio.create_task(client.connect())
        peer = await relay.accept()
        await peer.head()
        peer.say(GREETING)
        await peer.client_info()
        await connecting
        peer.cut() if reset else peer.hang_up()
        with pytest.raises(LoginRefused, match=TEXT):
            await client.recv()


async def test_an_end_after_server_info_does_not_count_as_a_refusal() -> None:
    async with (
        bounded(),
        fake_relay() as relay,
        Client.for_url(relay.url, config=DIRECT_CONFIG) as client,
    ):
        peer = await connects(client, relay)
        peer.hang_up()
        assert isinstance(await client.recv(), ServerInfo)
        with pytest.raises(ConnectionClosed, match=r"^derp\.Recv: EOF$") as caught:
            await client.recv()
        assert not isinstance(caught.value, LoginRefused)


async def test_the_iterator_goes_on_if_the_relay_admitted_the_key_before() -> None:
    """A relay whose source of admission is not back yet refuses for a while."""
    async with linked() as (client, links):
        received = asyncio.create_task(anext(client.messages()))
        links.admits = False
        await asyncio.sleep(0)
        links.last.lose()
        while len(links.all) < 3:
            await asyncio.sleep(0.001)
            if links.last.receiver is not None:
                links.last.lose()
        assert not received.done()
        received.cancel()


@pytest.mark.parametrize("error", [None, ConnectionResetError("reset")], ids=["EOF", "reset"])
@pytest.mark.parametrize("sends", [False, True], ids=["iterator", "send"])
async def test_a_relay_that_stops_just_after_the_first_login_is_waited_for(
    sends: bool, error: Exception | None
) -> None:
    """One refusal is no proof: a program that has just started waits for the relay."""
    links = Links()
    links.admits = False
    client = links.client()
    async with bounded():
        await client.connect()
        links.last.lose(error)
        links.error = ConnectionRefusedError("no relay")
        call = client.send(PEER, b"x", reconnect=True) if sends else anext(client.messages())
        calling = asyncio.ensure_future(call)
        await until(lambda: client.stats.failed_connects > 1 or calling.done())
        assert not calling.done()
        links.error, links.admits = None, True
        await until(lambda: client.connected)
        links.last.feed(packet_frame(b"y"))
        await calling
        closing = asyncio.create_task(client.aclose())
        await asyncio.sleep(0)
        links.finish()
        await closing


async def send_on(client: Client) -> None:
    """Send until it raises; the first packet after each login leaves, even if it is lost."""
    while True:
        await client.send(PEER, b"x", reconnect=True)
        await until(lambda: not client.connected)


@pytest.mark.parametrize("sends", [False, True], ids=["iterator", "send"])
async def test_the_second_refusal_in_a_row_is_raised(sends: bool) -> None:
    denying = RelayConfig(admission=AdmissionConfig(decide=lambda key, address: False))
    config = ClientConfig(network=NetworkSettings(use_derp_http=True))
    async with (
        bounded(),
        FaultyRelay(denying) as relay,
        Client.for_region(relay.region, config=config) as client,
    ):
        with pytest.raises(LoginRefused, match="or was stopping"):
            await (send_on(client) if sends else anext(client.messages()))
        assert client.stats.disconnects == {"refused": 2}


async def be_refused_twice(client: Client, links: Links) -> None:
    """From the second refusal on the client waits before it connects again."""
    for _ in range(2):
        await client.connect()
        links.last.lose()
        with pytest.raises(LoginRefused):
            await client.send(PEER, b"x")


async def test_a_send_that_is_held_back_reports_the_refusal(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Not only its deadline."""
    monkeypatch.setattr(refusals, "_UNIT", 1e6)

    links = Links()
    links.admits = False
    client = links.client()
    async with bounded():
        await be_refused_twice(client, links)
        with pytest.raises(LoginRefused, match=TEXT):
            await client.send(PEER, b"x", reconnect=True, within=0.05)
        assert len(links.all) == 2
        await client.aclose()


async def test_logins_after_refusals_are_held_back(monkeypatch: pytest.MonkeyPatch) -> None:
    """The client keeps the pauses, whichever call connects and however often."""
    monkeypatch.setattr(refusals, "_UNIT", 1e6)

    links = Links()
    links.admits = False
    client = links.client()
    async with bounded():
        await be_refused_twice(client, links)
        waiting = [asyncio.create_task(client.send(PEER, b"x")) for _ in range(3)]
        waiting.append(asyncio.create_task(client.connect()))
        await asyncio.sleep(0.05)
        assert len(links.all) == 2
        await client.aclose()
        done, _ = await asyncio.wait(waiting)
        assert all(isinstance(task.exception(), ConnectionClosed) for task in done)


async def test_an_admitted_login_ends_the_pauses() -> None:
    links = Links()
    links.admits = False
    client = links.client()
    async with bounded():
        for admits in (False, True, False):
            links.admits = admits
            await client.connect()
            links.last.lose()
            with pytest.raises(ConnectionClosed):
                await client.recv()
        assert client._life.refusals._count == 1
        await client.aclose()


def test_a_refused_login_does_not_look_transient() -> None:
    assert not is_transient(LoginRefused(TEXT))
