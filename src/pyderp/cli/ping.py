"""`pyderp ping`: round trips to a relay, or through it to a peer; and the packets for that.

    ping   "pyderp\\0ping" ‖ id 8 ‖ time 8
    pong   "pyderp\\0pong" ‖ id 8 ‖ time 8, both as in the ping
    probe  "TS💬" ‖ "pyderp\\0probe" ‖ zeros, 62 bytes

The id is random. The time is the sender's wall clock, nanoseconds since 1970, big-endian; it
is for people who look at packets, and nothing is computed from it.

A relay reports that a peer is not there only in answer to packets that look like Tailscale's
path discovery. A probe does. `pyderp listen` ignores it, and so does Tailscale, which does not
know its sender.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import math
import os
import statistics
import time
from dataclasses import dataclass, field
from typing import Annotated, Final

import typer

from pyderp.cli.connect_options import (
    ConnectOptions,
    ReportingClient,
    admitted,
    seconds,
    split_targets,
    with_connect_options,
)
from pyderp.cli.output import Output
from pyderp.cli.parameters import whole_number
from pyderp.defaults import PING_TIMEOUT
from pyderp.errors import ConnectError, ConnectionClosed, DerpError, NotConnected
from pyderp.keys import NodePublic
from pyderp.wire.frames import DISCO_MAGIC, DISCO_MIN_LEN
from pyderp.wire.messages import Message, PeerGone, ReceivedPacket

__all__ = ["EPILOG", "HELP", "ID_LEN", "PROBE", "make_ping", "ping", "pong_for_untrusted"]
__all__ += ["pong_id_untrusted"]

HELP: Final = "Measure round trips to a relay, or through it to a peer that runs `pyderp listen`."

ID_LEN: Final = 8
_TIME_LEN: Final = 8
_PING: Final = b"pyderp\0ping"
_PONG: Final = b"pyderp\0pong"
_LEN: Final = len(_PING) + ID_LEN + _TIME_LEN

PROBE: Final = (DISCO_MAGIC + b"pyderp\0probe").ljust(DISCO_MIN_LEN, b"\0")

EPILOG: Final = """**Examples**

Round trips to a relay:

`pyderp ping https://derp.example.com/derp`

To a peer that runs `pyderp listen` on the same relay, until Ctrl-C:

`pyderp ping https://derp.example.com/derp nodekey:… --count 0`

For a script, one object a line, the statistics last:

`pyderp ping https://derp.example.com/derp --count 20 --interval 0.1 --json`
"""


@with_connect_options
def ping(
    options: ConnectOptions,
    targets: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[URL] [PEER]",
            help="The relay: https://HOST[:PORT]/derp, left out with --derp-map. A peer: "
            "nodekey: and 64 hex digits; without one the relay itself answers.",
            show_default=False,
        ),
    ] = None,
    count: Annotated[
        int, whole_number("N", "Number of pings. 0: until Ctrl-C.", "-c", "--count", least=0)
    ] = 5,
    interval: Annotated[
        float,
        seconds(
            "From one ping to the next, unless the answer takes longer.",
            "-i",
            "--interval",
            least=0,
        ),
    ] = 1.0,
    timeout: Annotated[
        float, seconds("A later answer counts as lost.", most=PING_TIMEOUT)
    ] = PING_TIMEOUT,
) -> None:
    """The command; `HELP` says what it does."""
    url, peer = split_targets(targets or [])

    async def work(client: ReportingClient, output: Output) -> int:
        target = _Target(client) if peer is None else _Peer(client, peer)
        return await _Pings(target, output, timeout).run(count, interval)

    options.run(url, work)


class _Target:
    """The target of pings: the relay; `_Peer` is a peer."""

    name = "the relay"

    def __init__(self, client: ReportingClient) -> None:
        self.client = client

    async def ping(self) -> float:
        """One round trip, in seconds."""
        return await self.client.ping()

    async def receive(self) -> None:
        """Receive for ever; otherwise the connection would fill up with messages."""
        async for message in self.client:
            self.take(message)

    def take(self, message: Message) -> None:
        """Look at a message that came; the client itself takes the relay's pongs."""


class _NotThere(DerpError):
    """The relay says that the peer is not there."""


