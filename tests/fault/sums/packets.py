"""Packets that contain their sender, destination and number; and the ledger of them.

The content of a packet follows from its head, so a single wrong byte shows.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass, field
from hashlib import blake2b
from typing import Final

from pyderp.keys import KEY_LEN, NodePublic
from pyderp.wire.frames import DISCO_MAGIC

__all__ = ["HEAD_SIZE", "Count", "Ledger", "Stamp"]

_HEAD: Final = struct.Struct(f">{len(DISCO_MAGIC)}sI{KEY_LEN}s{KEY_LEN}sQI")
HEAD_SIZE: Final = _HEAD.size
"""Bytes of the smallest packet."""
_DATA_MAGIC: Final = b"data-p"
_MOST_PROBLEMS: Final = 20


@dataclass(frozen=True, slots=True)
class Stamp:
    """The head of a packet.

    Packets of one sending connection to one key are numbered from 0, disco and data apart: the
    relay queues the two kinds apart, and keeps the order of each.

    Attributes:
        sender: number of the sending connection, unique in a run.
        size: bytes of the whole packet.
    """

    sender: int
    source: bytes
    destination: bytes
    disco: bool
    number: int
    size: int

    def packet(self) -> bytes:
        """The whole packet."""
        magic = DISCO_MAGIC if self.disco else _DATA_MAGIC
        head = _HEAD.pack(magic, self.sender, self.source, self.destination, self.number, self.size)
        digest = blake2b(head, digest_size=32).digest()
        rest = self.size - HEAD_SIZE
        return head + (digest * (rest // len(digest) + 1))[:rest]

    @classmethod
    def read(cls, packet: bytes) -> Stamp | None:
        """The stamp of a packet; `None` if any byte of it has changed."""
        if len(packet) < HEAD_SIZE:
            return None
        magic, sender, source, destination, number, size = _HEAD.unpack_from(packet)
        stamp = cls(sender, source, destination, magic == DISCO_MAGIC, number, size)
        return stamp if size == len(packet) and stamp.packet() == packet else None


@dataclass(slots=True)
class Count:
    """Packets and their bytes."""

    packets: int = 0
    bytes: int = 0

    def add(self, size: int) -> None:
        self.packets += 1
        self.bytes += size

    def __add__(self, other: Count) -> Count:
        return Count(self.packets + other.packets, self.bytes + other.bytes)

    def __sub__(self, other: Count) -> Count:
        return Count(self.packets - other.packets, self.bytes - other.bytes)

    def __le__(self, other: Count) -> bool:
        return self.packets <= other.packets and self.bytes <= other.bytes


@dataclass(slots=True)
class Ledger:
    """All packets of a run, by where they were last seen.

    Attributes:
        stamped: packets that a client began to write.
        arrived: packets that a client knows to be with the relay: it answered a later ping, or
            all was written and the connection ended without a reset.
        delivered: packets that a client got.
        problems: what no relay may do, a line each, the first few.
    """

    stamped: Count = field(default_factory=Count)
    arrived: Count = field(default_factory=Count)
    delivered: Count = field(default_factory=Count)
    stamped_disco: int = 0
    delivered_disco: int = 0
    problems: list[str] = field(default_factory=list)
    _next: dict[tuple[int, bytes, bool], int] = field(default_factory=dict)
    _last: dict[tuple[int, int, bool], int] = field(default_factory=dict)
    _seen: dict[tuple[int, bytes, bool], set[int]] = field(default_factory=dict)
    shared_keys: set[bytes] = field(default_factory=set)
    """Keys of several connections, for which every number is remembered."""
    knows_senders: bool = True
    """All packets come from connections that use this ledger."""

    def stamp(
        self, sender: int, source: NodePublic, destination: NodePublic, size: int, *, disco: bool
    ) -> Stamp:
        """The next packet of a connection to a key."""
        lane = (sender, destination.raw, disco)
        number = self._next.get(lane, 0)
        self._next[lane] = number + 1
        self.stamped.add(size)
        self.stamped_disco += disco
        return Stamp(sender, source.raw, destination.raw, disco, number, size)

    def deliver(
        self, receiver: int, key: NodePublic, source: NodePublic, packet: bytes
    ) -> Stamp | None:
        """Check a packet that a connection got, and count it."""
        self.delivered.add(len(packet))
        stamp = Stamp.read(packet)
        if stamp is None:
            self.problem(
                f"connection {receiver}: {len(packet)} bytes of no client: {packet[:90]!r}"
            )
            return None
        self.delivered_disco += stamp.disco
        where = f"connection {receiver}: {stamp.sender} → {receiver}, number {stamp.number}"
        if stamp.source != source.raw:
            self.problem(f"{where}: of {stamp.source.hex()}, said to be of {source}")
        if stamp.destination != key.raw:
            self.problem(f"{where}: for {stamp.destination.hex()}, given to {key}")
        lane = (stamp.sender, stamp.destination, stamp.disco)
        if self.knows_senders and stamp.number >= self._next.get(lane, 0):
            self.problem(f"{where}: was never sent")
        self._check_order(receiver, stamp, where)
        return stamp

    def _check_order(self, receiver: int, stamp: Stamp, where: str) -> None:
        pair = (stamp.sender, receiver, stamp.disco)
        last = self._last.get(pair, -1)
        self._last[pair] = stamp.number
        if stamp.number <= last:
            self.problem(f"{where}: after number {last}")
        if stamp.destination in self.shared_keys:
            # Each of the key's connections gets some packets: in order, and none twice.
            seen = self._seen.setdefault((stamp.sender, stamp.destination, stamp.disco), set())
            if stamp.number in seen:
                self.problem(f"{where}: a second time")
            seen.add(stamp.number)

    def problem(self, text: str) -> None:
        """Record something that no relay may do."""
        if len(self.problems) < _MOST_PROBLEMS:
            self.problems.append(text)
