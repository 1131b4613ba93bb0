"""The fast lane delivers the same as a plain relay, for any stream in any pieces.

The plain relay cuts the stream with `FrameBuffer`, checks each frame and passes it to
`Router.on_frame`. Both run the same script in separate worlds. In the end all frames,
errors, counters and tables must be equal.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import accumulate, pairwise
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from pyderp.errors import RemoteProtocolError
from pyderp.relay.counters import DropReason
from pyderp.relay.lane import _KNOWN_FRAMES
from pyderp.wire.buffer import FrameBuffer
from pyderp.wire.frames import (
    DISCO_MAGIC,
    HEADER,
    MAX_PACKET_SIZE,
    FrameType,
    check_client_frame_untrusted,
    frame_header,
    pack_frame,
)
from tests.relay.lanes import LANES
from tests.relay.world import Peer, World, key

SENDER = "s"
MESH_SENDER = "m"
LOCAL = ["s", "a", "b", "d", "m"]
"""Keys with a connection; `d` has two."""
FAR, REFUSED, UNKNOWN = "far", "full", "unknown"
NAMES = [*LOCAL, FAR, REFUSED, UNKNOWN]


class Forwarder:
    """A forwarder that accepts every packet, or refuses every packet."""

    def __init__(self, refuse: DropReason | None) -> None:
        self.refuse = refuse
        self.taken: list[tuple[bytes, bytes, bytes]] = []

    def forward(self, src: bytes, dst: bytes, packet: bytes) -> DropReason | None:
        if self.refuse is None:
            self.taken.append((src, dst, packet))
        return self.refuse


class PlainWorld(World):
    """A relay without a fast lane: frame by frame, as the specification describes."""

    def __init__(self) -> None:
        super().__init__()
        self._buffers: dict[Peer, FrameBuffer] = {}
        self._counted: set[Peer] = set()
        """Clients whose unknown frame has been counted at its header, and is still incomplete."""

    def receive(self, peer: Peer, data: bytes) -> None:
        buffer = self._buffers.setdefault(peer, FrameBuffer(limit=2**32))
        for kind, payload in buffer.receive_data(data):
            self._on_header(peer, kind, len(payload))
            self._counted.discard(peer)
            if kind in _KNOWN_FRAMES:
                self.router.on_frame(peer.connection, kind, payload)
            if peer.left:
                return
        if len(buffer) >= HEADER.size:
            # Errors of a header are raised before the payload arrives.
            self._on_header(peer, *HEADER.unpack_from(buffer._data))

    def _on_header(self, peer: Peer, kind: int, length: int) -> None:
        if peer.connection.is_dup:
            self.registry.note_activity(peer.connection)
        check_client_frame_untrusted(kind, length)
        if kind not in _KNOWN_FRAMES:
            if peer not in self._counted:
                self._counted.add(peer)
                self.router.on_frame(peer.connection, kind, b"")
        elif kind == FrameType.FORWARD_PACKET and not peer.connection.can_mesh:
            self.router.on_frame(peer.connection, kind, b"")


@dataclass
class Scene:
    """A relay, its clients, and the errors that occurred."""

    world: World
    far: Forwarder = field(default_factory=lambda: Forwarder(None))
    refused: Forwarder = field(default_factory=lambda: Forwarder(DropReason.MESH_LINK_FULL))
    errors: list[tuple[type[Exception], str, int | None]] = field(default_factory=list)
    seen: dict[str, list[bytes]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.peers = [self.world.join(name, mesh=name == "m") for name in [*LOCAL, "d"]]
        self.world.router.add_forwarder(key(FAR), self.far)
        self.world.router.add_forwarder(key(REFUSED), self.refused)

    def play(self, script: Script) -> None:
        """Feed all chunks, with turns, stalls and time between them."""
        sender = self.peers[LOCAL.index(script.sender)]
        for i in script.blocked:
            self.peers[i].block(script.unsent)
        try:
            for chunk, then in script.chunks():
                if sender.left:
                    break
                self.world.feed(sender, chunk)
                self._turn(then)
        except RemoteProtocolError as e:
            self.errors.append((type(e), str(e), e.frame_type))
        self.world.flush()
        self.world.check()
        for peer in self.peers:
            if not peer.left:
                peer.read()
        self.world.flush()
        self.world.check()

    def _turn(self, then: int) -> None:
        if then & 1:
            self.world.flush()
        if then & 2:
            self.world.now += 0.5
        if then & 4:
            for peer in self.peers:
                if not peer.left and peer.blocked:
                    peer.read()
        self.world.check()

    def outcome(self) -> dict[str, Any]:
        """Return all frames, errors, counters and tables."""
        counters = self.world.counters
        registry = self.world.registry
        number = {peer.connection: i for i, peer in enumerate(self.peers)}
        return {
            "frames": [peer.frames() for peer in self.peers],
            "closed": [peer.closed for peer in self.peers],
            "forwarded": self.far.taken,
            "errors": self.errors,
            "drops": self.world.drops(),
            "counters": {
                name: value
                for name in counters.__slots__
                if isinstance(value := getattr(counters, name), int | list | dict)
                and name != "drops"
            },
            "connections": [
                (c.packets_received, c.bytes_received, c.packets_sent, c.bytes_sent)
                for c in (peer.connection for peer in self.peers)
            ],
            "active": {k: number[c] for k, c in registry.active.items()},
            "watchers": [number[c] for c in registry.watchers],
            "sent to": {k: {number[c] for c in dsts} for k, dsts in registry.sent_to.items()},
        }


@dataclass
class Script:
    """The frames of one client, how they arrive, and which clients do not read."""

    sender: str
    frames: list[bytes]
    cuts: list[tuple[int, int]]
    """Where reads end: index of a frame, and bytes from its start."""
    end: int | None
    """Bytes of the last frame that arrive; `None`: all of it."""
    turns: list[int]
    blocked: list[int]
    unsent: int

    def chunks(self) -> list[tuple[bytes, int]]:
        """Return the pieces of the stream, each with the events after it."""
        stream = b"".join(self.frames)
        starts = list(accumulate(map(len, self.frames), initial=0))
        if self.end is not None:
            stream = stream[: max(starts[-2] + self.end, 1)]
        cuts = {starts[i % len(starts)] + offset for i, offset in self.cuts}
        at = sorted({0, len(stream), *(cut for cut in cuts if 0 < cut < len(stream))})
        pieces = [stream[i:j] for i, j in pairwise(at)]
        turns = self.turns or [1]
        return [(piece, turns[i % len(turns)]) for i, piece in enumerate(pieces)]


names = st.sampled_from(NAMES)
sizes = st.one_of(
    st.integers(0, 200),
    st.sampled_from([0, 1, 61, 62, 63, 1200, 9000]),
    st.integers(0, MAX_PACKET_SIZE),
)


def body(size: int, disco: bool, mark: int) -> bytes:
    """Return a packet of a size, numbered so that all packets differ."""
    start = DISCO_MAGIC if disco else b"\x54\x53" if mark % 3 == 0 else b""
    return (start + mark.to_bytes(3, "big")).ljust(size, b"\x04")[:size]


bodies = st.builds(body, sizes, st.booleans(), st.integers(0, 2**24 - 1))


@st.composite
def runs(draw: st.DrawFn) -> bytes:
    """Neighbouring SendPackets to one key."""
    to = key(draw(names))
    first = draw(bodies)
    count = draw(st.one_of(st.integers(1, 4), st.just(40))) if len(first) < 2000 else 1
    return b"".join(
        pack_frame(FrameType.SEND_PACKET, to + i.to_bytes(1, "big")[: i > 0] + first)
        if len(first) < MAX_PACKET_SIZE
        else pack_frame(FrameType.SEND_PACKET, to + first)
        for i in range(count)
    )


anyones = st.one_of(
    st.just(pack_frame(FrameType.PING, b"12345678")),
    st.just(pack_frame(FrameType.PING, b"abcdefgh" + bytes(992))),
    st.builds(lambda b: pack_frame(FrameType.NOTE_PREFERRED, bytes([b])), st.integers(0, 2)),
)
relays = st.one_of(
    st.just(pack_frame(FrameType.WATCH_CONNS)),
    st.builds(
        lambda src, dst, data: pack_frame(FrameType.FORWARD_PACKET, key(src) + key(dst) + data),
        names,
        names,
        bodies,
    ),
    st.builds(lambda n: pack_frame(FrameType.CLOSE_PEER, key(n)), names),
)
"""Frames of mesh peers; from any other client they are an error."""
unknown = st.builds(
    lambda kind, size: pack_frame(kind, b"\x04" * size),
    st.sampled_from([0, 1, 5, 6, 0x13, 0x14, 0x16, 0x77, 0xFF]),
    st.one_of(st.integers(0, 60), st.just(65_568)),
)
illegal = st.one_of(
    st.builds(
        lambda kind, size: pack_frame(kind, b"\x01" * size),
        st.sampled_from(sorted(_KNOWN_FRAMES)),
        st.sampled_from([0, 1, 7, 31, 33, 63, 1001, 65569, 65601]),
    ),
    st.builds(
        frame_header,
        st.sampled_from([*sorted(_KNOWN_FRAMES), 0x13, 0x77]),
        st.sampled_from([65_569, 2**32 - 1]),
    ),
    st.binary(min_size=1, max_size=60),
)


offsets = st.integers(-1, 6) | st.sampled_from([36, 37, 38, 69]) | st.integers(0, 70_000)


@st.composite
def scripts(draw: st.DrawFn) -> Script:
    """Draw a stream that is mostly packets; sometimes an illegal frame is near its end."""
    sender = draw(st.sampled_from([SENDER, MESH_SENDER, "d"]))
    kinds = [runs(), runs(), runs(), unknown, anyones, *[relays] * (sender == MESH_SENDER)]
    frames = draw(
        st.lists(st.one_of(*kinds), min_size=1, max_size=draw(st.sampled_from([1, 4, 12])))
    )
    if draw(st.integers(0, 2)) == 0:
        frames.append(draw(illegal | relays))
        if draw(st.booleans()):
            frames.append(draw(runs()))
    return Script(
        sender,
        frames,
        draw(st.lists(st.tuples(st.integers(0, 12), offsets), max_size=8)),
        draw(st.none() | offsets),
        draw(st.lists(st.integers(0, 7), max_size=5)),
        draw(st.lists(st.sampled_from(range(6)), unique=True, max_size=6)),
        draw(st.sampled_from([0, 100_000, 2**18])),
    )


@settings(max_examples=300, deadline=None)
@given(scripts())
def test_the_fast_lane_delivers_the_same_as_a_plain_relay(script: Script) -> None:
    plain = Scene(PlainWorld())
    plain.play(script)
    expected = plain.outcome()
    for name, relaying in LANES.items():
        fast = Scene(World(relaying))
        fast.play(script)
        assert fast.outcome() == expected, name
