"""The limits of every frame's length and rights, on the wire, for both relays alike.

Within the limits a frame is acted on, and the connection stays; one byte more or less ends it
without another byte. Go's own client covers more of this (scenarios `badframes`, `meshrights`,
`unknownframes` and `pingflood`); here are the exact numbers.
"""

from __future__ import annotations

import asyncio
import os
from dataclasses import dataclass

from pyderp.keys import MeshKey, NodePrivate
from pyderp.wire.messages import Message, PeerPresent, Pong, ReceivedPacket
from tests.interop.relays import MESH_KEY, Kind, Relay
from tests.server import dial

from .support import GetRelay, both, difference, metrics

MESH = MeshKey.parse(MESH_KEY)
LARGEST = 65536
SELF = b"(own key)"
"""Stands for the sender's own key, 32 bytes."""
ABSENT = NodePrivate.generate().public.raw


@dataclass(frozen=True)
class Row:
    """A frame and its effect."""

    kind: int
    body: tuple[bytes, ...]
    stays: bool
    mesh: bool = False
    answer: type[Message] | None = None

    @property
    def size(self) -> int:
        return sum(32 if part == SELF else len(part) for part in self.body)

    def pack(self, own: bytes) -> bytes:
        body = b"".join(own if part == SELF else part for part in self.body)
        return bytes([self.kind]) + len(body).to_bytes(4, "big") + body


def zeros(size: int) -> tuple[bytes]:
    return (bytes(size),)


ROWS = (
    # Ping: 8 to 1000 bytes.
    *(Row(0x12, zeros(size), stays=False) for size in (0, 7, 1001, 4096)),
    *(Row(0x12, zeros(size), stays=True, answer=Pong) for size in (8, 9, 1000)),
    # NotePreferred: one byte.
    *(Row(0x07, zeros(size), stays=size == 1) for size in (0, 1, 2)),
    # SendPacket: a key, and up to 64 KiB. Sending to oneself works.
    *(Row(0x04, zeros(size), stays=False) for size in (0, 31)),
    *(
        Row(0x04, (SELF, bytes(size)), stays=True, answer=ReceivedPacket)
        for size in (0, 1, LARGEST - 1, LARGEST)
    ),
    Row(0x04, (SELF, bytes(LARGEST + 1)), stays=False),
    # ForwardPacket: two keys, and up to 64 KiB, for mesh peers.
    *(Row(0x0A, zeros(size), stays=False, mesh=True) for size in (0, 32, 63)),
    *(
        Row(0x0A, (ABSENT, SELF, bytes(size)), stays=True, mesh=True, answer=ReceivedPacket)
        for size in (0, LARGEST)
    ),
    Row(0x0A, (ABSENT, SELF, bytes(LARGEST + 1)), stays=False, mesh=True),
    *(Row(0x0A, body, stays=False) for body in ((ABSENT, SELF, b"x"), (bytes(63),))),
    # WatchConns: empty, for mesh peers.
    Row(0x10, (), stays=True, mesh=True, answer=PeerPresent),
    Row(0x10, zeros(1), stays=False, mesh=True),
    *(Row(0x10, zeros(size), stays=False) for size in (0, 1)),
    # ClosePeer: a key, for mesh peers.
    Row(0x11, (ABSENT,), stays=True, mesh=True),
    *(Row(0x11, zeros(size), stays=False, mesh=True) for size in (0, 31, 33)),
    *(Row(0x11, body, stays=False) for body in ((ABSENT,), (bytes(31),))),
)


async def play(relay: Relay, row: Row) -> None:
    name = f"{row.kind:#04x} with {row.size} bytes, mesh {row.mesh}"
    address = (relay.address, relay.port)
    client = await dial.connect(address, mesh_key=MESH if row.mesh else None)
    try:
        client.writer.write(row.pack(client.key.raw))
        if not row.stays:
            assert await dial.drained(client.reader) == b"", name
            return
        if row.answer is not None:
            assert isinstance(await client.receive(), row.answer), name
        await client.ping()
    except EOFError as e:
        raise AssertionError(f"{name} ended the connection") from e
    finally:
        await client.aclose()


@both
def test_lengths_and_rights_have_the_same_limits(kind: Kind, relays: GetRelay) -> None:
    relay = relays(kind, "plain")

    async def main() -> None:
        for row in ROWS:
            await play(relay, row)

    asyncio.run(main())


@both
def test_the_longest_packet_arrives_to_the_last_byte(kind: Kind, relays: GetRelay) -> None:
    """64 KiB to itself; each is counted once in each direction."""
    relay = relays(kind, "plain")
    names = ("derp_packets_received", "derp_packets_sent", "derp_bytes_received", "derp_bytes_sent")

    async def main() -> None:
        client = await dial.connect((relay.address, relay.port))
        before = await metrics(relay)
        sizes = (0, 1, 2047, 2048, LARGEST)
        for size in sizes:
            packet = os.urandom(size)
            client.send(client, packet)
            assert await client.packet() == packet
        # derper counts after it has written.
        await client.ping()
        counted = difference(before, await metrics(relay), names)
        assert list(counted.values()) == [len(sizes)] * 2 + [sum(sizes)] * 2
        await client.aclose()

    asyncio.run(main())


@both
def test_a_flood_of_pings_gets_few_pongs(kind: Kind, relays: GetRelay) -> None:
    """One pong waits at a time; all pings count, and the connection stays."""
    relay = relays(kind, "plain")
    ping = b"\x12" + (8).to_bytes(4, "big") + bytes(8)
    flood = 2000

    async def main() -> None:
        client = await dial.connect((relay.address, relay.port))
        before = await metrics(relay)
        client.writer.write(ping * flood)
        while (await metrics(relay))["derp_got_ping"] < before["derp_got_ping"] + flood:
            pass
        await client.ping()
        names = ["derp_got_ping", "derp_sent_pong"]
        pings, pongs = difference(before, await metrics(relay), names).values()
        assert pings == flood + 1
        assert 1 < pongs < flood / 2
        await client.aclose()

    asyncio.run(main())
