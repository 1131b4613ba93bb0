"""Without free file descriptors the relay serves its connections, closes new ones, and recovers."""

from __future__ import annotations

import asyncio
import contextlib
import os
import resource
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from pyderp import ConnectError
from tests.cli.process import BOUND
from tests.waiting import until

from .support import Service, Talker, service, talking, until_received

FILES = 120
FLOOD = 300


@contextlib.contextmanager
def flood(port: int, count: int = FLOOD) -> Iterator[list[socket.socket]]:
    """This many connections that send nothing."""
    socks: list[socket.socket] = []
    try:
        for _ in range(count):
            socks += [socket.create_connection(("127.0.0.1", port), timeout=BOUND)]
        yield socks
    finally:
        for sock in socks:
            sock.close()


def shed(socks: list[socket.socket]) -> int:
    """How many of them the relay has closed."""
    count = 0
    for sock in socks:
        sock.setblocking(False)
        try:
            count += sock.recv(1) == b""
        except BlockingIOError:
            pass
        except ConnectionError:
            count += 1
    return count


def open_files(relay: Service) -> int:
    return len(os.listdir(f"/proc/{relay.popen.pid}/fd"))


def cpu(relay: Service) -> float:
    """Seconds of CPU time that it has used."""
    fields = Path(f"/proc/{relay.popen.pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / 100


@pytest.mark.parametrize("loop", ["asyncio", "uvloop"])
def test_connections_above_the_limit_are_closed(loop: str, tmp_path: Path) -> None:
    async def main(relay: Service) -> None:
        url = f"http://127.0.0.1:{relay.port}/derp"
        talkers = [Talker(url), Talker(url)]
        async with talking(talkers):
            lines = relay.text().count("\n")
            with flood(relay.port) as socks:
                await until(lambda: shed(socks) > FLOOD - FILES)
                await until_received(talkers)
                assert shed(socks) < FLOOD  # some are accepted
                assert FILES / 2 < open_files(relay) < FILES
            said = relay.text().splitlines()[lines:]
            assert len(said) < 5
            assert any("out of file descriptors" in line for line in said)
            # Descriptors are free again once the relay has noticed the ends.
            await until_served(url)
            assert all(talker.client.generation == 1 for talker in talkers)
        assert not any(talker.failures for talker in talkers)

    flags = ["--dev", "--no-stun", "-a", "127.0.0.1:0", f"--loop={loop}"]
    with service(*flags, log=tmp_path / "log", files=FILES) as relay:
        asyncio.run(main(relay))


async def until_served(url: str) -> None:
    """Log in, as often as needed."""
    async with asyncio.timeout(BOUND):
        while True:
            newcomers = [Talker(url), Talker(url)]
            try:
                async with talking(newcomers):
                    await until_received(newcomers)
                return
            except ExceptionGroup as e:
                # The relay has not noticed all ends yet, and closes these, too.
                if e.split(ConnectError)[1] is not None:
                    raise
                await asyncio.sleep(0.05)


@pytest.mark.parametrize("loop", ["asyncio", "uvloop"])
def test_the_limit_of_the_process_is_survived(loop: str, tmp_path: Path) -> None:
    """As when other files use up the descriptors, in this process or in the whole system."""

    async def main(relay: Service) -> None:
        url = f"http://127.0.0.1:{relay.port}/derp"
        talkers = [Talker(url), Talker(url)]
        async with talking(talkers):
            lines = relay.text().count("\n")
            pid = relay.popen.pid
            before = resource.prlimit(pid, resource.RLIMIT_NOFILE)
            resource.prlimit(pid, resource.RLIMIT_NOFILE, (open_files(relay), before[1]))
            with flood(relay.port, 60):
                used = cpu(relay)
                for _ in range(3):  # asyncio tries again each second
                    await until_received(talkers)
                    await asyncio.sleep(0.4)
                assert cpu(relay) - used < 0.6
            said = relay.text().splitlines()[lines:]
            assert len(said) <= 1
            assert all("cannot accept connections for now: [Errno 24]" in line for line in said)
            assert loop == "uvloop" or said
            resource.prlimit(pid, resource.RLIMIT_NOFILE, before)
            await until_served(url)
        assert not any(talker.failures for talker in talkers)

    flags = ["--dev", "--no-stun", "-a", "127.0.0.1:0", f"--loop={loop}"]
    with service(*flags, log=tmp_path / "log") as relay:
        asyncio.run(main(relay))
