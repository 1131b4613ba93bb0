"""Whole relays on loopback sockets, on both event loops."""

from __future__ import annotations

import asyncio
import ssl
import threading
from pathlib import Path
from typing import Any

import pytest

import pyderp
from pyderp import ManualTLS, RelayConfig
from pyderp.keys import MeshKey
from pyderp.server.app import relay as relay_module
from pyderp.wire.messages import PeerGone, PeerPresent
from pyderp.wire.metacert import scan_chain_untrusted
from tests.server.certificates import write_pair
from tests.server.dial import (
    Via,
    clients,
    connect,
    drained,
    hang_up,
    open_stream,
    passes,
    until_gone,
)
from tests.server.ways import KINDS, NAME, over_tls, way


async def ask(address: tuple[str, int], request: bytes, via: Via | None = None) -> bytes:
    """Return all that a relay answers until it closes the connection."""
    reader, writer = await open_stream(address, via)
    try:
        writer.write(request)
        return await drained(reader)
    finally:
        await hang_up(writer)


def get(path: str, *headers: str) -> bytes:
    lines = [f"GET {path} HTTP/1.1", f"Host: {NAME}", "Connection: close", *headers, "", ""]
    return "\r\n".join(lines).encode()


@pytest.mark.parametrize("kind", KINDS)
async def test_packets_of_all_sizes_pass_both_ways(kind: str, tls: ManualTLS) -> None:
    config, via = way(kind, tls)

    async with pyderp.Relay(config) as relay, clients(relay, via=via) as (first, second):
        for size in (0, 1, 1200, 40000, 65536):
            packet = bytes(range(256)) * 256
            first.send(second, packet[:size])
            assert await second.packet() == packet[:size]
            second.send(first, packet[:size])
            assert await first.packet() == packet[:size]
        assert relay.clients == 2
        assert relay.counters.packets_sent == 10


@pytest.mark.parametrize("kind", KINDS)
async def test_connections_have_no_tasks_and_no_threads(kind: str, tls: ManualTLS) -> None:
    """A connection, idle or after traffic, costs no task and no thread."""
    config, via = way(kind, tls)

    def running() -> tuple[set[asyncio.Task[Any]], int]:
        return asyncio.all_tasks(), threading.active_count()

    async with pyderp.Relay(config) as relay:
        async with clients(relay, 1, via=via):
            before = running()
        async with clients(relay, 20, via=via) as opened:
            assert running() == before
            for client in opened:
                await passes(client, client)
            assert running() == before
        await until_gone(relay)
        assert running() == before


@pytest.mark.parametrize("kind", KINDS)
async def test_a_burst_arrives_in_order(kind: str, tls: ManualTLS) -> None:
    config, via = way(kind, tls)

    async with pyderp.Relay(config) as relay, clients(relay, via=via) as (first, second):
        for start in range(0, 500, 25):
            for i in range(start, start + 25):
                first.session.send_packet(second.key, i.to_bytes(2, "big") * 300)
            first.write()
            for i in range(start, start + 25):
                assert (await second.packet())[:2] == i.to_bytes(2, "big")


@pytest.mark.parametrize("encrypted", [False, True])
async def test_fast_start_saves_a_round_trip(tls: ManualTLS, encrypted: bool) -> None:
    config = RelayConfig(tls=tls if encrypted else None)
    async with pyderp.Relay(config) as relay:
        via = over_tls() if encrypted else Via()
        via.fast_start = relay.public_key
        async with clients(relay, via=via) as (first, second):
            await passes(first, second)


@pytest.mark.parametrize("kind", KINDS)
async def test_clients_that_leave_leave_no_state_behind(kind: str, tls: ManualTLS) -> None:
    config, via = way(kind, tls)

    async with pyderp.Relay(config) as relay:
        core = relay._running()
        async with clients(relay, via=via) as (first, second):
            await passes(first, second)
            await first.aclose()
            gone = await second.wait_for(PeerGone)
            assert gone.peer == first.key
        await until_gone(relay)
        assert relay.clients == 0
        assert not core.timers
        assert not core.stalled
        assert not core.router.registry.active
        assert not core.router.registry.sent_to


async def test_a_half_closed_connection_is_closed() -> None:
    async with pyderp.Relay() as relay, clients(relay, 1) as (client,):
        client.writer.write_eof()
        await client.closed()
        await until_gone(relay)


async def test_http_requests_are_answered_on_the_derp_port() -> None:
    async with pyderp.Relay() as relay:
        answer = await ask(relay.address, get("/derp/probe"))
        assert answer.startswith(b"HTTP/1.1 200 OK\r\n")
        assert b"access-control-allow-origin: *" in answer.lower()
        answer = await ask(relay.address, get("/nowhere"))
        assert answer.startswith(b"HTTP/1.1 404 Not Found\r\n")
        answer = await ask(relay.address, get("/bootstrap-dns").replace(b"close", b"keep-alive"))
        assert answer.startswith(b"HTTP/1.1 200 OK\r\n")
        assert answer.endswith(b"\r\n\r\n")


