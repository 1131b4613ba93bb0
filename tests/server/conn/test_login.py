"""Admission at login: at once, after a decision, or refused; later frames wait meanwhile."""

from __future__ import annotations

import asyncio
import json
import logging
import os
from dataclasses import replace
from ipaddress import ip_network
from pathlib import Path

import pytest

import pyderp
from pyderp import ManualTLS, RelayConfig
from pyderp.config import AdmissionConfig
from pyderp.keys import MeshKey, NodePrivate, NodePublic
from pyderp.text import LOG_FIELDS
from pyderp.wire.client import ClientSession
from pyderp.wire.frames import pack_send_packet
from pyderp.wire.messages import Restarting
from pyderp.wire.upgrade import upgrade_request
from tests.server.dial import Client, clients, connect, drained, hang_up, open_stream, until_gone
from tests.server.ways import KINDS, way

MESH_KEY = MeshKey.parse("0123456789abcdef" * 4)


class FakeAdmission:
    """An admission that answers when the test sets the verdict."""

    def __init__(self) -> None:
        self.asked: list[tuple[NodePublic, str]] = []
        self.answer: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        self.was_asked = asyncio.Event()

    async def decide(self, key: NodePublic, address: str) -> bool:
        self.asked.append((key, address))
        self.was_asked.set()
        return await asyncio.shield(self.answer)

    def config(self, config: RelayConfig | None = None) -> RelayConfig:
        config = config or RelayConfig()
        return RelayConfig(
            tls=config.tls, mesh_key=MESH_KEY, admission=AdmissionConfig(decide=self.decide)
        )


@pytest.mark.parametrize("kind", KINDS)
async def test_frames_behind_a_login_wait_for_the_decision(kind: str, tls: ManualTLS) -> None:
    keeper = FakeAdmission()
    config, via = way(kind, tls)
    async with pyderp.Relay(keeper.config(config)) as relay:
        target = await connect(relay.address, mesh_key=MESH_KEY, via=via)
        private = NodePrivate.generate()
        joining = asyncio.ensure_future(connect(relay.address, private=private, via=via))
        await keeper.was_asked.wait()
        assert keeper.asked == [(private.public, "127.0.0.1")]
        assert relay.clients == 1
        keeper.answer.set_result(True)
        client = await joining
        client.send(target, b"hello")
        assert await target.packet() == b"hello"
        for each in (target, client):
            await each.aclose()


@pytest.mark.parametrize("behind", [1, 20, 3000])
async def test_packets_in_one_write_with_the_login_arrive_after_the_decision(behind: int) -> None:
    keeper = FakeAdmission()
    async with pyderp.Relay(keeper.config()) as relay:
        target = await connect(relay.address, mesh_key=MESH_KEY)
        reader, writer = await open_stream(relay.address)
        client = Client(reader, writer, NodePrivate.generate(), None)  # type: ignore[arg-type]
        await _login_with(client, relay, target, b"x" * behind)
        await keeper.was_asked.wait()
        keeper.answer.set_result(True)
        assert await target.packet() == b"x" * behind
        await hang_up(writer)
        await target.aclose()


async def _login_with(client: Client, relay: pyderp.Relay, target: Client, packet: bytes) -> None:
    """Send request, ClientInfo and a packet at once, with the relay's key known in advance."""
    session = ClientSession(client.private, random=os.urandom, server_key=relay.public_key)
    request = upgrade_request("relay.test", "/derp", user_agent="tests", fast_start=True)
    info = b"".join(session.data_to_send())
    client.writer.write(request + info + pack_send_packet(target.key, packet))


async def test_a_refused_client_is_closed_and_logged(caplog: pytest.LogCaptureFixture) -> None:
    keeper = FakeAdmission()
    keeper.answer.set_result(False)
    async with pyderp.Relay(keeper.config()) as relay:
        private = NodePrivate.generate()
        with pytest.raises(EOFError):
            await connect(relay.address, private=private)
        (line,) = [each for each in caplog.records if " closed: " in each.message]
        assert f"client {private.public} rejected" in line.message
        fields = vars(line)[LOG_FIELDS]
        assert fields["key"] == str(private.public)
        assert fields["label"] == ""
        assert fields["reason"] == "refused"
        await until_gone(relay)


