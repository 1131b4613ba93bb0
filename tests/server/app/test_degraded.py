"""A running relay reports which of its parts do not work, and when they work again."""

from __future__ import annotations

import asyncio
import socket
import ssl
from datetime import timedelta
from pathlib import Path

import pytest

from pyderp.config import ACMETLS, AdmissionConfig, ManualTLS, RelayConfig
from pyderp.keys import MeshKey
from pyderp.server.app.listeners import Supervisor
from pyderp.server.app.relay import Relay
from pyderp.server.trouble import Part
from tests.certs.authority import issue
from tests.server import dial
from tests.waiting import until


def closed_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as sock:
        port: int = sock.getsockname()[1]
        return port


async def plain(address: tuple[str, int], target: str, host: str = "localhost") -> bytes:
    reader, writer = await asyncio.open_connection(*address)
    writer.write(f"GET {target} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n".encode())
    answer = await dial.drained(reader)
    await dial.hang_up(writer)
    return answer


def dial_anything() -> ssl.SSLContext:
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    return context


def texts(relay: Relay, part: Part) -> list[str]:
    return [each.text for each in relay.troubles() if each.part is part]


async def test_a_relay_whose_authority_is_down_is_not_healthy(tmp_path: Path) -> None:
    directory = f"https://127.0.0.1:{closed_port()}/directory"
    tls = ACMETLS(hostname="relay.example.com", certdir=tmp_path, directory=directory, http_port=0)
    async with Relay(RelayConfig(tls=tls)) as relay:
        assert relay.http_address is not None
        await until(lambda: "asked for" not in texts(relay, Part.CERTIFICATE)[0])
        (text,) = texts(relay, Part.CERTIFICATE)
        assert text.startswith("no certificate for relay.example.com: ")
        answer = await plain(relay.http_address, "/debug/check")
        assert answer.startswith(b"HTTP/1.1 500 ")
        assert b"no certificate for relay.example.com" in answer
        # Over plain HTTP, as Prometheus may; TLS has no certificate yet.
        varz = await plain(relay.http_address, "/debug/varz", "relay.example.com:80")
        assert b'\npyderp_degraded{part="certificate"} 1\n' in varz
        with pytest.raises(ssl.SSLError):
            await asyncio.open_connection(*relay.address, ssl=dial_anything())
        assert b'\npyderp_certificate_missing{name="relay.example.com"} 1\n' in varz
        assert b"pyderp_certificate_next_try_timestamp_seconds{" in varz


@pytest.mark.parametrize(("age", "says"), [(100, "has expired on"), (-1, "is valid from")])
async def test_a_certificate_that_clients_refuse_is_logged_once_at_the_start(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, age: int, says: str
) -> None:
    chain, key = issue("relay.example.com", age=timedelta(days=age))
    (tmp_path / "relay.example.com.crt").write_bytes(chain)
    (tmp_path / "relay.example.com.key").write_bytes(key)

    tls = ManualTLS(certdir=tmp_path, hostname="relay.example.com", http_port=None)
    async with Relay(RelayConfig(tls=tls)):
        (line,) = (each for each in caplog.messages if "relay.example.com" in each)
        assert says in line


async def test_an_unreachable_admission_controller_is_reported_while_clients_are_accepted() -> None:
    url = f"http://127.0.0.1:{closed_port()}/"
    async with Relay(RelayConfig(admission=AdmissionConfig(url=url))) as relay:
        assert relay.troubles() == []
        async with dial.clients(relay, 1):
            (text,) = texts(relay, Part.ADMISSION)
            assert "is unreachable, clients are let in unasked" in text
            assert (await plain(relay.address, "/debug/check")).startswith(b"HTTP/1.1 500 ")


async def test_files_that_are_broken_at_a_reload_are_reported_until_fixed(tmp_path: Path) -> None:
    rates, keys = tmp_path / "rates.json", tmp_path / "keys"

    rates.write_text("{}")
    keys.write_text("")
    admission = AdmissionConfig(keys_file=keys)
    async with Relay(RelayConfig(rate_config=rates, admission=admission)) as relay:
        assert relay.troubles() == []
        for path, part in ((rates, Part.RATE_CONFIG), (keys, Part.ADMISSION)):
            good = path.read_text()
            path.write_text("[")
            relay.reload()
            (text,) = texts(relay, part)
            assert str(path) in text
            path.write_text(good)
            relay.reload()
            assert relay.troubles() == []


async def test_a_mesh_link_is_reported_until_it_is_up() -> None:
    key = MeshKey(bytes(range(32)))
    async with Relay(RelayConfig(mesh_key=key)) as other:
        config = RelayConfig(mesh_key=key, mesh_with=(other.url,))
        async with Relay(config) as relay:
            assert len(texts(relay, Part.MESH)) == 1
            await until(lambda: not relay.troubles())


async def test_the_service_manager_gets_changes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    notified: list[str] = []
    supervisor = Supervisor({"NOTIFY_SOCKET": "unused"}, look=0.001)
    monkeypatch.setattr(supervisor, "_notify", notified.append)
    status = ["fine"]
    supervisor.ready("fine")
    supervisor.watch(lambda: status[0])
    status[0] = "DEGRADED: no certificate"
    await until(lambda: len(notified) == 2)
    assert notified[1] == "STATUS=DEGRADED: no certificate"
    status[0] = "fine"
    await until(lambda: len(notified) == 3)
    supervisor.stopping()
    supervisor.close()
