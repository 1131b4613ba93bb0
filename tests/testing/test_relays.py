"""Ready relays and clients: in this event loop, and in a thread."""

from __future__ import annotations

import asyncio
import socket
import ssl
import threading
import urllib.error
import urllib.request
from collections.abc import Callable, Coroutine
from http import HTTPStatus
from pathlib import Path
from typing import Any

import pytest

from pyderp import (
    ClientConfig,
    ConnectError,
    ManualTLS,
    MeshKey,
    NetworkSettings,
    NodePublic,
    PeerPresent,
    ReceivedPacket,
    RelayConfig,
    TLSConfig,
    blocking,
)
from pyderp.errors import ConfigError, LocalProtocolError
from pyderp.testing import FaultyRelay, RelayThread, client_pair, relay
from pyderp.wire.frames import pack_health
from pyderp.wire.messages import Health, Restarting
from tests.server.dial import Client, connect, hang_up


async def test_a_relay_serves_with_its_settings(tmp_path: Path) -> None:
    """After the block it is closed."""
    async with relay() as running:
        assert running.url.startswith("http://127.0.0.1:")
        url = running.url
    with pytest.raises(ConnectError):
        async with client_pair(url):
            pass
    config = RelayConfig(tls=ManualTLS(certdir=tmp_path, hostname="127.0.0.1"))
    async with relay(config) as running:
        assert running.url.startswith("https://127.0.0.1:")


@pytest.mark.parametrize("faulty", [False, True])
@pytest.mark.parametrize("by_url", [False, True])
async def test_a_pair_can_send_at_once(faulty: bool, by_url: bool) -> None:
    """The first message of each is the other's packet; both are closed at the end."""
    async with FaultyRelay() if faulty else relay() as running:
        async with client_pair(running.url if by_url else running) as (a, b):
            await a.send(b.self_public_key, b"to b")
            await b.send(a.self_public_key, b"to a")
            assert await b.recv() == ReceivedPacket(a.self_public_key, b"to b")
            assert await a.recv() == ReceivedPacket(b.self_public_key, b"to a")
        for client in (a, b):
            assert client.connection_state == "closed"


async def test_a_pair_connects_over_tls() -> None:
    """The pin of a relay with a self-signed certificate is known."""
    async with FaultyRelay(tls=True) as running, client_pair(running) as (a, b):
        await a.send(b.self_public_key, b"to b")
        assert await b.recv() == ReceivedPacket(a.self_public_key, b"to b")
        assert a.tls_state is not None


def serves(url: str, context: ssl.SSLContext) -> bool:
    """Whether a program that takes a URL, and no pin, gets an answer."""
    with urllib.request.urlopen(url + "/probe", context=context, timeout=10) as answer:
        return bool(answer.status == HTTPStatus.OK)


def test_programs_without_pins_can_trust_the_relay() -> None:
    """By file or by context, for its address and for localhost; also after a restart."""
    with RelayThread(tls=True) as relay:
        by_name = relay.url.replace("127.0.0.1", "localhost")
        for _ in range(2):
            assert serves(relay.url, relay.ssl_context())
            assert serves(by_name, ssl.create_default_context(cafile=relay.ca_file))
            relay.restart()
        with pytest.raises(urllib.error.URLError, match="CERTIFICATE_VERIFY_FAILED"):
            serves(relay.url, ssl.create_default_context())
        tls = TLSConfig(system_roots=False, builtin_roots=False, extra_roots=(relay.ca_file,))
        config = ClientConfig(network=NetworkSettings(), tls=tls)
        with blocking.Client.for_url(relay.url, config=config) as client:
            client.connect()
        folder = relay.ca_file.parent
    assert not folder.exists()


def test_two_relays_have_different_authorities() -> None:
    with RelayThread(tls=True) as relay, RelayThread(tls=True) as other:
        with pytest.raises(urllib.error.URLError, match="CERTIFICATE_VERIFY_FAILED"):
            serves(relay.url, other.ssl_context())
        assert len(relay.ssl_context().get_ca_certs()) == 1


def test_without_tls_there_is_no_authority() -> None:
    with pytest.raises(LocalProtocolError, match="not started"):
        _ = FaultyRelay(tls=True).ca_file
    with RelayThread() as relay:
        for ask in (lambda: relay.ca_file, relay.ssl_context):
            with pytest.raises(LocalProtocolError, match="has no tls=True"):
                ask()


def test_a_thread_that_does_not_answer_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """The error has a text, as that of the called function has."""
    monkeypatch.setattr("pyderp.testing.relays._BOUND", 0.05)
    blocked = threading.Event()
    with RelayThread() as relay:
        try:
            with pytest.raises(TimeoutError, match="the relay's thread did not answer"):
                relay.call(lambda _: blocked.wait(10))
        finally:
            monkeypatch.undo()
            blocked.set()


async def test_a_pair_has_its_settings() -> None:
    """Both log in with the mesh key, so both may watch."""
    key = MeshKey.parse("0123456789abcdef" * 4)
    config = ClientConfig(network=NetworkSettings(), mesh_key=key, watch_connection_changes=True)

    async with (
        relay(RelayConfig(mesh_key=key)) as running,
        client_pair(running, config=config) as pair,
    ):
        for client in pair:
            present: set[NodePublic] = set()
            while len(present) < 2:
                message = await client.recv()
                assert isinstance(message, PeerPresent)
                present.add(message.peer)
            assert present == {each.self_public_key for each in pair}