async def test_a_disallowed_name_is_refused_before_a_source_is_asked(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """An empty item is dropped, so clients without a name are allowed; that is logged at start."""
    keeper = FakeAdmission()
    keeper.answer.set_result(True)
    config = replace(keeper.config(), disallow_app_names=("bad", ""))
    async with pyderp.Relay(config) as relay:
        assert "disallowed app names: an empty item is dropped" in caplog.text
        url = f"http://127.0.0.1:{relay.address[1]}/derp"
        bad = pyderp.ClientConfig(app_name="bad")
        async with pyderp.Client.for_url(url, config=bad) as client:
            await client.connect()
            with pytest.raises(pyderp.ConnectionClosed):
                await client.recv()
            rejection = f'client {client.self_public_key} rejected: disallowed app name "bad"'
            assert rejection in caplog.text
        assert keeper.asked == []
        async with clients(relay, 1) as (other,):
            assert [each for each, _ in keeper.asked] == [other.key]


async def test_admission_is_not_checked_for_mesh_peers() -> None:
    keeper = FakeAdmission()
    async with (
        pyderp.Relay(keeper.config()) as relay,
        clients(relay, 1, mesh_key=MESH_KEY),
    ):
        assert keeper.asked == []


async def test_a_client_that_closes_while_asked_about_is_forgotten() -> None:
    keeper = FakeAdmission()
    async with pyderp.Relay(keeper.config()) as relay:
        joining = asyncio.ensure_future(connect(relay.address))
        await keeper.was_asked.wait()
        joining.cancel()
        await asyncio.gather(joining, return_exceptions=True)
        keeper.answer.set_result(True)
        await until_gone(relay)
        assert relay.clients == 0


async def test_a_relay_that_stops_does_not_wait_for_decisions() -> None:
    keeper = FakeAdmission()
    relay = pyderp.Relay(keeper.config())
    await relay.start()
    joining = asyncio.ensure_future(connect(relay.address))
    await keeper.was_asked.wait()
    await relay.aclose(drain=0)
    with pytest.raises((EOFError, ConnectionError)):
        await joining


async def test_a_key_removed_from_the_file_is_disconnected_at_reload(tmp_path: Path) -> None:
    keys = [NodePrivate.generate() for _ in range(2)]
    path = tmp_path / "keys"
    path.write_text("".join(f"{key.public} laptop\n" for key in keys))
    config = RelayConfig(admission=AdmissionConfig(keys_file=path))
    async with pyderp.Relay(config) as relay:
        first, second = [await connect(relay.address, private=key) for key in keys]
        path.write_text(f"{keys[1].public} laptop\n")
        relay.reload()
        await first.closed()
        await second.ping()
        with pytest.raises(EOFError):
            await connect(relay.address, private=keys[0])
        for each in (first, second):
            await each.aclose()


async def test_nothing_is_logged_of_allowed_clients(caplog: pytest.LogCaptureFixture) -> None:
    keeper = FakeAdmission()
    keeper.answer.set_result(True)
    async with pyderp.Relay(keeper.config()) as relay, clients(relay):
        assert [each for each in caplog.records if each.levelno > logging.INFO] == []


async def test_bytes_waiting_for_the_decision_are_bounded_by_one_read() -> None:
    keeper = FakeAdmission()
    async with pyderp.Relay(keeper.config()) as relay:
        reader, writer = await open_stream(relay.address)
        client = Client(reader, writer, NodePrivate.generate(), None)  # type: ignore[arg-type]
        target = await connect(relay.address, mesh_key=MESH_KEY)
        await _login_with(client, relay, target, b"")
        await keeper.was_asked.wait()
        writer.write(bytes(16 << 20))
        protocol = next(each for each in relay._running().protocols if each.connection is None)
        assert protocol.transport is not None
        assert not protocol.transport.is_reading()
        keeper.answer.set_result(False)
        await drained(reader)
        await hang_up(writer)
        await target.aclose()


async def _follow(joining: asyncio.Future[Client]) -> None:
    """Wait for the login and then for the end; a websocket first receives what was sent before."""
    client = await joining
    try:
        await client.wait_for(Restarting)
    finally:
        await client.aclose()


@pytest.mark.parametrize("kind", ["plain", "websocket"])
async def test_a_bad_frame_behind_the_login_ends_the_connection(kind: str, tls: ManualTLS) -> None:
    keeper = FakeAdmission()
    _, via = way(kind, tls)
    async with pyderp.Relay(keeper.config()) as relay:
        private = NodePrivate.generate()
        joining = asyncio.ensure_future(connect(relay.address, private=private, via=via))
        await keeper.was_asked.wait()
        (protocol,) = relay._running().protocols
        # As if it had arrived in one read with the ClientInfo.
        frame = b"\x04\0\0\0\1x"
        protocol.tail = frame  # type: ignore[attr-defined]  # it is a RelayProtocol
        keeper.answer.set_result(True)
        with pytest.raises(EOFError):
            await _follow(joining)
        await until_gone(relay)
        assert relay.counters.protocol_errors == 1


async def test_a_client_that_sends_too_much_while_asked_about_is_closed(tmp_path: Path) -> None:
    """A load balancer's buffers may bring more in one go than the relay's own reads."""
    keeper = FakeAdmission()
    config = keeper.config()
    config = replace(
        config,
        address=f"unix:{tmp_path}/s",
        proxy_protocol=True,
        trusted_proxies=(ip_network("127.0.0.0/8"),),
    )
    async with pyderp.Relay(config) as relay:
        reader, writer = await asyncio.open_unix_connection(f"{tmp_path}/s")
        client = Client(reader, writer, NodePrivate.generate(), None)  # type: ignore[arg-type]
        session = ClientSession(client.private, random=os.urandom, server_key=relay.public_key)
        request = upgrade_request("relay.test", "/derp", user_agent="tests", fast_start=True)
        pings = (b"\x12\0\0\0\x08" + bytes(8)) * 16_000
        data = b"PROXY UNKNOWN\r\n" + request + b"".join(session.data_to_send()) + pings
        writer.write(data)
        await drained(reader)
        await hang_up(writer)
        await until_gone(relay)
        assert relay.clients == 0
        assert relay.counters.got_ping == 0


async def test_the_label_of_a_client_is_in_the_log(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "keys"
    key = NodePrivate.generate()
    path.write_text(f"{key.public} alice's laptop\n")
    config = RelayConfig(admission=AdmissionConfig(keys_file=path))
    async with pyderp.Relay(config) as relay:
        client = await connect(relay.address, private=key)
        client.write_stream(b"\x04" + (1 << 30).to_bytes(4, "big"))
        await client.closed()
        await client.aclose()
        (line,) = [each for each in caplog.records if " closed: " in each.message]
        assert f"{key.public.short()} (alice's laptop) closed: " in line.message
        assert vars(line)[LOG_FIELDS]["label"] == "alice's laptop"


async def test_a_label_from_the_rate_config_is_in_the_log_and_on_the_page(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "limits"
    key = NodePrivate.generate()
    entry = {"BytesPerSec": 0, "Label": "the office"}
    path.write_text(json.dumps({"PerKey": {str(key.public): entry}}))
    async with pyderp.Relay(RelayConfig(rate_config=path)) as relay:
        client = await connect(relay.address, private=key)
        reader, writer = await asyncio.open_connection(*relay.address)
        writer.write(
            b"GET /debug/connections?format=json HTTP/1.1\r\nHost: localhost\r\n"
            b"Connection: close\r\n\r\n"
        )
        _, _, page = (await reader.read()).partition(b"\r\n\r\n")
        await hang_up(writer)
        assert b'"label": "the office"' in page
        client.write_stream(b"\x04" + (1 << 30).to_bytes(4, "big"))
        await client.closed()
        await client.aclose()
        (line,) = [each for each in caplog.records if " closed: " in each.message]
        assert f"{key.public.short()} (the office) closed: " in line.message
        assert vars(line)[LOG_FIELDS]["label"] == "the office"
