"""What a running relay applies on SIGHUP, how it logs, and which errors leave it running."""

from __future__ import annotations

import json
import os
import pty
import shlex
import signal
import socket
import ssl
import stat
from pathlib import Path

import pytest

from pyderp.cli.relay.showmap import map_command, node_of
from pyderp.keys import NodePrivate
from tests.cli.process import Process, pyderp, running
from tests.server.certificates import trusting_nobody, write_pair
from tests.server.ways import NAME

from .planning import planner
from .test_run import LOCAL, secure


def written(folder: Path, text: str) -> Path:
    file = folder / "relay.toml"
    file.write_text(text)
    return file


def answers(process: Process) -> None:
    with socket.create_connection(process.address(), timeout=10) as sock:
        sock.sendall(b"GET /derp/probe HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n")
        assert sock.recv(100).startswith(b"HTTP/1.1 200 OK")


def test_sighup_reads_the_settings_file_again(tmp_path: Path) -> None:
    file = written(tmp_path, "drain = 3600\nstun = false\n")
    with running("--dev", *LOCAL, "--config-file", file) as process:
        process.address()
        written(tmp_path, "drain = '0.25s'\nstun = false\nhealth = false\n")
        process.signal(signal.SIGHUP)
        process.wait_for("WARNING changed, but needs a restart: health\n")
        process.wait_for("INFO settings reloaded")
        written(tmp_path, "drain = 5\ndrian = 1\n")
        process.signal(signal.SIGHUP)
        process.wait_for(
            r"ERROR settings not reloaded, the old ones stay in use: "
            rf"settings file {file}, line 2: drian: no such setting; did you mean drain\?"
        )
        written(tmp_path, "drain = \n")
        process.signal(signal.SIGHUP)
        process.wait_for("old ones stay in use: settings file .*, line 1")
        answers(process)
        process.signal(signal.SIGTERM)
        process.wait_for("closed within 0.25 s")
        assert process.end() == 0


def test_sighup_changes_how_much_is_logged(tmp_path: Path) -> None:
    file = written(tmp_path, "log-level = 'info'\nstun = false\n")
    with running("--dev", *LOCAL, "--config-file", file) as process:
        process.address()
        written(tmp_path, "log-level = 'warning'\nstun = false\nhealth = false\n")
        process.signal(signal.SIGHUP)
        process.wait_for("needs a restart: health")
        process.signal(signal.SIGTERM)
        assert process.end() == 0
        assert not {"reloaded", "stopped"} & set(process.text.split())


def test_bad_rate_limits_leave_the_old_ones_and_the_relay_runs(tmp_path: Path) -> None:
    limits = tmp_path / "rate.json"
    limits.write_text('{"PerClientRateLimitBytesPerSec": 1000000}')
    with running("--dev", *LOCAL, "--no-stun", "--rate-config", limits) as process:
        process.address()
        limits.write_text("{")
        process.signal(signal.SIGHUP)
        process.wait_for(f"ERROR .*{limits}")
        process.wait_for(f"WARNING settings reloaded, but not all: .*{limits}")
        limits.write_text("{}")
        process.signal(signal.SIGHUP)
        process.wait_for("INFO settings reloaded\n")
        answers(process)


def test_the_accept_limit_closes_what_exceeds_it_and_the_relay_serves_on(tmp_path: Path) -> None:
    write_pair(tmp_path, NAME)
    limits = ("--accept-connection-limit=0.001", "--accept-connection-burst=2", "--no-stun")
    with running(*secure(tmp_path), *limits) as process:
        address = process.address()

        def handshake() -> bool:
            with socket.create_connection(address, timeout=10) as sock:
                try:
                    trusting_nobody().wrap_socket(sock, server_hostname=NAME).close()
                except (ssl.SSLError, OSError):
                    return False
                return True

        assert [handshake() for _ in range(4)] == [True, True, False, False]
        assert process.popen.poll() is None
        process.signal(signal.SIGTERM)
        assert process.end() == 0


def test_files_for_an_address_are_made_once(tmp_path: Path) -> None:
    flags = ("--hostname=127.0.0.1", "--certmode=manual", "--http-port=-1", "--no-stun", *LOCAL)
    state = tmp_path / "new" / "state"
    pins = []
    for _ in range(2):
        with running(*flags, STATE_DIRECTORY=str(state)) as process:
            process.address()
            pins.append(json.loads(process.wait_for(r"node for a DERP map: (.*)\n")[1])["CertName"])
            key = process.wait_for("relay key (nodekey:[0-9a-f]+)")[1]
    assert pins[0] == pins[1]
    file = state / "relay.key"
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert str(NodePrivate.parse(json.loads(file.read_text())["PrivateKey"]).public) == key


