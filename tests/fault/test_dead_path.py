"""A path that drops every packet, in its own network namespace and on the kernel's clock.

The relay gets no sign of it: no FIN, no reset, no ICMP. The tests with a fake clock are in
tests/server/conn/test_paths.py.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Final

import pytest

from pyderp.keys import NodePrivate
from tests.cli.process import environment
from tests.interop.server.support import Metrics, parse_metrics, request
from tests.interop.tailscaled.processes import Daemon, daemon
from tests.server.dial import drained

from .paths import Paths, paths
from .sums.packets import Ledger
from .sums.peer import Peer
from .sums.relays import port_of

TIMEOUT: Final = 2
"""Seconds of `--tcp-user-timeout` here."""
OTHERS: Final = ("--tcp-write-timeout=600", "--tcp-keepalive-time=0")
"""No other timeout may end a client meanwhile."""
LATE: Final = 20
"""Seconds after the timeout: 2 by the relay's and the kernel's timers, the rest for a machine
that is busy. Whatever else might end the connection takes minutes."""
BOUND: Final = 60.0
"""Seconds that a step may take; probes of a closed window become less and less frequent."""
SMALL_BUFFER: Final = 4096
PACKET: Final = 20_000

pytestmark = [pytest.mark.timeout(150), pytest.mark.slow]


@pytest.fixture
def inside() -> Iterator[Paths]:
    # One for each test: in the next, the kernel might reuse a dead port for another connection.
    with paths() as made:
        yield made


class Relay:
    """`pyderp relay` in the namespace."""

    def __init__(self, running: Daemon, inside: Paths) -> None:
        running.wait_for_line("(admits every client)")
        self.running = running
        self.inside = inside
        self.address = ("127.0.0.1", port_of(running.log.read_text()))
        self.peers: list[Peer] = []

    async def client(self, receive_buffer: int = 0) -> Peer:
        """A client that is logged in."""
        peer = Peer(
            "plain",
            Ledger(),
            NodePrivate.generate(),
            sock=self.inside.socket(receive_buffer),
        )
        self.peers.append(peer)
        return await peer.connect(self.address)

    async def metrics(self) -> Metrics:
        """The present values."""
        sock = self.inside.socket()
        await asyncio.get_running_loop().sock_connect(sock, self.address)
        reader, writer = await asyncio.open_connection(sock=sock)
        writer.write(request("/debug/varz"))
        answer = await drained(reader)
        writer.close()
        await writer.wait_closed()
        return parse_metrics(answer.decode())

    async def ended(self) -> dict[str, int]:
        """How many connections ended for which reason, without the requests for metrics."""
        found = {}
        for name, value in (await self.metrics()).items():
            match = re.fullmatch(r'pyderp_connections_ended_total\{reason="(\w+)"\}', name)
            if match and value and match[1] != "answered":
                found[match[1]] = int(value)
        return found

    async def until_ended(self) -> dict[str, int]:
        """Wait until a connection has ended; returns all reasons, and how many each."""
        async with asyncio.timeout(BOUND):
            while not (ended := await self.ended()):  # noqa: ASYNC110 (there is no event)
                await asyncio.sleep(0.05)
        return ended

    async def fill(self, sender: Peer, full: Peer) -> None:
        """Send until packets were dropped for a client that does not read."""
        name = 'derp_packets_dropped{reason="queue_head",kind="other"}'
        before = (await self.metrics())[name]
        while (await self.metrics())[name] == before:
            await sender.send_run(full.key, [PACKET] * 20)
            await sender.ping()

    def reason_of(self, peer: Peer, text: str) -> re.Match[str]:
        """The line of the log with the reason why a client was closed, and no other client was
        closed."""
        log = self.running.log.read_text()
        (line,) = re.findall(r"^.* WARNING client .*$", log, re.MULTILINE)
        match = re.search(rf"client \d+ 127\.0\.0\.1:{peer.port} \S+ closed: {text}", line)
        assert match, line
        return match


@contextlib.asynccontextmanager
async def relay(inside: Paths, folder: Path, loop: str, *flags: str) -> AsyncIterator[Relay]:
    command = [sys.executable, "-m", "pyderp", "relay", "--dev", "-a", "127.0.0.1:0", "--no-stun"]
    with daemon(
        inside.namespace,
        [*command, f"--loop={loop}", *OTHERS, *flags],
        folder / "log",
        environment(),
    ) as running:
        made = Relay(running, inside)
        try:
            yield made
        finally:
            for peer in made.peers:
                peer.close()
            await asyncio.sleep(0)


@pytest.mark.parametrize("loop", ["asyncio", "uvloop"])
def test_a_client_behind_a_dead_path_is_ended_and_slow_readers_live(
    inside: Paths, tmp_path: Path, loop: str
) -> None:
    """It is counted and logged with its reason; a client that acknowledges stays, however slow."""

    async def main() -> None:
        async with relay(inside, tmp_path, loop, f"--tcp-user-timeout={TIMEOUT}") as served:
            sender = await served.client()
            dead = await served.client()
            # One reads a little, but less often than the timeout; the other does not read.
            slow = await served.client(SMALL_BUFFER)
            slow.read_slowly(1000 / (1.5 * TIMEOUT), 1000)
            stalled = await served.client(SMALL_BUFFER)
            stalled.stop_reading()
            await served.fill(sender, slow)
            await served.fill(sender, stalled)
            assert await dead.ping()

            inside.kill(dead.port)
            await sender.send(dead.key, 100)
            assert await served.until_ended() == {"dead_path": 1}
            for peer in (sender, slow, stalled):
                assert not peer.end
            seconds = int(served.reason_of(dead, r".* acknowledged nothing for (\d+) s")[1])
            print(f"{loop}: ended {seconds} s after the last acknowledgement")  # noqa: T201
            assert TIMEOUT <= seconds <= TIMEOUT + LATE
            # Both are still served.
            for peer in (slow, stalled):
                peer.read_on()
                assert await peer.ping()
                await peer.leave()
                assert peer.end == "eof"

    asyncio.run(main())


def test_a_path_that_dies_while_the_window_is_closed(inside: Paths, tmp_path: Path) -> None:
    """First, three probes of the window must go unanswered."""

    async def main() -> None:
        async with relay(inside, tmp_path, "uvloop", f"--tcp-user-timeout={TIMEOUT}") as served:
            sender = await served.client()
            dead = await served.client(SMALL_BUFFER)
            dead.stop_reading()
            await served.fill(sender, dead)
            inside.kill(dead.port)
            assert await served.until_ended() == {"dead_path": 1}
            seconds = int(served.reason_of(dead, r".* acknowledged nothing for (\d+) s")[1])
            print(f"ended {seconds} s after the last acknowledgement")  # noqa: T201
            assert seconds >= TIMEOUT

    asyncio.run(main())


@pytest.mark.parametrize("loop", ["asyncio", "uvloop"])
def test_a_connection_that_the_kernel_gives_up_is_logged_and_counted(
    inside: Paths, tmp_path: Path, loop: str
) -> None:
    """Without a timeout of the relay, the kernel's own number of retries counts."""
    inside.namespace.write_sysctl("ipv4/tcp_retries2", "3")

    async def main() -> None:
        async with relay(inside, tmp_path, loop, "--tcp-user-timeout=0") as served:
            sender = await served.client()
            dead = await served.client()
            inside.kill(dead.port)
            await sender.send(dead.key, 100)
            assert await served.until_ended() == {"timed_out": 1}
            served.reason_of(dead, "connection lost: .*timed out")

    asyncio.run(main())
