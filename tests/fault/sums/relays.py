"""A relay in its own process, and its counters."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, Final

from tests.cli.process import environment
from tests.interop.life.support import _before_exec
from tests.server.certificates import trusting_nobody, write_pair
from tests.server.ways import NAME

from .peer import BOUND

__all__ = ["ROOT", "CountedRelay", "Stop", "Totals", "counted_relay", "port_of"]

_POLL: Final = 0.02
ROOT: Final = Path(__file__).parents[3]
"""Where `python -m tests…` is started."""


@dataclass(frozen=True)
class Stop:
    """How a relay stopped, as its own process recorded it.

    Attributes:
        signalled: when its log has the signal.
        deadline: when it meant to be done; both in seconds since the epoch.
        late_turns: turns of its loop after that.
        late_seconds: seconds after that.
        ends: connections that ended, by reason.
    """

    signalled: float
    deadline: float
    late_turns: int
    late_seconds: float
    ends: dict[str, int]


@dataclass(frozen=True)
class Totals:
    """The counters of a relay so far."""

    received: int
    bytes_received: int
    disco_received: int
    sent: int
    bytes_sent: int
    forwarded_in: int
    forwarded_out: int
    dropped: dict[str, int]
    bytes_dropped: dict[str, int]
    disco_dropped: int

    @classmethod
    def of(cls, derp: dict[str, Any], packets: dict[str, Any], size: dict[str, Any]) -> Totals:
        return cls(
            received=derp["packets_received"],
            bytes_received=derp["bytes_received"],
            disco_received=derp["counter_packets_received_kind"]["disco"],
            sent=derp["packets_sent"],
            bytes_sent=derp["bytes_sent"],
            forwarded_in=derp["packets_forwarded_in"],
            forwarded_out=derp["packets_forwarded_out"],
            dropped={reason: sum(kinds.values()) for reason, kinds in packets.items()},
            bytes_dropped={reason: sum(kinds.values()) for reason, kinds in size.items()},
            disco_dropped=sum(kinds["disco"] for kinds in packets.values()),
        )

    @property
    def unaccounted(self) -> int:
        """Packets that were received, and neither sent nor dropped."""
        taken = self.received + self.forwarded_in
        return taken - self.sent - self.forwarded_out - sum(self.dropped.values())

    def __str__(self) -> str:
        drops = {reason: count for reason, count in self.dropped.items() if count}
        return (
            f"received {self.received} ({self.bytes_received} B), sent {self.sent} "
            f"({self.bytes_sent} B), forwarded in {self.forwarded_in}, out {self.forwarded_out}, "
            f"dropped {drops} ({sum(self.bytes_dropped.values())} B)"
        )


class CountedRelay:
    """`pyderp relay` in its own process.

    Args:
        kind: how clients reach it.
        folder: for its files.
        loop: `uvloop` or `asyncio`.
        arguments: more flags.
        files: limit of open files.
    """

    def __init__(
        self, kind: str, folder: Path, loop: str, *arguments: str, files: int | None = None
    ) -> None:
        self.over_tls = kind in ("tls", "websocket over tls")
        self._log = folder / "log"
        self._counters = folder / "counters.json"
        command = [sys.executable, "-m", "tests.fault.sums.countedrelay", "relay"]
        command += ["-a", "127.0.0.1:0", "--no-stun", f"--loop={loop}"]
        if self.over_tls:
            write_pair(folder, NAME)
            command += [
                "--certmode=manual",
                f"--certdir={folder}",
                f"--hostname={NAME}",
                "--http-port=-1",
                f"--config={folder / 'relay.key'}",
            ]
        else:
            command += ["--dev"]
        with self._log.open("wb") as output:
            self.popen = subprocess.Popen(
                [*command, *arguments],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                cwd=ROOT,
                env=environment(SUMS_COUNTERS=str(self._counters)),
                preexec_fn=_before_exec((), files),
            )
        self.address = ("127.0.0.1", 0)

    def text(self) -> str:
        """Its log."""
        return self._log.read_text(errors="replace")

    def wait_until_ready(self) -> None:
        """Wait until it listens."""
        self.wait_for("admits every client")
        self.address = ("127.0.0.1", port_of(self.text()))

    def wait_for(self, text: str) -> None:
        """Wait until its log has a text."""
        deadline = time.monotonic() + BOUND
        while text not in self.text():
            assert self.popen.poll() is None, self.text()
            assert time.monotonic() < deadline, f"{text!r} is not in the log:\n{self.text()}"
            time.sleep(_POLL)

    def signal(self, number: signal.Signals) -> None:
        self.popen.send_signal(number)

    async def ends(self) -> Totals:
        """Wait until it has ended; returns its counters."""
        code = await asyncio.to_thread(self.popen.wait, 2 * BOUND)
        assert code == 0, f"ended with {code}\n{self.text()}"
        derp = self._at_the_end()
        return Totals.of(derp, derp["packets_dropped"], derp["bytes_dropped"])

    def _at_the_end(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self._counters.read_text())
        return found

    def stopped(self) -> Stop:
        """How it stopped, once it has ended."""
        found = self._at_the_end()
        (line,) = (line for line in self.text().splitlines() if "SIGTERM: stopping" in line)
        signalled = datetime.strptime(line[:23], "%Y-%m-%d %H:%M:%S,%f").timestamp()
        return Stop(signalled, **found["stop"], ends=found["ends"])

    async def variables(self) -> dict[str, Any]:
        """`/debug/vars`, now."""
        context = trusting_nobody() if self.over_tls else None
        async with asyncio.timeout(BOUND):
            reader, writer = await asyncio.open_connection(
                *self.address, ssl=context, server_hostname=NAME if context else None
            )
            writer.write(
                b"GET /debug/vars HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n"
            )
            answer = await reader.read(-1)
            writer.close()
            with contextlib.suppress(OSError):
                await writer.wait_closed()
        found: dict[str, Any] = json.loads(answer.partition(b"\r\n\r\n")[2])
        return found

    async def totals(self) -> Totals:
        """Its counters so far."""
        top = await self.variables()
        return Totals.of(top["derp"], top["derp_packets_dropped"], top["derp_bytes_dropped"])

    async def clients(self) -> int:
        """Connections that are logged in."""
        top = await self.variables()
        return int(top["derp"]["gauge_current_connections"])

    def check_log(self) -> None:
        """Fail if it logged an unexpected error."""
        text = self.text()
        assert "Traceback" not in text, text[-4000:]
        assert "never retrieved" not in text, text[-4000:]


def port_of(log: str) -> int:
    """The port on which a relay listens, from its log."""
    return int(log.partition("INFO listening on ")[2].partition(",")[0].rpartition(":")[2])


@contextlib.contextmanager
def counted_relay(
    kind: str, folder: Path, loop: str, *arguments: str, files: int | None = None
) -> Iterator[CountedRelay]:
    """Run one until the block ends."""
    folder.mkdir(exist_ok=True)
    relay = CountedRelay(kind, folder, loop, *arguments, files=files)
    try:
        relay.wait_until_ready()
        yield relay
        relay.check_log()
    finally:
        # A stopped process handles no other signal.
        with contextlib.suppress(ProcessLookupError):
            os.kill(relay.popen.pid, signal.SIGCONT)
        relay.popen.kill()
        relay.popen.wait()
