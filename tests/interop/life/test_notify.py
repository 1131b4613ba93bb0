"""Notifications of a service manager, from the start to the end."""

from __future__ import annotations

import contextlib
import signal
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cli.process import BOUND

from .support import service


class Manager:
    """systemd's side of the notify socket."""

    def __init__(self, path: Path) -> None:
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind(str(path))
        self._socket.settimeout(BOUND)
        self.environment = {"NOTIFY_SOCKET": str(path), "WATCHDOG_USEC": "200000"}

    def close(self) -> None:
        self._socket.close()

    def next_state(self) -> dict[str, str]:
        """The next message other than a watchdog ping."""
        while True:
            text = self._socket.recv(4096).decode()
            if text != "WATCHDOG=1":
                return dict(line.split("=", 1) for line in text.split("\n"))

    def next_watchdog(self) -> None:
        while self._socket.recv(4096) != b"WATCHDOG=1":
            pass

    def rest(self) -> set[str]:
        """All remaining messages."""
        self._socket.setblocking(False)
        found = set()
        with contextlib.suppress(BlockingIOError):
            while True:
                found.add(self._socket.recv(4096).decode())
        return found


@pytest.fixture
def manager(tmp_path: Path) -> Iterator[Manager]:
    made = Manager(tmp_path / "notify")
    yield made
    made.close()


@pytest.mark.parametrize("loop", ["asyncio", "uvloop"])
def test_the_service_manager_is_notified_of_each_step(
    loop: str, manager: Manager, tmp_path: Path
) -> None:
    keys = tmp_path / "relay.toml"
    keys.write_text('drain = "0.6s"\n')
    flags = ["--dev", "--no-stun", "-a", "127.0.0.1:0", f"--loop={loop}", f"--config-file={keys}"]
    with service(*flags, log=tmp_path / "log", extra=manager.environment) as relay:
        ready = manager.next_state()
        assert ready["READY"] == "1"
        assert int(ready["MAINPID"]) == relay.popen.pid
        assert (
            ready["STATUS"]
            == f"listening on 127.0.0.1:{relay.port}, http://127.0.0.1:{relay.port}/derp"
        )
        with contextlib.ExitStack() as stack:
            there = ("127.0.0.1", relay.port)
            silent = [
                stack.enter_context(socket.create_connection(there, timeout=BOUND))
                for _ in range(20)  # closed over the time of the drain
            ]
            manager.next_watchdog()
            manager.next_watchdog()
            for text in ('drain = "0.7s"\n', "drain = \n"):  # an error does not stop it either
                keys.write_text(text)
                before = time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000
                relay.signal(signal.SIGHUP)
                reloading = manager.next_state()
                assert reloading["RELOADING"] == "1"
                assert before <= int(reloading["MONOTONIC_USEC"])
                assert manager.next_state()["READY"] == "1"
            relay.signal(signal.SIGTERM)
            assert manager.next_state()["STOPPING"] == "1"
            relay.signal(signal.SIGHUP)  # too late
            manager.next_watchdog()  # it does not hang: it waits for clients
            assert relay.popen.wait(BOUND) == 0
            assert [sock.recv(1) for sock in silent] == [b""] * 20
        assert manager.rest() <= {"WATCHDOG=1"}


def test_a_relay_that_cannot_start_is_never_ready(manager: Manager, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        flags = ["--dev", "--no-stun", "-a", f"127.0.0.1:{taken.getsockname()[1]}"]
        with service(*flags, log=tmp_path / "log", extra=manager.environment) as relay:
            assert relay.popen.wait(BOUND) == 1
    assert manager.rest() == set()