class _Peer(_Target):
    def __init__(self, client: ReportingClient, peer: NodePublic) -> None:
        super().__init__(client)
        self.name = str(peer)
        self._peer = peer
        self._waiting: dict[bytes, asyncio.Future[float]] = {}
        self._answered = False

    async def ping(self) -> float:
        ping_id = os.urandom(ID_LEN)
        answer: asyncio.Future[float] = asyncio.get_running_loop().create_future()
        self._waiting[ping_id] = answer
        answered, self._answered = self._answered, False
        try:
            if not answered:
                await self.client.send(self._peer, PROBE)
            began = time.perf_counter()
            await self.client.send(self._peer, make_ping(ping_id, time.time_ns()))
            seconds = await answer - began
            self._answered = True
            return seconds
        finally:
            del self._waiting[ping_id]

    def take(self, message: Message) -> None:
        now = time.perf_counter()  # the loop's own clock may be one of milliseconds
        match message:
            case ReceivedPacket(source, data) if source == self._peer:
                # Only a pong to one of our pings counts: any peer may send us pongs.
                waiter = self._waiting.get(pong_id_untrusted(data) or b"")
                if waiter is not None and not waiter.done():
                    waiter.set_result(now)
            case PeerGone(peer) if peer == self._peer:
                for waiter in self._waiting.values():
                    if not waiter.done():
                        waiter.set_exception(_NotThere("the peer is not at this relay"))


@dataclass
class _Pings:
    target: _Target
    output: Output
    timeout: float
    sent: int = 0
    times: list[float] = field(default_factory=list)

    async def run(self, count: int, interval: float) -> int:
        """Ping, and print the statistics at the end or on Ctrl-C; returns the exit status."""
        await self.target.client.connect()
        loop = asyncio.get_running_loop()
        receiving = asyncio.create_task(self.target.receive(), name="pyderp ping: receiving")
        try:
            with contextlib.suppress(TimeoutError):  # then the pings report it
                async with asyncio.timeout(self.timeout):
                    await admitted(self.target.client, receiving)
            for number in range(1, count + 1) if count else itertools.count(1):
                began = loop.time()
                await self._one(number)
                if number != count:
                    await asyncio.sleep(began + interval - loop.time())
        finally:
            self._summarize()
            receiving.cancel()
            await asyncio.gather(receiving, return_exceptions=True)
        return 0 if self.times else 1

    async def _one(self, number: int) -> None:
        self.sent += 1
        try:
            async with asyncio.timeout(self.timeout):
                await self.target.client.connect()
                seconds = await self.target.ping()
        except TimeoutError:
            self._lost(number, f"no answer within {self.timeout:g} s")
        except (_NotThere, NotConnected, ConnectionClosed, ConnectError) as e:
            self._lost(number, e)
        else:
            self.times.append(seconds)
            text = f"pong from {self.target.name}: number={number} time={_ms(seconds)}"
            self.output.result("pong", text, number=number, seconds=seconds)

    def _lost(self, number: int, reason: object) -> None:
        self.output.remark("lost", f"number={number}: {reason}", number=number, reason=reason)

    def _summarize(self) -> None:
        if not self.sent:
            return
        received = len(self.times)
        loss = 1 - received / self.sent
        values: dict[str, object] = {"sent": self.sent, "received": received, "loss": loss}
        text = f"{self.sent} sent, {received} received, {loss:.1%} lost"
        if self.times:
            found = {
                "min": min(self.times),
                "median": statistics.median(self.times),
                "p99": _percentile(self.times, 0.99),
            }
            values |= found
            text += "; " + ", ".join(f"{name} {_ms(value)}" for name, value in found.items())
        self.output.result("statistics", text, **values)


def _percentile(values: list[float], share: float) -> float:
    """Returns the smallest value that at least this share of the values does not exceed."""
    return sorted(values)[math.ceil(share * len(values)) - 1]


def _ms(seconds: float) -> str:
    return f"{seconds * 1000:.3f} ms"


def make_ping(ping_id: bytes, now_ns: int) -> bytes:
    """Returns the packet of a ping."""
    return _PING + ping_id + now_ns.to_bytes(_TIME_LEN, "big")


def pong_for_untrusted(packet: bytes) -> bytes | None:
    """Returns the answer to a ping, of the same length; `None`: the packet is not a ping."""
    if len(packet) != _LEN or not packet.startswith(_PING):
        return None
    return _PONG + packet[len(_PING) :]


def pong_id_untrusted(packet: bytes) -> bytes | None:
    """Returns the id in a pong; `None`: the packet is not a pong."""
    if len(packet) != _LEN or not packet.startswith(_PONG):
        return None
    return packet[len(_PONG) : len(_PONG) + ID_LEN]
