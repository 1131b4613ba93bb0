"""`pyderp send`: packets from standard input to a peer."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from typing import Annotated, Final, TypeAlias

import typer

from pyderp.cli.connect_options import (
    ConnectOptions,
    ReportingClient,
    seconds,
    split_targets,
    value,
    with_connect_options,
)
from pyderp.cli.input import STDIN, Stdin, chunks_of, lines_of
from pyderp.cli.output import Output
from pyderp.cli.ping import PROBE
from pyderp.client.reconnect import Backoff
from pyderp.client.sealed import SealedPeer
from pyderp.errors import ClientClosed, ConnectError, ConnectionClosed, without_frames
from pyderp.keys import NodePublic
from pyderp.text import counted
from pyderp.wire.frames import MAX_PACKET_SIZE
from pyderp.wire.messages import Health, PeerGone, Restarting, ServerInfo

__all__ = ["EPILOG", "EXIT_PEER_GONE", "HELP", "send"]

HELP: Final = (
    "Send packets to a peer: one for each line of standard input. DERP never confirms delivery."
)

EXIT_PEER_GONE: Final = 3
RAW_SIZE: Final = 1_200
"""Bytes of a packet with `--raw`: few enough for the MTU of any tunnel."""

EPILOG: Final = """**Examples**

A line typed is a packet sent:

`pyderp send http://127.0.0.1:3340/derp nodekey:…`

One packet that the relay cannot read or forge, to `pyderp listen --sealed`:

`pyderp send https://derp.example.com/derp nodekey:… --key me.key --sealed --message hello`

Fail if the peer is not connected; `pyderp listen` ignores the two packets that ask the relay:

`pyderp send https://derp.example.com/derp nodekey:… --message hello --wait 1`

A file as a stream of packets, some of which may get lost:

`pyderp send https://derp.example.com/derp nodekey:… --key me.key --sealed --raw < file`

