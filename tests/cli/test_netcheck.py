"""`pyderp netcheck` as users run it."""

from __future__ import annotations

import contextlib
import json
import os
import pty
import select
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from pyderp.cli.netcheck import bind_of
from pyderp.errors import ConfigError
from pyderp.testing import RelayThread
from tests.interop.stunserver import our_stun_server

from .commands import command, run
from .process import BOUND, environment


def write_map(directory: Path, *stun_ports: int) -> Path:
    """A map with a region for each STUN server on loopback."""
    regions = {}
    for number, port in enumerate(stun_ports, 901):
        node = {
            "Name": f"{number}a",
            "RegionID": number,
            "HostName": "127.0.0.1",
            "IPv4": "127.0.0.1",
            "IPv6": "none",
            "STUNPort": port,
            "STUNOnly": True,
        }
        regions[str(number)] = {
            "RegionID": number,
            "RegionCode": f"r{number}",
            "RegionName": f"Region {number}",
            "Nodes": [node],
        }
    path = directory / "map.json"
    path.write_text(json.dumps({"Regions": regions}))
    return path


@pytest.fixture
def derp_map(tmp_path: Path) -> Iterator[Path]:
    """A map of one STUN server that answers."""
    with our_stun_server("127.0.0.1") as port:
        yield write_map(tmp_path, port)


