"""`--check` with the settings of a running relay: the relay's own ports are no problem."""

from __future__ import annotations

import contextlib
import dataclasses
import signal
import socket
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from pyderp.cli.relay import running as running_relay
from pyderp.cli.relay.holders import Process, processes
from pyderp.keys import load_or_create_key
from tests.cli.commands import Done
from tests.cli.process import Process as Relay
from tests.cli.process import pyderp, running
from tests.server.certificates import write_pair
from tests.server.ways import NAME


@pytest.mark.parametrize("tls", [False, True])
def test_ports_of_the_running_relay_are_no_problem(tmp_path: Path, tls: bool) -> None:
    flags: tuple[object, ...] = ("--dev", "--no-stun")
    if tls:
        write_pair(tmp_path, NAME)
        flags += ("--certmode=manual", "--http-port=-1", "--certdir", tmp_path, "--hostname", NAME)
    key, other = tmp_path / "relay.key", tmp_path / "other.key"
    load_or_create_key(other)
    with running(*flags, "-c", key, "-a", "127.0.0.1:0") as process:
        where = f"127.0.0.1:{process.address()[1]}"
        done = pyderp("relay", "--check", *flags, "-c", key, "-a", where)
        assert done.returncode == 0, done.stderr
        expected = f"ok: listening on {where}: the relay with this key runs there already"
        assert expected in done.stdout
        done = pyderp("relay", "--check", *flags, "-c", other, "-a", where)
        assert done.returncode == 1
        assert "the port is taken" in done.stderr


def test_ports_of_other_programs_are_a_problem(tmp_path: Path) -> None:
    key = tmp_path / "relay.key"
    load_or_create_key(key)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        where = f"127.0.0.1:{taken.getsockname()[1]}"
        done = pyderp("relay", "--dev", "--no-stun", "-c", key, "--check", "-a", where)
    assert done.returncode == 1
    assert "the port is taken" in done.stderr


@contextlib.contextmanager
def without_certificate(folder: Path) -> Iterator[tuple[Relay, list[object]]]:
    """A relay with each kind of port, all handshakes of which fail; and the same flags for it."""
    authority = ("--certmode=letsencrypt", "--acme-directory=https://127.0.0.1:9/dir")
    flags: tuple[object, ...] = (
        "--dev",
        *authority,
        "--hostname=relay.example.com",
        "--certdir",
        folder,
    )
    flags += ("-c", folder / "relay.key")
    any_port = ("-a", "127.0.0.1:0", "--http-port=0", "--stun-port=0")
    with running(*flags, *any_port, "--metrics-address=127.0.0.1:0") as relay:
        main = relay.address()[1]
        http = relay.wait_for(r"redirecting plain HTTP on 127.0.0.1:(\d+)")[1]
        stun = relay.wait_for(r"--stun-port=(\d+)")[1]
        metrics = relay.wait_for(r"/debug/ on 127.0.0.1:(\d+) only")[1]
        ports = (f"--http-port={http}", f"--stun-port={stun}")
        addresses = ("-a", f"127.0.0.1:{main}", f"--metrics-address=127.0.0.1:{metrics}")
        yield relay, [*flags, *ports, *addresses]


def test_ports_of_a_relay_in_trouble_are_no_problem(tmp_path: Path) -> None:
    """They are found to be the relay's without a handshake, which it would log."""
    with without_certificate(tmp_path) as (relay, flags):
        for more in ((), ("--hostname=other.example.com",)):
            done = pyderp("relay", "--check", *flags, *more)
            assert done.stdout.count("the relay with this key runs there already") == 4
            assert "taken" not in done.stderr
            assert "warning: " not in done.stdout
        relay.signal(signal.SIGTERM)
        assert relay.end() == 0
    assert "no certificate for this client" not in relay.text
    assert "closed: " not in relay.text


def test_ports_behind_a_proxy_protocol_are_no_problem(tmp_path: Path) -> None:
    flags: tuple[object, ...] = ("--dev", "--no-stun", "-c", tmp_path / "relay.key")
    flags += ("--proxy-protocol", "--trusted-proxy=192.0.2.1/32")
    with running(*flags, "-a", "127.0.0.1:0") as relay:
        done = pyderp("relay", "--check", *flags, "-a", f"127.0.0.1:{relay.address()[1]}")
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("kind", ["--stun-port", "--metrics-address", "--http-port"])
def test_a_port_of_another_program_is_a_problem_though_the_relay_runs(
    tmp_path: Path, kind: str
) -> None:
    stun = kind == "--stun-port"
    with (
        without_certificate(tmp_path) as (_, flags),
        socket.socket(type=socket.SOCK_DGRAM if stun else socket.SOCK_STREAM) as foreign,
    ):
        foreign.bind(("127.0.0.1", 0))
        if not stun:
            foreign.listen()
        port = foreign.getsockname()[1]
        where = f"127.0.0.1:{port}" if kind == "--metrics-address" else port
        done = pyderp("relay", "--check", *flags, f"{kind}={where}")
    assert done.returncode == 1
    (line,) = (line for line in done.stderr.splitlines() if "taken" in line)
    assert f"127.0.0.1:{port}: the port is taken" in line
    assert done.stdout.count("the relay with this key runs there already") == 3


def test_a_unix_socket_of_the_relay_is_its_own(tmp_path: Path) -> None:
    flags = ("--dev", "--no-stun", "-c", tmp_path / "relay.key", "-a", f"unix:{tmp_path}/sock")
    with running(*flags) as relay:
        relay.wait_for("admits every client")
        done = pyderp("relay", "--check", *flags)
    assert done.returncode == 0, done.stderr
    assert "runs there already" in done.stdout


@contextlib.contextmanager
def plain_with_metrics(folder: Path) -> Iterator[list[object]]:
    flags = ("--dev", "--no-stun", "-c", folder / "relay.key")
    with running(*flags, "-a", "127.0.0.1:0", "--metrics-address=127.0.0.1:0") as relay:
        main = relay.address()[1]
        metrics = relay.wait_for(r"/debug/ on (127.0.0.1:\d+) only")[1]
        yield [*flags, "-a", f"127.0.0.1:{main}", f"--metrics-address={metrics}"]


def test_a_relay_that_does_not_keep_its_key_file_open_is_recognised(
    here: Callable[..., Done], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is asked for its key. Older versions, and `derper`, do not keep the file open either."""

    def closed(file: Path) -> Iterator[Process]:
        return (dataclasses.replace(each, has_file=False) for each in processes(file))

    monkeypatch.setattr(running_relay, "processes", closed)
    with plain_with_metrics(tmp_path) as flags:
        done = here("relay", "--check", *flags)
    assert (done.code, done.err) == (0, "")
    assert done.out.count("the relay with this key runs there already") == 2


def test_ports_of_invisible_processes_are_in_doubt(
    here: Callable[..., Done], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As for another user than the relay's: neither taken nor fine."""
    monkeypatch.setattr(running_relay, "processes", lambda _: ())
    with plain_with_metrics(tmp_path) as flags:
        done = here("relay", "--check", *flags)
    assert (done.code, done.err) == (0, "")
    assert done.out.count("the relay with this key runs there already") == 1
    assert "warning: /debug/ on 127.0.0.1:" in done.out
    assert "This may be the relay with this key" in done.out
