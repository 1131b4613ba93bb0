"""A new relay takes over from an old one while clients talk, and nobody is turned away."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import socket
import time
from pathlib import Path

import pytest

from pyderp import Client
from tests.interop.client.support import DIRECT
from tests.interop.front.seen import connections

from .support import Service, Talker, hear, plain_config, service, talking, until

TALKERS = 24
DRAIN = 1.0


class Knocking:
    """Connects, logs in and leaves, again and again."""

    def __init__(self, url: str) -> None:
        self._url = url
        self.served = 0
        self.refused: list[OSError] = []
        self.cut = 0
        """Logins that the old relay began and did not end."""

    async def run(self, port: int) -> None:
        loop = asyncio.get_running_loop()
        while True:
            with socket.socket() as sock:
                sock.setblocking(False)
                try:
                    await loop.sock_connect(sock, ("127.0.0.1", port))
                except OSError as e:
                    self.refused.append(e)
                    continue
                try:
                    await loop.sock_sendall(sock, b"GET /derp/probe HTTP/1.1\r\nHost: x\r\n\r\n")
                    answer = await loop.sock_recv(sock, 1000)
                except OSError:
                    answer = b""
            if answer.startswith(b"HTTP/1.1 200"):
                self.served += 1
            else:
                self.cut += 1


async def replace(old: Service, start_new: object, log: Path) -> None:
    """What is common to both ways."""


def arguments(directory: Path, port: int, loop: str, *more: str) -> list[str]:
    key = directory / "relay.json"
    return ["-a", f"127.0.0.1:{port}", "-c", str(key), "--no-stun", f"--drain={DRAIN}", f"--loop={loop}", *more]


async def take_over(old: Service, port: int, make_new: object) -> None:
    assert callable(make_new)
    url = f"http://127.0.0.1:{port}/derp"
    talkers = [Talker(url) for _ in range(TALKERS)]
    knocking = Knocking(url)
    async with talking(talkers, every=0.02), asyncio.TaskGroup() as group:
        knocks = group.create_task(knocking.run(port))
        await hear(talkers)
        with make_new() as new:
            await asyncio.to_thread(lambda: new.port)
            begin = time.monotonic()
            old.signal(signal.SIGTERM)
            assert await old.ends() == 0
            end = time.monotonic()
            print("old ended after", end - begin)
            await hear(talkers)
            knocks.cancel()
            rows = await connections(port, None)
            assert rows.keys() == {str(each.client.self_public_key) for each in talkers}
            print("served", knocking.served, "cut", knocking.cut, "refused", knocking.refused)
            print("restarting", [len(each.restarting) for each in talkers], "failures", sum(len(t.failures) for t in talkers))
            for t in talkers:
                sent = [float(d) for _, d in t.received]
                gaps = [(b-a, a-begin) for a, b in zip(sent, sent[1:]) if b-a > .15]
                print(len(sent), gaps)
            new.check()


@pytest.mark.parametrize("loop", ["asyncio", "uvloop"])
def test_sockets_handed_down(loop: str, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as sock:
        port = sock.getsockname()[1]
        def make():
            return service(*arguments(tmp_path, 0, loop), log=tmp_path / "new.log", sockets=[sock])
        with service(*arguments(tmp_path, 0, loop), log=tmp_path / "old.log", sockets=[sock]) as old:
            assert old.port == port
            asyncio.run(take_over(old, port, make))

@pytest.mark.parametrize("loop", ["asyncio", "uvloop"])
def test_reuse_port(loop: str, tmp_path: Path) -> None:
    with service(*arguments(tmp_path, 0, loop, "--reuse-port"), log=tmp_path / "old.log") as old:
        port = old.port
        def make():
            return service(*arguments(tmp_path, port, loop, "--reuse-port"), log=tmp_path / "new.log")
        asyncio.run(take_over(old, port, make))
