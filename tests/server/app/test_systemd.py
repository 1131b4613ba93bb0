"""Sockets from systemd and notifications to it, without systemd."""

from __future__ import annotations

import asyncio
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from pyderp.errors import ConfigError
from pyderp.server.app.listeners import Supervisor, _watchdog_interval, inherited_listeners


@pytest.fixture
def manager(tmp_path: Path) -> Iterator[socket.socket]:
    """A socket in the place of systemd's notification socket."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.bind(str(tmp_path / "notify"))
        sock.settimeout(10)
        yield sock


def received(manager: socket.socket) -> list[str]:
    return manager.recv(4096).decode().split("\n")


async def test_ready_reloading_and_stopping_are_sent(manager: socket.socket) -> None:
    supervisor = Supervisor({"NOTIFY_SOCKET": manager.getsockname()})
    supervisor.ready("listening on :443")
    assert received(manager)[:2] == ["READY=1", "STATUS=listening on :443"]
    supervisor.reloading()
    reloading, when = received(manager)
    assert reloading == "RELOADING=1"
    assert int(when.removeprefix("MONOTONIC_USEC=")) > 0
    supervisor.stopping()
    assert received(manager)[0] == "STOPPING=1"
    supervisor.close()


async def test_an_abstract_notify_socket_works() -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        name = f"pyderp-test-{os.getpid()}-{id(sock)}"
        sock.bind("\0" + name)
        sock.settimeout(10)
        Supervisor({"NOTIFY_SOCKET": f"@{name}"}).ready("x")
        assert received(sock)[0] == "READY=1"


async def test_the_watchdog_is_notified_at_half_its_interval(manager: socket.socket) -> None:
    environ = {
        "NOTIFY_SOCKET": manager.getsockname(),
        "WATCHDOG_USEC": "40000",
        "WATCHDOG_PID": str(os.getpid()),
    }
    assert _watchdog_interval(environ) == 0.02
    supervisor = Supervisor(environ)
    supervisor.ready("x")
    assert received(manager)[0] == "READY=1"
    manager.setblocking(False)
    loop = asyncio.get_running_loop()
    for _ in range(4):
        assert await loop.sock_recv(manager, 100) == b"WATCHDOG=1"
    supervisor.close()


@pytest.mark.parametrize(
    "environ",
    [
        {},
        {"NOTIFY_SOCKET": "/nowhere/at/all"},
        {"WATCHDOG_USEC": "1000000", "WATCHDOG_PID": "1"},
        {"WATCHDOG_USEC": "soon"},
    ],
)
async def test_without_a_service_manager_notifications_do_nothing(environ: dict[str, str]) -> None:
    supervisor = Supervisor(environ)
    supervisor.ready("x")
    supervisor.reloading()
    supervisor.stopping()
    supervisor.close()


CHILD = """
import os, socket, sys
os.environ["LISTEN_PID"] = str(os.getpid())
from pyderp.server.app.listeners import inherited_listeners
from pyderp.errors import ConfigError
try:
    found = inherited_listeners()
except ConfigError as e:
    print("error", e)
else:
    kinds = (found.main, found.side, found.stun)
    print([[sock.getsockname()[1] for sock in kind] for kind in kinds])
    print([name for name in os.environ if name.startswith("LISTEN_")])
    print(any(sock.get_inheritable() for kind in kinds for sock in kind))
"""


def in_child(sockets: list[socket.socket], names: str = "", count: str = "") -> list[str]:
    """Return the output of a process that inherits these sockets from descriptor 3 on."""

    def hand_down() -> None:
        # First to high numbers, so that no dup2 overwrites one still needed.
        copies = [os.dup2(sock.fileno(), 100 + i) for i, sock in enumerate(sockets)]
        for i, copy in enumerate(copies):
            os.dup2(copy, 3 + i)

    environ = {**os.environ, "LISTEN_FDS": count or str(len(sockets)), "LISTEN_FDNAMES": names}
    child = subprocess.run(
        [sys.executable, "-c", CHILD],
        env=environ,
        stdout=subprocess.PIPE,
        preexec_fn=hand_down,
        close_fds=False,
        text=True,
        check=True,
        timeout=50,
    )
    return child.stdout.splitlines()


def test_inherited_sockets_are_sorted_by_kind_and_name() -> None:
    with (
        socket.create_server(("127.0.0.1", 0)) as first,
        socket.create_server(("127.0.0.1", 0)) as second,
        socket.create_server(("127.0.0.1", 0)) as side,
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as stun,
    ):
        stun.bind(("127.0.0.1", 0))
        ports = [sock.getsockname()[1] for sock in (first, side, stun, second)]
        said = in_child([first, side, stun, second], "https:http:stun:unknown")
        assert said == [str([[ports[0], ports[3]], [ports[1]], [ports[2]]]), "[]", "False"]


def test_inherited_descriptors_that_cannot_be_used_are_refused() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as sock:
        assert in_child([sock], "deaf")[0].startswith("error the socket deaf of LISTEN_FDS")
    with open("/dev/null", "rb") as file:
        assert "is not a socket" in in_child([file])[0]  # type: ignore[list-item]  # has a fileno


@pytest.mark.parametrize(
    "environ",
    [{}, {"LISTEN_FDS": "1"}, {"LISTEN_FDS": "1", "LISTEN_PID": "1"}, {"LISTEN_PID": "1"}],
)
def test_sockets_for_another_process_are_ignored(environ: dict[str, str]) -> None:
    assert inherited_listeners(environ) is None
    assert environ == {}


def test_a_listen_fds_that_is_no_number_is_refused() -> None:
    with pytest.raises(ConfigError, match="is not a number"):
        inherited_listeners({"LISTEN_FDS": "x", "LISTEN_PID": str(os.getpid())})
