"""`pyderp relay` as a process: its input, its output, and how it ends."""

from __future__ import annotations

import asyncio
import contextlib
import json
import signal
import socket
import ssl
import stat
import warnings
from pathlib import Path

import pytest

from pyderp.cli.relay.layers import Settings
from pyderp.cli.relay.run import _serve
from pyderp.errors import ConfigError
from pyderp.keys import MeshKey, NodePrivate
from pyderp.wire.messages import PeerPresent, Restarting
from tests.cli.process import BOUND, pyderp, running
from tests.server.certificates import trusting_nobody, write_pair
from tests.server.dial import connect, passes
from tests.server.ways import NAME, over_tls
from tests.waiting import until

from .planning import planner

LOCAL = ("-a", "127.0.0.1:0")


def secure(directory: Path, hostname: str = NAME) -> tuple[object, ...]:
    return (
        *("--dev", *LOCAL, "--certmode=manual", "--http-port=-1"),
        *("--certdir", directory, "--hostname", hostname),
    )


def leaf(address: tuple[str, int]) -> bytes:
    """The certificate that the relay presents."""
    with (
        socket.create_connection(address, timeout=10) as sock,
        trusting_nobody().wrap_socket(sock, server_hostname=NAME) as tls,
    ):
        return tls.getpeercert(binary_form=True) or b""


# Running


def test_a_relay_without_derp_does_not_log_that_it_admits_clients(tmp_path: Path) -> None:
    """It has no node for a map, though its name and port are known."""
    public = ("--hostname=derp.example.com", "--public-port=443")
    with running("--dev", *LOCAL, "--no-stun", "--no-derp", *public) as process:
        process.wait_for(r"WARNING /derp is not served here \(--no-derp\)")
        process.signal(signal.SIGTERM)
        assert process.end() == 0
    assert "admits every client" not in process.text
    assert "DERP map" not in process.text


async def test_a_relay_serves_and_logs_its_address_and_key(tmp_path: Path) -> None:
    key_file = tmp_path / "sub" / "relay.key"
    mesh_file = tmp_path / "mesh.key"
    mesh_file.write_text(f"  {'AB' * 32}\n")
    with running("--dev", *LOCAL, "-c", key_file, "--mesh-psk-file", mesh_file) as process:
        address = process.address()
        assert f"http://127.0.0.1:{address[1]}/derp" in process.text
        assert "mesh key set" in process.text
        assert "WARNING this relay admits every client that can reach it" in process.text
        document = json.loads(key_file.read_text())
        key = NodePrivate.parse(document["PrivateKey"])
        assert list(document) == ["PrivateKey"]
        assert stat.S_IMODE(key_file.stat().st_mode) == 0o600
        assert f"relay key {key.public}" in process.text
        assert document["PrivateKey"] not in process.text
        assert "abab" not in process.text.lower()

        first = await connect(address, mesh_key=MeshKey.parse("ab" * 32))
        second = await connect(address)
        assert first.session.server_key == key.public
        await passes(second, first)
        first.session.watch_conns()
        first.write()
        await first.wait_for(PeerPresent)
        await first.aclose()
        await second.aclose()
        process.signal(signal.SIGTERM)
        assert process.end() == 0
    with running("--dev", *LOCAL, "-c", key_file) as process:
        process.address()
        assert f"relay key {key.public}" in process.text
        assert "mesh key not set" in process.text


def test_dev_keeps_no_key_and_listens_on_this_machine_only(tmp_path: Path) -> None:
    with socket.socket() as probe:
        taken = probe.connect_ex(("127.0.0.1", 3340)) == 0
    if taken:
        pytest.skip("another program uses port 3340")
    with running("--dev", HOME=str(tmp_path)) as process:
        assert process.address() == ("127.0.0.1", 3340)
        assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("loop", ["auto", "uvloop", "asyncio"])
def test_each_loop_serves_and_stops(loop: str) -> None:
    with running("--dev", *LOCAL, "--loop", loop) as process:
        with socket.create_connection(process.address(), timeout=10) as sock:
            sock.sendall(b"GET /derp/probe HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n")
            assert sock.recv(100).startswith(b"HTTP/1.1 200 OK")
        process.signal(signal.SIGTERM)
        assert process.end() == 0
        assert "stopped" in process.text
        assert "Traceback" not in process.text


def test_settings_come_from_the_environment_and_flags_win() -> None:
    with running(
        "--dev",
        "--log-level=info",
        PYDERP_ADDRESS="127.0.0.1:0",
        PYDERP_LOG_LEVEL="error",
        PYDERP_DRAIN="0",
    ) as process:
        assert process.address()[1] != 3340
        process.signal(signal.SIGTERM)
        process.wait_for("closed within 0 s")