@pytest.fixture
def silent() -> Iterator[int]:
    """The port of a UDP socket that never answers."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.bind(("127.0.0.1", 0))
        yield sock.getsockname()[1]


def test_the_report_is_printed_as_text(derp_map: Path) -> None:
    done = run("netcheck", derp_map)
    assert done.code == 0, done.err
    assert "\nReport:\n\t* Time: " in done.out
    assert "\t* UDP: true\n" in done.out
    assert "(Region 901)  answers STUN\n" in done.out
    assert done.err == ""


@pytest.mark.parametrize("flags", [["--json"], ["--format=json-line"], ["--format", "json"]])
def test_the_report_is_printed_as_json(derp_map: Path, flags: list[str]) -> None:
    done = run("netcheck", derp_map, *flags)
    assert done.code == 0, done.err
    report = json.loads(done.out)
    assert report["PreferredDERP"] == 901
    assert list(report["RegionLatency"]) == ["901"]
    assert (len(done.out.splitlines()) == 1) == ("json" not in flags)


def test_a_map_is_read_from_standard_input(derp_map: Path) -> None:
    assert run("netcheck", "-", "--json", stdin=derp_map.read_bytes()).code == 0


def test_without_an_answer_the_exit_status_is_1(tmp_path: Path, silent: int) -> None:
    done = run("netcheck", write_map(tmp_path, silent))
    assert done.code == 1
    assert "unknown (no response to latency probes)" in done.out


def test_it_repeats_until_ctrl_c(derp_map: Path) -> None:
    with command("netcheck", derp_map, "--json", "--every", "0.01") as running:
        running.wait_for_out(r"(?s)\n.*\n.*\n")
        running.interrupt()
        done = running.end()
    assert done.code == 130
    for line in done.out.splitlines():
        assert json.loads(line)["UDP"]


def test_ctrl_c_prints_what_was_measured(tmp_path: Path, silent: int) -> None:
    with our_stun_server("127.0.0.1") as port:
        path = write_map(tmp_path, port, silent)
        with command("netcheck", path, "--json", "-v") as running:
            running.wait_for("node 901a: STUN answer")
            running.interrupt()
            done = running.end()
    assert done.code == 130
    report = json.loads(done.out)
    assert list(report["RegionLatency"]) == ["901"]
    assert report["PreferredDERP"] == 901
    assert report["Notes"] == ["interrupted: this is what was measured so far"]


def test_progress_is_shown_on_a_terminal(tmp_path: Path, silent: int) -> None:
    """On standard error only."""
    with our_stun_server("127.0.0.1") as port:
        path = write_map(tmp_path, port, silent)
        ours, theirs = pty.openpty()
        with subprocess.Popen(
            [sys.executable, "-m", "pyderp", "netcheck", str(path)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=theirs,
            env=environment(),
        ) as process:
            os.close(theirs)
            seen = b""
            while b"measuring: 1 of 2" not in seen:
                ready, _, _ = select.select([ours], [], [], BOUND)
                assert ready, seen
                seen += os.read(ours, 1024)
            process.send_signal(signal.SIGINT)
            out, _ = process.communicate(timeout=BOUND)
        os.close(ours)
    assert b"Report:" in out
    assert b"measuring" not in out


@contextlib.contextmanager
def late_server(port: int) -> Iterator[int]:
    """A STUN server that loses the first request, so that its answer is 100 ms late."""
    with (
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as front,
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as back,
    ):
        front.bind(("127.0.0.1", 0))
        front.settimeout(BOUND)
        back.connect(("127.0.0.1", port))
        back.settimeout(BOUND)

        def serve() -> None:
            front.recvfrom(2048)
            data, source = front.recvfrom(2048)
            back.send(data)
            front.sendto(back.recv(2048), source)

        def work() -> None:
            with contextlib.suppress(OSError):
                serve()

        thread = threading.Thread(target=work, daemon=True)
        thread.start()
        yield front.getsockname()[1]


def test_relay_measures_all_regions(tmp_path: Path) -> None:
    """Without `--relay`, three regions that answer end a run."""
    with our_stun_server("127.0.0.1") as port, late_server(port) as late:
        path = write_map(tmp_path, port, port, port, late)
        done = run("netcheck", path, "--relay", "--json")
    assert len(json.loads(done.out)["RegionLatency"]) == 4


def test_relay_prints_whether_packets_pass(tmp_path: Path) -> None:
    with RelayThread() as relay, our_stun_server("127.0.0.1") as port:
        (node,) = relay.region.nodes
        path = write_map(tmp_path, port)
        content = json.loads(path.read_text())
        (entry,) = content["Regions"]["901"]["Nodes"]
        entry |= {"STUNOnly": False, "DERPPort": node.derp_port, "HostName": node.host_name}
        entry |= {"CertName": node.cert_name, "InsecureForTests": node.insecure_for_tests}
        path.write_text(json.dumps(content))
        text = run("netcheck", path, "--relay", TS_DEBUG_USE_DERP_HTTP="1")
        done = run("netcheck", path, "--relay", "--json", TS_DEBUG_USE_DERP_HTTP="1")
        entry["DERPPort"] = 1
        path.write_text(json.dumps(content))
        dead = run("netcheck", path, "--relay", TS_DEBUG_USE_DERP_HTTP="1")
    assert text.code == 0, text.err
    assert "answers STUN, relays packets (" in text.out
    (result,) = json.loads(done.out)["RegionRelays"]["901"]
    assert result["Relays"]
    assert dead.code == 1
    assert "answers STUN, RELAYS NOTHING: " in dead.out


@pytest.mark.parametrize(
    ("content", "why"),
    [
        ("{", "not JSON: expecting property name enclosed in double quotes in line 1, column 2"),
        ('{"Regions": [', "in line 1, column 14: want a DERP map: JSON, headscale's YAML or a"),
        (
            '{"Regions":{"900":{"RegionID":901,"Nodes":[]}}}',
            "is wrong: region 900: its RegionID is 901, and not 900; region 900: no nodes",
        ),
        ("[]", "want an object, got an array"),
        ('{"Regions":{}}', "it has no region"),
        ('{"Regions":{"1":{"Nodes":[{"STUNPort":"x"}]}}}', 'Regions["1"].Nodes[0].STUNPort'),
    ],
)
def test_an_unusable_map_exits_2(tmp_path: Path, content: str, why: str) -> None:
    path = tmp_path / "map.json"
    path.write_text(content)
    done = run("netcheck", path)
    assert done.code == 2
    assert why in done.err
    assert done.out == ""


@pytest.mark.parametrize(
    ("flags", "why"),
    [
        (["--bind-address", "x"], 'invalid bind address: "x"'),
        (["--bind-port", "-1"], "invalid bind port number: -1"),
        (["--format", "xml"], "want json or json-line"),
        (["--ca", "/nowhere"], "--ca: "),
        (["--every", "0"], "--every"),
        (["--every", "1e999"], "--every"),
        ([], "Missing argument"),
    ],
)
def test_a_wrong_command_line_exits_2(derp_map: Path, flags: list[str], why: str) -> None:
    done = run("netcheck", *([derp_map] if flags else []), *flags)
    assert done.code == 2
    assert why in done.err


def test_a_missing_map_exits_2() -> None:
    done = run("netcheck", "/nowhere/map.json")
    assert done.code == 2
    assert "cannot read the DERP map /nowhere/map.json: No such file" in done.err


def test_a_taken_port_exits_1(derp_map: Path, silent: int) -> None:
    done = run("netcheck", derp_map, "--bind-address=127.0.0.1", f"--bind-port={silent}")
    assert done.code == 1
    assert f"cannot bind UDP to 127.0.0.1:{silent}: Address already in use" in done.err


@pytest.mark.parametrize(
    ("address", "port", "environment", "want"),
    [
        ("", 0, "", ("", 0)),
        ("100.123.123.123", 0, "", ("100.123.123.123", 0)),
        ("dead::beef", 0, "", ("dead::beef", 0)),
        ("100.123.123.123", 456, "127.0.0.1:99", ("100.123.123.123", 456)),
        ("dead::beef", 456, "127.0.0.1:99", ("dead::beef", 456)),
        ("", 456, "", ("", 456)),
        ("", 456, "127.0.0.1:99", ("", 456)),
        ("", 0, "127.0.0.1:99", ("127.0.0.1", 99)),
        ("", 0, ":99", ("", 99)),
    ],
)
def test_flags_and_environment_make_the_bind_address(
    address: str, port: int, environment: str, want: tuple[str, int]
) -> None:
    """Go's TestCreateBindStr: flags come before the environment."""
    assert bind_of(address, port, environment) == want


@pytest.mark.parametrize(
    ("address", "port", "environment", "text"),
    [
        ("...", 0, "", r'invalid bind address: "\.\.\."'),
        ("dead::beef::cafe", 0, "", 'invalid bind address: "dead::beef::cafe"'),
        ("", -1, "", "invalid bind port number: -1"),
        ("", 65536, "", "invalid bind port number: 65536"),
        ("", 0, "x", "TS_DEBUG_NETCHECK_UDP_BIND: "),
    ],
)
def test_an_invalid_bind_address_is_refused(
    address: str, port: int, environment: str, text: str
) -> None:
    with pytest.raises(ConfigError, match=text):
        bind_of(address, port, environment)
