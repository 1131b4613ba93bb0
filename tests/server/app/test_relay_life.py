"""How a relay starts and stops, on loopback sockets and both event loops."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import socket
from collections.abc import Callable

import pytest

import pyderp
from pyderp import ManualTLS, RelayConfig
from pyderp.errors import ConfigError, LocalProtocolError
from pyderp.keys import NodePrivate, NodePublic
from pyderp.wire.messages import Restarting
from tests.server.dial import Client, Via, clients, connect, drained, hang_up, open_stream, passes
from tests.server.ways import KINDS, NAME, way


async def test_a_relay_has_addresses_and_a_key() -> None:
    key = NodePrivate.generate()
    async with pyderp.Relay(RelayConfig(private_key=key)) as relay:
        host, port = relay.address
        assert host == "127.0.0.1"
        assert relay.url == f"http://127.0.0.1:{port}/derp"
        assert relay.public_key == key.public
        assert relay.http_address is None
        assert relay.map_node is None
        async with clients(relay, 1) as (client,):
            assert client.session.server_key == key.public
        relay.reload()


def test_without_a_private_key_each_relay_generates_one() -> None:
    assert pyderp.Relay().public_key != pyderp.Relay().public_key


@pytest.mark.parametrize(
    "read_attribute",
    [lambda r: r.address, lambda r: r.url, lambda r: r.counters, lambda r: r.clients],
)
def test_address_counters_and_clients_need_a_started_relay(
    read_attribute: Callable[[pyderp.Relay], object],
) -> None:
    with pytest.raises(LocalProtocolError, match="not started"):
        read_attribute(pyderp.Relay())


async def test_a_relay_can_be_started_only_once() -> None:
    async with pyderp.Relay() as relay:
        with pytest.raises(LocalProtocolError, match="started or closed"):
            await relay.start()
    with pytest.raises(LocalProtocolError, match="started or closed"):
        await relay.start()


async def test_a_port_in_use_is_a_config_error_and_no_listener_stays_open(tls: ManualTLS) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken, socket.socket() as probe:
        side = ManualTLS(certdir=tls.certdir, hostname=NAME, http_port=taken.getsockname()[1])
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
        probe.close()
        relay = pyderp.Relay(RelayConfig(address=f"127.0.0.1:{port}", tls=side))
        with pytest.raises(ConfigError, match="the port is taken"):
            await relay.start()
        socket.create_server(("127.0.0.1", port)).close()
        await relay.aclose(drain=0)


async def test_closing_a_relay_that_never_started_is_harmless() -> None:
    await pyderp.Relay().aclose(drain=0)


async def test_closing_twice_is_harmless() -> None:
    async with pyderp.Relay() as relay, clients(relay, 1) as (client,):
        await relay.aclose(drain=0.05)
        await client.closed()
        await relay.aclose(drain=0)


@pytest.mark.parametrize("kind", KINDS)
async def test_leaving_the_context_closes_all_connections_and_frees_the_port(
    kind: str, tls: ManualTLS
) -> None:
    config, via = way(kind, tls)

    async with pyderp.Relay(config) as relay:
        opened = [await connect(relay.address, via=via) for _ in range(3)]
        silent = await open_stream(relay.address)
        address = relay.address
        core = relay._running()
    assert not core.protocols
    for client in opened:
        restarting = await client.wait_for(Restarting)
        assert restarting.reconnect_in == 0
        await client.closed()
        await client.aclose()
    assert await drained(silent[0]) == b""
    await hang_up(silent[1])
    with pytest.raises(ConnectionRefusedError):
        await open_stream(address)


@pytest.mark.parametrize("turns", range(6))
async def test_connections_that_arrive_while_closing_are_closed(turns: int) -> None:
    relay = pyderp.Relay()
    await relay.start()
    # The kernel has accepted these; the loop has not run since.
    waiting = [socket.create_connection(relay.address, timeout=5) for _ in range(20)]
    for _ in range(turns):
        await asyncio.sleep(0)
    await relay.aclose(drain=0)
    for _ in range(5):
        await asyncio.sleep(0)
    assert not relay._running().protocols
    gc.collect()
    for sock in waiting:
        with contextlib.suppress(ConnectionResetError):
            assert sock.recv(1) == b""
        sock.close()


async def test_a_client_that_reads_nothing_does_not_outlive_the_relay() -> None:
    async with pyderp.Relay() as relay, clients(relay, 1) as (sender,):
        stalled = await connect(relay.address, via=Via(receive_buffer=4096))
        stalled.writer.transport.pause_reading()  # type: ignore[attr-defined]
        core = relay._running()
        while not core.stalled:
            sender.send(stalled, bytes(60000))
            await sender.ping()
        await relay.aclose(drain=0.1)
        assert not core.protocols
        assert not core.stalled
        await stalled.aclose()


@pytest.mark.parametrize("drain", [3600.0, 1e10, float("inf")])
async def test_cancelling_a_drain_closes_the_rest_at_once(drain: float) -> None:
    relay = pyderp.Relay()
    await relay.start()
    async with clients(relay, 5) as opened:
        closing = asyncio.ensure_future(relay.aclose(drain=drain))
        for client in opened:
            await client.wait_for(Restarting)
        closing.cancel()
        with pytest.raises(asyncio.CancelledError):
            await closing
        for client in opened:
            await client.closed()


async def test_two_relays_on_one_loop_share_nothing() -> None:
    async with pyderp.Relay() as one, pyderp.Relay() as two:
        first: Client = await connect(one.address)
        second: Client = await connect(two.address)
        first.send(second, b"lost")
        await first.ping()
        assert one.clients == two.clients == 1
        assert two.counters.packets_received == 0
        await first.aclose()
        await second.aclose()


async def test_log_lines_at_info_do_not_name_clients(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, logger="pyderp")
    keys: list[NodePublic] = []

    async with pyderp.Relay() as relay, clients(relay) as (first, second):
        await passes(first, second)
        keys.extend((first.key, second.key))
    for key in keys:
        assert key.short() not in caplog.text


async def test_reload_reads_certificate_files_that_look_unchanged(
    tls: ManualTLS, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, logger="pyderp")

    async with pyderp.Relay(RelayConfig(tls=tls)) as relay:
        relay.reload()
    assert "reloaded" in caplog.text


async def test_a_stopped_relay_no_longer_checks_its_certificate(tls: ManualTLS) -> None:
    async with pyderp.Relay(RelayConfig(tls=tls)) as relay:
        assert relay._certificate_timer is not None
        assert not relay._certificate_timer.cancelled()
    assert relay._certificate_timer.cancelled()


async def test_a_relay_that_is_closed_while_it_starts_serves_no_client() -> None:
    relay = pyderp.Relay()
    starting = asyncio.ensure_future(relay.start())
    await asyncio.sleep(0)
    await relay.aclose(drain=0)
    await asyncio.gather(starting, return_exceptions=True)
    if starting.exception() is None:
        with pytest.raises(OSError):
            await open_stream(relay.address)

    early = pyderp.Relay()
    await early.aclose(drain=0)
    with pytest.raises(LocalProtocolError, match="started or closed"):
        await early.start()