def test_a_relay_without_a_terminal_logs_the_command_for_its_maps(tmp_path: Path) -> None:
    flags = ("--hostname=127.0.0.1", "--certmode=manual", "--http-port=-1", "--stun-port=0", *LOCAL)
    state = tmp_path / "with space"
    with running(*flags, STATE_DIRECTORY=str(state)) as process:
        _, port = process.address()
        command = process.wait_for("to print complete DERP maps, run: (.*)\\n")[1]
        node = json.loads(process.wait_for(r"node for a DERP map: (.*)\n")[1])
    program, *words = shlex.split(command)
    assert program == "pyderp"
    shown = pyderp(*words, HOME="", STATE_DIRECTORY="")
    assert (shown.returncode, shown.stderr) == (0, "")
    assert node["CertName"] in shown.stdout
    assert f'"DERPPort": {port}' in shown.stdout
    assert f'"STUNPort": {node["STUNPort"]}' in shown.stdout
    for form in ("policy", "headscale", "--derp-map"):
        assert form in shown.stdout


def test_the_command_for_the_maps_fits_each_kind_of_certificate(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    key = ("-c", tmp_path / "k")
    private = ("--certmode=letsencrypt", "--acme-directory=https://ca.example/dir")
    lines = [
        ("--hostname=relay.example.com", *key),
        ("--hostname=relay", *private, "-a", "[::1]:99", *key),
        ("--hostname=192.0.2.1", "--acme-ip-certs", "--stun-port=99", *key),
        ("--hostname=192.0.2.1", "--no-stun", "-a", "unix:/run/x y", "--certmode=manual", "--dev"),
        ("--hostname=x.example", "-a", "127.0.0.1:80", "--public-port=8443", "--dev"),
        ("--hostname=x.example", "-a", ":81", "--public-port=443", "--stun-host=::", "--dev"),
    ]
    planned = planner(monkeypatch)
    for line in lines:
        plan, _ = planned("--certdir", tmp_path, *line)
        command = map_command(plan, plan.config.address, plan.config.stun_port)
        again, settings = planned(*shlex.split(command)[2:])
        assert settings["show-map"] == "all"
        assert node_of(again) == node_of(plan)


def test_on_loopback_a_taken_stun_port_is_only_warned_of() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.bind(("127.0.0.1", 0))
        port = sock.getsockname()[1]
        with running("--dev", *LOCAL, "--stun-port", port) as process:
            assert process.end() == 1
            assert str(port) in process.text
    with running("--dev", *LOCAL) as first, running("--dev", *LOCAL) as second:
        first.address()
        second.address()
        assert "WARNING no STUN" in first.text + second.text
        for process in (first, second):
            process.signal(signal.SIGHUP)
            process.wait_for("settings reloaded")
            assert "needs a restart" not in process.text, "nothing has changed"


def test_json_logs_are_an_object_a_line() -> None:
    with running("--dev", *LOCAL, "--log-format=json") as process:
        process.wait_for("admits every client")
        process.signal(signal.SIGTERM)
        assert process.end() == 0
    entries = [json.loads(line) for line in process.text.splitlines()]
    assert {"time", "level", "logger", "message"} == set().union(*entries)
    assert any(e["message"].startswith("listening on ") and e["level"] == "info" for e in entries)


def test_go_s_command_line_runs_the_same_relay(tmp_path: Path) -> None:
    flags = ("-a", "127.0.0.1:0", "-c", tmp_path / "k", "-stun=false")
    with running(*flags, command="derper") as process:
        process.address()
        answers(process)
        process.signal(signal.SIGHUP)
        process.wait_for("settings reloaded")
        process.signal(signal.SIGTERM)
        assert process.end() == 0


def test_on_a_terminal_the_maps_are_printed(tmp_path: Path) -> None:
    ours, theirs = pty.openpty()
    flags = ("--hostname=127.0.0.1", "--certmode=manual", "--http-port=-1", "--no-stun", *LOCAL)
    try:
        with running(*flags, stdout=theirs, STATE_DIRECTORY=str(tmp_path)) as process:
            process.address()
            text = ""
            while "# For --derp-map" not in text:
                text += os.read(ours, 65536).decode()
    finally:
        os.close(ours)
        os.close(theirs)
    assert '"derpMap": {' in text
    assert "regioncode:" in text
    assert "--show-map" not in process.text