def test_a_client_that_does_not_log_in_in_time_is_closed(tmp_path: Path) -> None:
    """Over TLS, behind a proxy: the header, the handshake, the request. The limit is in a file."""
    write_pair(tmp_path, NAME)
    file = tmp_path / "relay.toml"
    file.write_text('login-timeout = "300ms"\nproxy-protocol = true\ntrusted-proxy = "127.0.0.1"\n')
    with running(*secure(tmp_path), "--config-file", file) as process:
        address = process.address()
        hello, header = b"\x16\x03\x01\x02\0\x01", b"PROXY UNKNOWN\r\n"
        for data, missing in (
            (b"", "PROXY header"),
            (header[:5], "PROXY header"),
            (header, "login"),
            (header + hello, "login"),
        ):
            process.text = ""
            with socket.create_connection(address, timeout=BOUND) as sock:
                sock.sendall(data)
                process.wait_for(rf"closed: no {missing} within 0\.3 s\n")
                with contextlib.suppress(ConnectionError):
                    assert sock.recv(1) == b""


def test_a_key_file_that_others_may_read_is_warned_of(tmp_path: Path) -> None:
    key_file = tmp_path / "relay.key"
    key_file.write_text(json.dumps({"PrivateKey": NodePrivate.generate().to_text()}))
    key_file.chmod(0o644)
    with running("--dev", *LOCAL, "-c", key_file) as process:
        process.address()
        assert "has mode 0644: other users may read it" in process.text


def test_a_missing_tailscaled_is_reported_and_the_relay_runs(tmp_path: Path) -> None:
    socket_path = tmp_path / "tailscaled.sock"
    flags = ("--verify-clients", "--socket", socket_path, "--no-stun")
    with running("--dev", *LOCAL, *flags) as process:
        process.wait_for(
            rf"WARNING no client can be admitted: tailscaled at {socket_path} cannot be"
        )
        process.signal(signal.SIGTERM)
        assert process.end() == 0
        assert process.text.count("no client can be admitted") == 1


@pytest.mark.parametrize("where", ["flag", "file", "environment"])
def test_an_error_at_the_start_is_json_if_the_log_is(tmp_path: Path, where: str) -> None:
    file = tmp_path / "relay.toml"
    file.write_text("log-format = 'json'\nhome = 'x'\n" if where == "file" else "home = \n")
    flags = ("--log-format=json",) if where == "flag" else ()
    extra = {"PYDERP_LOG_FORMAT": "json"} if where == "environment" else {}
    done = pyderp("relay", "--dev", *LOCAL, "--config-file", file, *flags, **extra)
    assert done.returncode == 1
    entry = json.loads(done.stderr)
    assert entry["level"] == "error"
    assert f"settings file {file}, line" in entry["message"]


def test_behind_a_proxy_the_map_is_logged(tmp_path: Path) -> None:
    flags = ("--hostname=derp.example.com", "--public-port=444", "--stun-port=0")
    with running("--dev", *LOCAL, *flags, "--stun-host=::") as process:
        node = json.loads(process.wait_for(r"node for a DERP map: (.*)\n")[1])
        port = process.wait_for(r"STUN server listening on \[::\]:(\d+)")[1]
        assert (node["DERPPort"], node["STUNPort"]) == (444, int(port))
    with running("--dev", *LOCAL, *flags) as process:
        node = json.loads(process.wait_for(r"node for a DERP map: (.*)\n")[1])
        assert node["STUNPort"] == -1
        process.wait_for("WARNING STUN answers this machine only")


async def test_tls_flags_beside_dev_are_used(tmp_path: Path) -> None:
    write_pair(tmp_path, NAME)
    with running(*secure(tmp_path)) as process:
        address = process.address()
        assert f"https://{NAME}:{address[1]}/derp" in process.text

        first, second = [await connect(address, via=over_tls()) for _ in range(2)]
        await passes(first, second)
        await first.aclose()
        await second.aclose()


def test_an_address_as_hostname_makes_a_certificate_and_prints_its_pin(tmp_path: Path) -> None:
    directory = tmp_path / "certs"
    with running(*secure(directory, "127.0.0.1")) as process:
        process.address()
        node = json.loads(process.wait_for(r"node for a DERP map: (.*)\n")[1])
        assert node["HostName"] == "127.0.0.1"
        assert node["CertName"].startswith("sha256-raw:")
        assert (directory / "127.0.0.1.key").exists()


