"""A new relay replaces an old one while clients send, and no connection is refused."""

from __future__ import annotations

import asyncio
import signal
import socket
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TypeAlias

import pytest

from tests.interop.front.seen import connections
from tests.waiting import until

from .support import Service, Talker, service, talking, until_received

TALKERS = 16
DRAIN = 0.6

Start: TypeAlias = Callable[[str], AbstractContextManager[Service]]
"""Starts a relay, with a name for its log."""

HTTP = b"GET /derp/probe HTTP/1.1\r\nHost: x\r\n\r\n"


class PageRequests:
    """Requests a page repeatedly, on new connections."""

    def __init__(self) -> None:
        self.served = 0
        self.refused: list[str] = []
        self.cut = 0
        """Connections that were closed before the answer."""

    async def run(self, port: int) -> None:
        while True:
            try:
                reader, writer = await asyncio.open_connection("127.0.0.1", port)
            except OSError as e:
                self.refused.append(str(e))
                continue
            try:
                writer.write(HTTP)
                answer = await reader.read(1000)
            except OSError:
                answer = b""
            finally:
                writer.close()
            if answer.startswith(b"HTTP/1.1 200"):
                self.served += 1
            else:
                self.cut += 1


def arguments(directory: Path, port: int, loop: str, *more: str) -> list[str]:
    key = directory / "relay.json"
    address = f"127.0.0.1:{port}"
    return ["-a", address, "-c", str(key), "--no-stun", f"--drain={DRAIN}", f"--loop={loop}", *more]


async def take_over(start: Start) -> None:
    """Replace the relay as a service manager or an operator does."""
    with start("old") as old:
        port = await asyncio.to_thread(lambda: old.port)
        url = f"http://127.0.0.1:{port}/derp"
        talkers = [Talker(url) for _ in range(TALKERS)]
        requests = PageRequests()
        async with talking(talkers), asyncio.TaskGroup() as group:
            requesting = group.create_task(requests.run(port))
            await until_received(talkers)
            with start("new") as new:
                assert await asyncio.to_thread(lambda: new.port) == port
                begin = time.monotonic()
                old.signal(signal.SIGTERM)
                assert await old.ends() == 0
                await until(lambda: len(talkers) == sum(len(t.restarting) for t in talkers))
                await until_received(talkers)
                requesting.cancel()
                rows = await connections(port, None)
                assert rows.keys() == {str(each.client.self_public_key) for each in talkers}
                assert all(each.client.generation == 2 for each in talkers)
    assert requests.refused == []
    assert requests.served > 10
    # A connection that the old relay had just accepted may be among the first that it closes.
    assert requests.cut <= 1
    check_packets(talkers, begin)


def check_packets(talkers: list[Talker], begin: float) -> None:
    """All packets sent before the switch arrived, in order."""
    for sender, receiver in zip(talkers, (*talkers[1:], talkers[0]), strict=True):
        arrived = [float(data) for _, data in receiver.received]
        assert arrived == sorted(arrived)
        # A packet sent during the switch may have met a peer that had left already.
        before = [sent for sent in sender.sent if sent < begin - 0.2]
        assert set(before) <= set(arrived)
        assert len(arrived) > len(before) > 0
        assert arrived[-1] > begin


@pytest.mark.parametrize("loop", ["uvloop"])
def test_a_socket_can_be_handed_down(loop: str, tmp_path: Path) -> None:
    """As by systemd's socket units: the socket outlives both relays."""
    with socket.create_server(("127.0.0.1", 0)) as sock:

        def start(name: str) -> AbstractContextManager[Service]:
            # The address in the settings does not count then.
            flags = arguments(tmp_path, 0, loop)
            return service(*flags, log=tmp_path / f"{name}.log", sockets=[sock])

        asyncio.run(take_over(start))


@pytest.mark.parametrize("loop", ["asyncio"])
def test_both_relays_can_listen_with_reuse_port(loop: str, tmp_path: Path) -> None:
    """Without a parent that keeps the socket."""
    with socket.socket() as keeper:
        # So that no other process takes the port between the two.
        keeper.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        keeper.bind(("127.0.0.1", 0))
        flags = arguments(tmp_path, keeper.getsockname()[1], loop, "--reuse-port")
        asyncio.run(take_over(lambda name: service(*flags, log=tmp_path / f"{name}.log")))


@pytest.mark.parametrize("loop", ["uvloop"])
def test_clients_in_the_queue_of_the_old_relay_are_served(loop: str, tmp_path: Path) -> None:
    """With --reuse-port the kernel distributes connections, also to a relay that is busy."""
    with socket.socket() as keeper:
        keeper.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        keeper.bind(("127.0.0.1", 0))
        port = keeper.getsockname()[1]
        flags = arguments(tmp_path, port, loop, "--reuse-port")
        with (
            service(*flags, log=tmp_path / "old.log") as old,
            service(*flags, log=tmp_path / "new.log") as new,
        ):
            assert old.port == new.port == port
            old.signal(signal.SIGSTOP)
            waiting = []
            try:
                for _ in range(60):
                    sock = socket.create_connection(("127.0.0.1", port), timeout=10)
                    waiting.append(sock)
                    sock.sendall(HTTP)
                old.signal(signal.SIGTERM)
                old.signal(signal.SIGCONT)
                answers = [sock.recv(1000).partition(b"\r\n")[0] for sock in waiting]
            finally:
                for sock in waiting:
                    sock.close()
            assert answers == [b"HTTP/1.1 200 OK"] * 60
            assert old.popen.wait(10) == 0