async def test_the_configured_mesh_key_grants_mesh_rights() -> None:
    key = MeshKey.parse("ab" * 32)
    async with pyderp.Relay(RelayConfig(mesh_key=key)) as relay, clients(relay) as (plain, _):
        mesh = await connect(relay.address, mesh_key=key)
        mesh.session.watch_conns()
        mesh.write()
        present = {(await mesh.wait_for(PeerPresent)).peer for _ in range(3)}
        assert plain.key in present
        mesh.session.close_peer(plain.key)
        mesh.write()
        await plain.closed()
        await mesh.aclose()


async def test_a_dual_stack_relay_reports_ipv4_clients_by_ipv4_address() -> None:
    key = MeshKey.parse("ab" * 32)
    config = RelayConfig(address=":0", mesh_key=key)
    async with pyderp.Relay(config) as relay:
        assert relay.url == f"http://127.0.0.1:{relay.address[1]}/derp"
        mesh = await connect(relay.address, mesh_key=key)
        six = await connect(("::1", relay.address[1]))
        mesh.session.watch_conns()
        mesh.write()
        seen = {(await mesh.wait_for(PeerPresent)).address for _ in range(2)}
        assert {str(address) for address in seen} == {"127.0.0.1", "::1"}
        await mesh.aclose()
        await six.aclose()


# TLS


async def test_the_chain_ends_with_the_meta_certificate(tls: ManualTLS) -> None:
    async with pyderp.Relay(RelayConfig(tls=tls)) as relay:
        _, writer = await open_stream(relay.address, over_tls())
        under = writer.get_extra_info("ssl_object")._sslobj
        chain = [ssl.PEM_cert_to_DER_cert(c.public_bytes()) for c in under.get_unverified_chain()]
        assert len(chain) == 2
        assert scan_chain_untrusted(chain[-1:]) == (relay.public_key, 2)
        assert scan_chain_untrusted(chain[:-1]) is None
        await hang_up(writer)


async def test_an_address_gets_a_pinned_certificate(tmp_path: Path) -> None:
    config = RelayConfig(tls=ManualTLS(certdir=tmp_path, hostname="127.0.0.1"))
    async with pyderp.Relay(config) as relay:
        assert relay.url == f"https://127.0.0.1:{relay.address[1]}/derp"
        assert relay.map_node is not None
        assert relay.map_node.cert_name.startswith("sha256-raw:")
        trusted = ssl.create_default_context(cafile=str(tmp_path / "127.0.0.1.crt"))
        via = Via(tls=trusted, server_name="127.0.0.1")
        async with clients(relay, via=via) as (first, second):
            await passes(first, second)


async def test_a_wrong_server_name_is_refused_and_leaves_no_state(tls: ManualTLS) -> None:
    async with pyderp.Relay(RelayConfig(tls=tls)) as relay:
        via = over_tls()
        via.server_name = "other.example.com"
        with pytest.raises(ssl.SSLError):
            await connect(relay.address, via=via)
        await until_gone(relay)
        assert relay.counters.protocol_errors == 1


async def test_plain_http_beside_tls_redirects_and_serves_no_derp(tmp_path: Path) -> None:
    write_pair(tmp_path, NAME)
    config = RelayConfig(tls=ManualTLS(certdir=tmp_path, hostname=NAME, http_port=0))
    async with pyderp.Relay(config) as relay:
        assert relay.http_address is not None
        answer = await ask(relay.http_address, get("/derp?x=1", "Upgrade: DERP"))
        assert answer.startswith(b"HTTP/1.1 302 Found\r\n")
        assert f"Location: https://{NAME}/derp?x=1\r\n".encode() in answer
        answer = await ask(relay.http_address, get("/generate_204"))
        assert answer.startswith(b"HTTP/1.1 204 No Content\r\n")
        async with clients(relay, via=over_tls()) as (first, second):
            await passes(first, second)


async def leaf(relay: pyderp.Relay) -> bytes:
    """Return the certificate that a new client is shown."""
    _, writer = await open_stream(relay.address, over_tls())
    shown: bytes = writer.get_extra_info("ssl_object").getpeercert(binary_form=True)
    await hang_up(writer)
    return shown


async def test_reload_serves_the_new_certificate_and_keeps_connections(tls: ManualTLS) -> None:
    async with (
        pyderp.Relay(RelayConfig(tls=tls)) as relay,
        clients(relay, via=over_tls()) as (first, second),
    ):
        before = await leaf(relay)
        after = write_pair(tls.certdir, NAME)
        relay.reload()
        assert await leaf(relay) == after != before
        await passes(first, second)


async def test_changed_files_are_found_without_a_reload(
    tls: ManualTLS, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(relay_module, "_CERTIFICATE_LOOK", 0.02)

    async with pyderp.Relay(RelayConfig(tls=tls)) as relay:
        after = write_pair(tls.certdir, NAME)
        async with asyncio.timeout(5):
            while await leaf(relay) != after:  # noqa: ASYNC110 (no event to wait for)
                await asyncio.sleep(0.01)


async def test_a_bad_certificate_at_reload_keeps_the_old_one(
    tls: ManualTLS, caplog: pytest.LogCaptureFixture
) -> None:
    async with pyderp.Relay(RelayConfig(tls=tls)) as relay:
        before = await leaf(relay)
        (tls.certdir / f"{NAME}.crt").write_text("garbage")
        relay.reload()
        assert await leaf(relay) == before
    assert "the old one stays in use" in caplog.text