**Exit status**: 0 the relay took all packets, and did not report that the peer is not connected;
1 failure; 2 wrong command line; 3 the peer is not at this relay, which `--wait` asks for; 4 the
relay does not admit our key; 130 Ctrl-C; 143 SIGTERM. A summary is printed if it was connected.
DERP never confirms that a packet arrived: let the peer answer if you must know.
"""


_Wait: TypeAlias = Annotated[
    float,
    seconds(
        "Ask the relay whether the peer is connected, before the first packet and after the last, "
        "and wait this long at the end for its answer. The peer gets each question as a packet "
        "of 62 bytes. 0: do not ask.",
        least=0,
    ),
]


@with_connect_options
def send(
    options: ConnectOptions,
    targets: Annotated[
        list[str],
        typer.Argument(
            metavar="[URL] PEER",
            help="The relay: https://HOST[:PORT]/derp, left out with --derp-map. The peer: "
            "nodekey: and 64 hex digits.",
            show_default=False,
        ),
    ],
    message: Annotated[
        str | None, value("TEXT", "Send this instead of standard input.", "-m", "--message")
    ] = None,
    raw: Annotated[
        bool,
        typer.Option(
            "--raw", help=f"Cut input into packets of at most {RAW_SIZE} bytes, not into lines."
        ),
    ] = False,
    sealed: Annotated[
        bool,
        typer.Option("--sealed", help="Encrypt for the peer, so that the relay cannot read it."),
    ] = False,
    wait: _Wait = 0.0,
    timeout: Annotated[
        float,
        seconds("Give up if the relay takes no packet for this long, reconnects included."),
    ] = 30.0,
) -> None:
    """The command; `HELP` says what it does."""
    url, peer = split_targets(targets)
    if peer is None:
        raise typer.BadParameter("PEER is missing: want nodekey: and 64 hex digits")
    packets = _source(options, message, raw)

    async def work(client: ReportingClient, output: Output) -> int:
        seal = client.sealed(peer) if sealed else None
        sender = _Sender(client, output, peer, timeout, seal)
        client.on_end = sender.disconnected
        limit = MAX_PACKET_SIZE if seal is None else seal.max_payload
        return await sender.run(packets(limit), wait)

    options.run(url, work)


def _source(
    options: ConnectOptions, message: str | None, raw: bool
) -> Callable[[int], AsyncIterator[bytes]]:
    """Returns a function from the largest size of a packet, in bytes, to the packets to send.

    Raises:
        typer.BadParameter: flags that do not go together.
    """
    if message is not None and raw:
        raise typer.BadParameter("--message and --raw: give one of them")
    if message is None and options.derp_map == STDIN:
        raise typer.BadParameter("--derp-map - takes standard input: give --message as well")

    async def packets(limit: int) -> AsyncIterator[bytes]:
        if message is not None:
            yield message.encode(errors="surrogateescape")
            return
        stdin = Stdin()
        source = chunks_of(stdin.read, RAW_SIZE) if raw else lines_of(stdin.read, limit)
        async for packet in source:
            yield packet

    return packets


@dataclass
class _Sender:
    client: ReportingClient
    output: Output
    peer: NodePublic
    timeout: float
    sealed: SealedPeer | None
    packets: int = 0
    size: int = 0
    ended: int = 0
    """Connections that have ended."""
    last_end: ConnectionClosed | None = None
    """Why the last of them ended."""
    restarting: bool = False

    async def run(self, packets: AsyncIterator[bytes], wait: float) -> int:
        """Send all packets, and print a summary however that ends; returns the exit status."""
        await self.client.connect()
        gone = False
        try:
            gone = await self._until_gone(packets, wait)
        finally:
            dropped = self._summary(gone=gone)
        if gone:
            return EXIT_PEER_GONE
        return 1 if dropped else 0

    async def _until_gone(self, packets: AsyncIterator[bytes], wait: float) -> bool:
        """Send all packets; returns whether the relay reported meanwhile that the peer is gone."""
        gone = asyncio.create_task(self._peer_gone(), name="pyderp send: is the peer gone")
        sending = asyncio.create_task(self._send_all(packets, wait), name="pyderp send: sending")
        try:
            await asyncio.wait({gone, sending}, return_when=asyncio.FIRST_COMPLETED)
            for task in (gone, sending):
                if task.done():
                    await task  # raises what it raised
            return gone.done()
        finally:
            gone.cancel()
            sending.cancel()
            await asyncio.gather(gone, sending, return_exceptions=True)

    async def _send_all(self, packets: AsyncIterator[bytes], wait: float) -> None:
        if wait:
            await self._send(PROBE)
        async for packet in packets:
            await self._send(packet if self.sealed is None else self.sealed.seal(packet))
            self.packets += 1
            self.size += len(packet)
        if wait:
            # The peer may have left meanwhile.
            await self._send(PROBE)
            await asyncio.sleep(wait)

    async def _send(self, packet: bytes) -> None:
        """Send a packet, over as many connections as that takes."""
        backoff = Backoff(random.random)
        last: ConnectionClosed | ConnectError | None = None
        try:
            async with asyncio.timeout(self.timeout):
                while True:
                    try:
                        # Connects if need be. A packet sent before the relay has admitted us
                        # would be lost if it refuses us.
                        await self.client.connect()
                        await self.client.admission()
                        return await self.client.send(self.peer, packet)
                    except ClientClosed:
                        raise
                    except (ConnectionClosed, ConnectError) as e:
                        last = e
                    # The receiver notices the end, and connects again as well, perhaps first.
                    await asyncio.sleep(backoff.failed(asyncio.get_running_loop().time()))
        except TimeoutError as e:
            text = f"the relay took no packet for {self.timeout:g} s"
            last = last or self.last_end
            if last is None:
                raise TimeoutError(text) from e
            attempts = last.attempts if isinstance(last, ConnectError) else (last,)
            raise ConnectError(f"{text}: {last}", attempts=attempts) from last

    def disconnected(self, error: ConnectionClosed) -> None:
        """A connection has ended."""
        self.ended += 1
        self.last_end = without_frames(error)
        text = f"{error}; connecting again; the last packets may be lost"
        self.output.remark("disconnected", text, reason=error)

    async def _peer_gone(self) -> None:
        """Receive until the relay says that the peer is gone."""
        async for message in self.client:
            match message:
                case ServerInfo():
                    self.restarting = False
                case Restarting():
                    self.restarting = True
                case PeerGone(peer) if peer == self.peer and not self.restarting:
                    # While a relay restarts, every client leaves and comes back.
                    return
                case Health(problem) if problem:
                    self.output.remark("health", f"the relay reports: {problem}", problem=problem)

    def _summary(self, *, gone: bool) -> int:
        """Print what was sent; returns how many packets were dropped."""
        dropped = self.client.stats.packets_dropped
        sent = f"{counted(self.packets, 'packet')}, {counted(self.size, 'byte')}"
        text = f"{sent} handed to the relay" if self.packets else "nothing was sent"
        if dropped:
            text += f", but {dropped} of them dropped here, above the rate that it allows"
        if self.ended:
            times = "once" if self.ended == 1 else f"{self.ended} times"
            text += f"; disconnected {times}"
            if self.packets:
                text += ", and what was sent last before that may be lost"
        if gone:
            text += f", but {self.peer} is not at this relay: run pyderp listen there"
        elif self.packets:
            text += "; DERP never confirms delivery"
        self.output.remark(
            "summary",
            text,
            packets=self.packets,
            bytes=self.size,
            dropped=dropped,
            disconnected=self.ended,
            gone=gone,
        )
        return dropped