def test_plain_http_beside_tls_redirects(tmp_path: Path) -> None:
    write_pair(tmp_path, NAME)
    with running(*secure(tmp_path), "--http-port=0") as process:
        process.address()
        port = int(process.wait_for(r"redirecting plain HTTP on 127\.0\.0\.1:(\d+)")[1])
        with socket.create_connection(("127.0.0.1", port), timeout=10) as sock:
            sock.sendall(f"GET / HTTP/1.1\r\nHost: {NAME}\r\n\r\n".encode())
            assert b"302 Found" in sock.recv(1000)


def test_sighup_reads_the_certificate_again(tmp_path: Path) -> None:
    write_pair(tmp_path, NAME)
    with running(*secure(tmp_path)) as process:
        address = process.address()
        before = leaf(address)
        after = write_pair(tmp_path, NAME)
        process.signal(signal.SIGHUP)
        process.wait_for("reloaded")
        assert leaf(address) == after != before
        (tmp_path / f"{NAME}.key").write_text("garbage")
        process.signal(signal.SIGHUP)
        process.wait_for("the old one stays in use")
        assert leaf(address) == after


def test_sighup_without_tls_changes_nothing() -> None:
    with running("--dev", *LOCAL) as process:
        address = process.address()
        process.signal(signal.SIGHUP)
        with socket.create_connection(address, timeout=10):
            pass
        process.signal(signal.SIGTERM)
        assert process.end() == 0


def test_tls_1_1_is_refused(tmp_path: Path) -> None:
    write_pair(tmp_path, NAME)
    old = trusting_nobody()
    with warnings.catch_warnings(action="ignore"):
        old.minimum_version = old.maximum_version = ssl.TLSVersion.TLSv1_1
    old.set_ciphers("ALL:@SECLEVEL=0")
    with (
        running(*secure(tmp_path)) as process,
        socket.create_connection(process.address(), timeout=10) as sock,
        pytest.raises(ssl.SSLError),
    ):
        old.wrap_socket(sock, server_hostname=NAME)


# Stopping


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("drain", ["0", "0.5"])
async def test_a_signal_sends_restarting_closes_clients_and_exits_0(
    number: signal.Signals, drain: str
) -> None:
    with running("--dev", *LOCAL, "--drain", drain) as process:
        address = process.address()

        clients = [await connect(address) for _ in range(5)]
        process.signal(number)
        for client in clients:
            restarting = await client.wait_for(Restarting)
            assert restarting.reconnect_in <= float(drain)
            assert restarting.try_for == 60
        for client in clients:
            await client.closed()
            await client.aclose()
        assert process.end() == 0
        assert f"{number.name}: stopping" in process.text
        assert "stopped" in process.text
        assert "Traceback" not in process.text


def test_by_default_closes_are_spread_over_five_seconds() -> None:
    with running("--dev", *LOCAL) as process:
        process.address()
        process.signal(signal.SIGTERM)
        process.wait_for(r"closed within 5 s")
        assert process.end() == 0


@pytest.mark.parametrize("second", [signal.SIGTERM, signal.SIGINT])
async def test_a_second_signal_exits_at_once(second: signal.Signals) -> None:
    with running("--dev", *LOCAL, "--drain", "3600") as process:
        address = process.address()

        # One of the two is closed at once, and the other after half an hour.
        clients = [await connect(address) for _ in range(2)]
        process.signal(signal.SIGTERM)
        for client in clients:
            await client.wait_for(Restarting)
        assert process.popen.poll() is None
        process.signal(second)
        assert process.end() == 0
        for client in clients:
            await client.closed()
            await client.aclose()
        assert f"{second.name} again: exiting at once" in process.text


async def test_a_stopping_relay_does_not_reload(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Otherwise a service manager would take the relay for ready again."""
    plan, _ = planner(monkeypatch)("--dev", *LOCAL, "--no-stun", "--drain=0")
    loads = []

    def load() -> Settings:
        loads.append(1)
        raise ConfigError("not now")

    async def logged(text: str) -> None:
        await until(lambda: text in caplog.text)

    async def main() -> None:
        serving = asyncio.create_task(_serve(plan, load))
        await logged("admits every client")
        signal.raise_signal(signal.SIGHUP)
        await logged("settings not reloaded")
        assert len(loads) == 1
        signal.raise_signal(signal.SIGTERM)
        signal.raise_signal(signal.SIGHUP)
        await serving
        assert len(loads) == 1

    monkeypatch.delenv("NOTIFY_SOCKET", raising=False)
    await main()


async def test_a_stopping_relay_takes_no_new_connections() -> None:
    with running("--dev", *LOCAL, "--drain", "3600") as process:
        address = process.address()

        client = await connect(address)
        process.signal(signal.SIGTERM)
        await client.wait_for(Restarting)
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(address, timeout=5).close()
        await client.aclose()