Scenario = Callable[[RelayThread, Client], Coroutine[Any, Any, None]]


async def latency(relay: RelayThread, client: Client) -> None:
    relay.latency, relay.jitter = 0.03, 0.01
    begin = asyncio.get_running_loop().time()
    await client.ping()
    assert asyncio.get_running_loop().time() - begin > 0.05
    assert (relay.latency, relay.jitter) == (0.03, 0.01)


async def loss(relay: RelayThread, client: Client) -> None:
    relay.loss = 1
    client.send(client, b"lost")
    await client.ping()
    assert relay.loss == relay.counters.dropped == 1


async def drop_next(relay: RelayThread, client: Client) -> None:
    relay.drop_next(2)
    for packet in (b"1", b"2", b"3"):
        client.send(client, packet)
    assert await client.packet() == b"3"
    assert relay.relay_counters.packets_sent == 1


async def cut(relay: RelayThread, client: Client) -> None:
    assert relay.cut(reset=True, client=client.key) == 1
    with pytest.raises(ConnectionResetError):
        await client.reader.read(1)


async def cut_after(relay: RelayThread, client: Client) -> None:
    relay.cut_after(3)
    client.send(client, b"1")
    assert await client.reader.read() == b"\x05\0\0"


async def freeze(relay: RelayThread, client: Client) -> None:
    relay.freeze()
    client.send(client, b"late")
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(client.receive(), 0.05)
    relay.thaw()
    assert await client.packet() == b"late"


async def refuse(relay: RelayThread, client: Client) -> None:
    relay.refuse()
    with pytest.raises(ConnectionRefusedError):
        await connect(relay.address)
    relay.accept()
    await (await connect(relay.address)).aclose()


async def restart(relay: RelayThread, client: Client) -> None:
    key = relay.public_key
    relay.restart(new_key=True)
    await client.wait_for(Restarting)
    assert relay.public_key != key
    relay.wait_for_clients(0)


async def wrong_key(relay: RelayThread, client: Client) -> None:
    relay.wrong_key()
    with pytest.raises(Exception, match="naclbox"):
        await connect(relay.address)


async def http_status(relay: RelayThread, client: Client) -> None:
    relay.http_status(429)
    with pytest.raises(Exception, match="429"):
        await connect(relay.address)


async def junk(relay: RelayThread, client: Client) -> None:
    relay.junk("unknown")
    assert relay.inject(pack_health("sick")) == 1
    assert await client.receive() == Health("sick")


@pytest.mark.parametrize(
    "scenario",
    [
        latency,
        loss,
        drop_next,
        cut,
        cut_after,
        freeze,
        refuse,
        restart,
        wrong_key,
        http_status,
        junk,
    ],
)
def test_faults_from_another_thread(scenario: Scenario) -> None:
    """Each method has had its effect when it returns."""

    async def main(relay: RelayThread) -> None:
        client = await connect(relay.address)
        try:
            await scenario(relay, client)
        finally:
            await hang_up(client.writer)

    with RelayThread(seed=1) as relay:
        asyncio.run(main(relay))


def test_a_thread_has_every_fault() -> None:
    """The methods of `FaultyRelay`, with the same arguments."""
    ours = {name for name in vars(RelayThread) if not name.startswith("_")}
    theirs = {name for name in vars(FaultyRelay) if not name.startswith("_")}
    assert theirs - ours == {"aclose", "connections", "relay"}


def test_a_thread_has_the_attributes_of_a_relay() -> None:
    """Address, URL, region and key are known from the start; it starts once."""
    with RelayThread(tls=True) as relay:
        assert relay.url == f"https://127.0.0.1:{relay.address[1]}/derp"
        assert relay.region.nodes[0].derp_port == relay.address[1]
        assert relay.call(lambda faulty: faulty.public_key) == relay.public_key
        assert relay.call(lambda faulty: faulty.connections) == 0
        with pytest.raises(LocalProtocolError):
            relay.start()


def test_waiting_for_clients_ends_when_they_are_logged_in() -> None:
    """If they are not in time, the error has their number."""

    async def main(relay: RelayThread) -> None:
        client = await connect(relay.address)
        relay.wait_for_clients(1)
        with pytest.raises(TimeoutError, match=r"1 client logged in after \S+ s, not 2"):
            relay.wait_for_clients(2, timeout=0.01)
        await client.aclose()

    with RelayThread() as relay:
        relay.wait_for_clients(0)
        asyncio.run(main(relay))


def test_the_thread_ends() -> None:
    """The port is free; a second close does nothing, and other calls raise."""
    before = threading.active_count()
    with RelayThread() as relay:
        assert threading.active_count() == before + 1
        address = relay.address
    assert threading.active_count() == before
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(address)
    relay.close()
    with pytest.raises(LocalProtocolError, match="not started"):
        relay.cut()


def test_a_failed_start_leaves_no_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    """The caller gets the error, and the thread has ended."""

    async def fails(_: object) -> None:
        raise ConfigError("no")

    monkeypatch.setattr("pyderp.server.app.relay.Relay.start", fails)
    before = threading.active_count()
    with pytest.raises(ConfigError, match="no"):
        RelayThread().start()
    assert threading.active_count() == before
