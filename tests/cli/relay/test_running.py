"""`--check` with the settings of a relay that runs: its own ports are no problem."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest

from pyderp.keys import load_or_create_key
from tests.cli.process import pyderp, running
from tests.server.certificates import write_pair
from tests.server.ways import NAME


@pytest.mark.parametrize("tls", [False, True])
def test_a_running_relay_does_not_stand_in_its_own_way(tmp_path: Path, tls: bool) -> None:
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
        told = f"ok: listening on {where}: the relay with this key runs there already"
        assert told in done.stdout
        done = pyderp("relay", "--check", *flags, "-c", other, "-a", where)
        assert done.returncode == 1
        assert "the port is taken" in done.stderr


def test_what_else_listens_there_is_a_problem(tmp_path: Path) -> None:
    key = tmp_path / "relay.key"
    load_or_create_key(key)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        where = f"127.0.0.1:{taken.getsockname()[1]}"
        done = pyderp("relay", "--dev", "--no-stun", "-c", key, "--check", "-a", where)
    assert done.returncode == 1
    assert "the port is taken" in done.stderr
