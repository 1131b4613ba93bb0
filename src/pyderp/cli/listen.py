"""`pyderp listen`: print the packets that come, and answer pings."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from dataclasses import dataclass
from typing import Annotated, Final

import typer

from pyderp.cli.connect_options import (
    ConnectOptions,
    ReportingClient,
    seconds,
    with_connect_options,
)
from pyderp.cli.output import Output
from pyderp.cli.parameters import whole_number
from pyderp.cli.ping import PROBE, pong_for_untrusted
from pyderp.client.client import Client
from pyderp.errors import ConnectError, ConnectionClosed, InvalidKey, SealError
from pyderp.text import counted
from pyderp.wire.frames import PeerGoneReason
from pyderp.wire.messages import (
    Health,
    Message,
    PeerGone,
    PeerPresent,
    ReceivedPacket,
    Restarting,
    ServerInfo,
)

__all__ = ["EPILOG", "HELP", "listen"]

HELP: Final = "Print the packets that arrive for our key, a line each; reconnects by itself."

EPILOG: Final = """**Examples**

With a new key, to try things out; the key to send to is printed first:

`pyderp listen http://127.0.0.1:3340/derp`

With a key that stays the same, and packets that the relay cannot read or forge:

`pyderp listen https://derp.example.com/derp --key me.key --sealed`

Wait for one packet, half a minute at most, and read it in a script:

`pyderp listen https://derp.example.com/derp --key me.key --count 1 --timeout 30 --json`

By IP address, with the certificate's SHA-256 that the relay's log has:

`pyderp listen https://203.0.113.7:8443/derp --pin HEX`
"""


@with_connect_options
def listen(
    options: ConnectOptions,
    url: Annotated[
        str | None,
        typer.Argument(
            metavar="[URL]",
            help="The relay: https://HOST[:PORT]/derp. Left out with --derp-map.",
            show_default=False,
        ),
    ] = None,
    count: Annotated[int | None, whole_number("N", "End after this many packets.", least=1)] = None,
    timeout: Annotated[
        float | None,
        seconds("End after this time, with exit status 1 if --count was not reached."),
    ] = None,
    no_echo: Annotated[
        bool, typer.Option("--no-echo", help="Do not answer `pyderp ping`; print its packets.")
    ] = False,
    sealed: Annotated[
        bool,
        typer.Option(
            "--sealed",
            help="Open packets that were sent with `pyderp send --sealed`, and refuse others.",
        ),
    ] = False,
) -> None:
    """The command; `HELP` says what it does."""

    async def work(client: ReportingClient, output: Output) -> int:
        # On standard error, the client's log has it, and that it connects again.
        client.on_end = lambda error: output.event("disconnected", reason=error)
        listener = _Listener(client, output, echo=not no_echo, sealed=sealed)
        return await listener.run(count, timeout)

    options.run(url, work)


@dataclass
class _Listener:
    client: Client
    output: Output
    echo: bool
    sealed: bool
    packets: int = 0

    async def run(self, count: int | None, seconds: float | None) -> int:
        """Print until enough was printed or the time is up; returns the exit status."""
        key = self.client.self_public_key
        self.output.remark("listening", f"listening as {key}", key=key)
        # The first connect is not repeated, so that a wrong URL is an error at once; only later
        # the client reconnects, and its log says so.
        logging.getLogger("pyderp.client").setLevel(logging.INFO)
        try:
            async with asyncio.timeout(seconds) as limit:
                await self.client.connect()
                async for message in self.client:
                    if isinstance(message, ReceivedPacket):
                        await self._packet(message)
                    else:
                        self._event(message)
                    if self.packets == count:
                        return 0
        except TimeoutError:
            if not limit.expired():
                raise
        if count is None:
            return 0
        wanted = counted(count, "packet")
        self.output.note(f"{self.packets} of {wanted} came within {seconds:g} s")
        return 1

    async def _packet(self, packet: ReceivedPacket) -> None:
        if packet.data == PROBE:
            return
        pong = pong_for_untrusted(packet.data) if self.echo else None
        if pong is not None:
            # If that fails, the next receive reports it and connects again.
            with contextlib.suppress(ConnectionClosed, ConnectError):
                await self.client.send(packet.source, pong)
            return
        data = packet.data
        if self.sealed:
            try:
                data = self.client.sealed(packet.source).open_untrusted(data)
            except (SealError, InvalidKey) as e:
                text = f"refused a packet of {packet.source}: {e}"
                self.output.remark("refused", text, source=packet.source, reason=e)
                return
        self.packets += 1
        self.output.packet(packet.source, data)

    def _event(self, message: Message) -> None:
        match message:
            case ServerInfo():
                relay, number = self.client.server_public_key, self.client.generation
                text = f"connected to relay {relay}"
                self.output.remark("connected", text, relay=relay, generation=number)
            case PeerGone(peer, reason):
                why = _reason(reason)
                self.output.remark("peer_gone", f"{peer} is gone ({why})", peer=peer, reason=why)
            case PeerPresent(peer, app_name=app_name):
                text = f"{peer} is there ({app_name})" if app_name else f"{peer} is there"
                self.output.remark("peer_present", text, peer=peer, app_name=app_name)
            case Health(problem):
                text = f"the relay reports: {problem or 'healthy again'}"
                self.output.remark("health", text, problem=problem)
            case Restarting(reconnect_in, try_for):
                text = f"the relay restarts; connecting again in {reconnect_in:g} s"
                times = {"reconnect_in": reconnect_in, "try_for": try_for}
                self.output.remark("restarting", text, **times)


def _reason(reason: int) -> str:
    try:
        return PeerGoneReason(reason).name.lower().replace("_", " ")
    except ValueError:
        return f"reason {reason}"
