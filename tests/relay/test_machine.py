"""Random lives of a relay: clients log in, send, stall and leave, and all counts match a model.

Every packet contains a unique number, so that a simple model can say where it may
arrive: at the connection that its key had at that time, once, and in order of its kind.
"""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    consumes,
    initialize,
    invariant,
    multiple,
    rule,
)

from pyderp.errors import RemoteProtocolError
from pyderp.relay.counters import DropReason
from pyderp.wire.frames import (
    FrameType,
    looks_like_disco,
    pack_close_peer,
    pack_forward_packet,
    pack_frame,
    pack_note_preferred,
    pack_ping,
    pack_watch_conns,
)
from tests.relay.world import Peer, World, disco, frames_of, key, public

KEYS = ["a", "b", "c", "d"]
DISCONNECTED, NOT_HERE = b"\x00", b"\x01"
FATES_OF_THE_SLOW = [
    DropReason.QUEUE_HEAD,
    DropReason.QUEUE_TAIL,
    DropReason.GONE_DISCONNECTED,
    DropReason.WRITE_ERROR,
    DropReason.WRITE_TIMEOUT,
]
"""Reasons of drops for a connection that does not read, or ends."""
names = st.sampled_from(KEYS)
sizes = st.sampled_from([0, 0, 0, 1000, 20_000, 65_000])


class Far:
    """Another relay; it accepts what is forwarded."""

    def __init__(self) -> None:
        self.taken: list[int] = []

    def forward(self, src: bytes, dst: bytes, packet: bytes) -> DropReason | None:
        self.taken.append(number_of(packet))
        return None


def number_of(packet: bytes) -> int:
    """Return the number that the model put into a packet."""
    return int.from_bytes(packet[6:10], "big")


def presents_of(peer: Peer) -> int:
    """Return how many PeerPresent frames were written to a connection."""
    frames = (frame for write in peer.writes for frame in frames_of(write))
    return sum(frame[0] == FrameType.PEER_PRESENT for frame in frames)


class Relay(RuleBasedStateMachine):
    """Clients send at random; the model knows the frames that each of them must get."""

    peers = Bundle("peers")

    def __init__(self) -> None:
        super().__init__()
        self.world = World()
        self.far = [Far(), Far()]
        self.everyone: list[Peer] = []
        self.next_number = 1
        self.owed: dict[Peer, list[tuple[int, bytes]]] = {}
        """The packets that may arrive at each connection: numbers and RecvPacket frames."""
        self.notices: dict[Peer, Counter[bytes]] = {}
        """The PeerGone and PeerPresent frames that each connection must get."""
        self.received_by: dict[bytes, set[Peer]] = {}
        """Source → connections that received its packets since it logged in."""
        self.members: dict[bytes, list[Peer]] = {}
        self.current: dict[bytes, Peer] = {}
        """Key → the connection that gets its packets."""
        self.spoke: dict[bytes, list[Peer]] = {}
        """Key with several connections → those that sent a frame, the latest last."""
        self.forwarders: dict[bytes, list[Far]] = {}
        self.forwarded: list[tuple[Far, int]] = []
        self.tokens: dict[Peer, tuple[float, float]] = {}
        self.watching: list[Peer] = []
        self.pictured: dict[Peer, int] = {}
        """PeerPresent frames written to a watcher when its last full list began."""
        self.slow: set[Peer] = set()
        """Clients that did not always read at once."""
        self.lost: Counter[DropReason] = Counter()

    # The model

    def speak(self, peer: Peer) -> None:
        if peer.key in self.spoke:
            self.spoke[peer.key] = [p for p in self.spoke[peer.key] if p is not peer] + [peer]
            self.current[peer.key] = peer

    def not_here(self, peer: Peer, raw: bytes) -> None:
        tokens, at = self.tokens[peer]
        tokens = min(3.0, tokens + self.world.now - at)
        if tokens >= 1:
            tokens -= 1
            self.notices[peer][pack_frame(FrameType.PEER_GONE, raw + NOT_HERE)] += 1
        self.tokens[peer] = (tokens, self.world.now)

    def left_region(self, raw: bytes) -> None:
        for peer in self.received_by.pop(raw, ()):
            if not peer.left:
                self.notices[peer][pack_frame(FrameType.PEER_GONE, raw + DISCONNECTED)] += 1

    def on_packet(self, asker: Peer, src: bytes, dst: bytes, packet: bytes, *, hop: bool) -> None:
        target = self.current.get(dst)
        if target is not None:
            frame = pack_frame(FrameType.RECV_PACKET, src + packet)
            self.owed[target].append((number_of(packet), frame))
            self.received_by.setdefault(src, set()).add(target)
        elif hop and self.forwarders.get(dst):
            self.forwarded.append((self.forwarders[dst][0], number_of(packet)))
        else:
            reason = DropReason.UNKNOWN_DEST if hop else DropReason.UNKNOWN_DEST_ON_FWD
            self.lost[reason] += 1
            if looks_like_disco(packet):
                self.not_here(asker, dst)

    def on_leave(self, peer: Peer) -> None:
        """Update the model after a departure: a takeover, or PeerGone."""
        raw = peer.key
        self.members[raw].remove(peer)
        if peer in self.watching:
            self.watching.remove(peer)
        if self.members[raw]:
            self.spoke[raw] = [p for p in self.spoke[raw] if p is not peer]
            if len(self.members[raw]) == 1:
                del self.spoke[raw]
                self.current[raw] = self.members[raw][0]
            elif self.current[raw] is peer:
                self.current[raw] = self.spoke[raw][-1]
            return
        del self.current[raw]
        for watcher in self.watching:
            self.notices[watcher][pack_frame(FrameType.PEER_GONE, peer.key + DISCONNECTED)] += 1
        if not self.forwarders.get(peer.key):
            self.left_region(peer.key)

    def packet(self, size: int, is_disco: bool) -> bytes:
        mark = self.next_number.to_bytes(4, "big")
        self.next_number += 1
        return (disco(mark) if is_disco else b"packet" + mark).ljust(size, b".")

    # The rules

    @initialize(target=peers)
    def two(self) -> object:
        return multiple(self.join("a", False), self.join("b", True))

    @rule(target=peers, name=names, mesh=st.booleans())
    def join(self, name: str, mesh: bool) -> Peer:
        peer = self.world.join(name, mesh=mesh)
        self.everyone.append(peer)
        self.owed[peer], self.notices[peer] = [], Counter()
        self.tokens[peer] = (3.0, self.world.now)
        members = self.members.setdefault(peer.key, [])
        members.append(peer)
        self.current[peer.key] = peer
        if len(members) == 2:
            self.spoke[peer.key] = members[:1]  # the second has not sent a frame yet
        elif len(members) > 2:
            self.spoke[peer.key].append(peer)
        for watcher in self.watching:
            self.notices[watcher][peer.connection.present_frame()] += 1
        return peer

    @rule(peer=consumes(peers))
    def leave(self, peer: Peer) -> None:
        if not peer.left:
            self.world.leave(peer)
            self.on_leave(peer)

    @rule(peer=peers)
    def give_up(self, peer: Peer) -> None:
        if peer.blocked and not peer.left:
            self.world.give_up(peer)
            self.on_leave(peer)

    @rule(
        peer=peers,
        name=names,
        packets=st.lists(st.tuples(sizes, st.booleans()), min_size=1, max_size=5),
        count=st.sampled_from([1, 1, 1, 12]),
    )
    def send(self, peer: Peer, name: str, packets: list[tuple[int, bool]], count: int) -> None:
        if peer.left:
            return
        self.speak(peer)
        data = [self.packet(size, is_disco) for size, is_disco in packets * count]
        for packet in data:
            self.on_packet(peer, peer.key, key(name), packet, hop=True)
        self.world.send(peer, name, *data)

    @rule(peer=peers, src=names, dst=names, is_disco=st.booleans())
    def forward(self, peer: Peer, src: str, dst: str, is_disco: bool) -> None:
        if peer.left:
            return
        self.speak(peer)
        packet = self.packet(0, is_disco)
        frame = pack_forward_packet(public(src), public(dst), packet)
        if self.refused(peer, frame):
            return
        self.on_packet(peer, key(src), key(dst), packet, hop=False)

    @rule(peer=peers)
    def watch(self, peer: Peer) -> None:
        if peer.left:
            return
        self.speak(peer)
        present = [other.connection.present_frame() for other in self.current.values()]
        # A repeat is not answered again while all of the first answer still waits.
        written = presents_of(peer)
        repeat = self.pictured.get(peer) == written
        if self.refused(peer, pack_watch_conns()):
            return
        if not repeat:
            self.notices[peer].update(present)
            self.pictured[peer] = written
        if peer not in self.watching:
            self.watching.append(peer)

    @rule(peer=peers, name=names)
    def close_peer(self, peer: Peer, name: str) -> None:
        if peer.left:
            return
        self.speak(peer)
        targets = [other for other in self.world.peers if other.name == name]
        if self.refused(peer, pack_close_peer(public(name))):
            return
        assert all(target.left for target in targets)
        for target in targets:
            self.on_leave(target)

    def refused(self, peer: Peer, frame: bytes) -> bool:
        """Send a frame that needs the mesh key; return whether it ended the connection."""
        if peer.connection.can_mesh:
            self.world.feed(peer, frame)
            return False
        with pytest.raises(RemoteProtocolError, match="insufficient permissions"):
            self.world.feed(peer, frame)
        self.on_leave(peer)
        return True

    @rule(
        peer=peers,
        frame=st.sampled_from(
            [
                pack_ping(b"12345678"),
                pack_note_preferred(True),
                pack_note_preferred(False),
                pack_frame(0x77, bytes(100)),
            ]
        ),
        cut=st.integers(0, 13),
    )
    def other(self, peer: Peer, frame: bytes, cut: int) -> None:
        if not peer.left:
            self.speak(peer)
            self.world.feed(peer, frame[:cut])
            self.world.feed(peer, frame[cut:])

    @rule(peer=peers, room=st.sampled_from([0, 50, 5000, 150_000]))
    def stall(self, peer: Peer, room: int) -> None:
        self.slow.add(peer)
        peer.stall(room)

    @rule(peer=peers, room=st.sampled_from([None, None, 100, 70_000]))
    def read(self, peer: Peer, room: int | None) -> None:
        if not peer.left:
            if room is not None:
                self.slow.add(peer)
            peer.read(room)

    @rule(name=names, i=st.integers(0, 1))
    def add_forwarder(self, name: str, i: int) -> None:
        self.world.router.add_forwarder(key(name), self.far[i])
        known = self.forwarders.setdefault(key(name), [])
        if self.far[i] not in known:
            known.append(self.far[i])

    @rule(name=names, i=st.integers(0, 1))
    def remove_forwarder(self, name: str, i: int) -> None:
        self.world.router.remove_forwarder(key(name), self.far[i])
        known = self.forwarders.get(key(name), [])
        if self.far[i] in known:
            known.remove(self.far[i])
            if not known and key(name) not in self.current:
                self.left_region(key(name))

    @rule()
    def flush(self) -> None:
        self.world.flush()
        assert not self.world.router.dirty

    @rule(quarters=st.integers(1, 8))
    def wait(self, quarters: int) -> None:
        self.world.now += quarters / 4

    # What must hold

    @invariant()
    def counts_match(self) -> None:
        self.world.check()
        registry = self.world.registry
        active = {raw: connection.sink for raw, connection in registry.active.items()}
        assert active == self.current
        assert [connection.sink for connection in registry.watchers] == self.watching
        forwarders = self.world.router.forwarders
        for name in KEYS:
            known = self.forwarders.get(key(name))
            assert forwarders.get(key(name)) is (known[0] if known else None)

    @invariant()
    def other_relays_got_their_packets(self) -> None:
        for far in self.far:
            assert far.taken == [number for to, number in self.forwarded if to is far]

    @invariant()
    def drops_are_those_of_the_model(self) -> None:
        for reason in DropReason:
            if reason not in FATES_OF_THE_SLOW:
                assert self.world.counters.dropped(reason) == self.lost[reason]

    def teardown(self) -> None:
        """Let all clients read what is left for them, and leave; no state remains."""
        for peer in list(self.world.peers):
            peer.read()
        self.world.flush()
        arrived = sum(self.arrivals(peer) for peer in self.everyone)
        owed = sum(map(len, self.owed.values()))
        counters = self.world.counters
        assert owed == arrived + sum(map(counters.dropped, FATES_OF_THE_SLOW))
        assert counters.packets_sent == arrived
        for peer in list(self.world.peers):
            self.world.leave(peer)
        for raw, known in self.forwarders.items():
            for far in list(known):
                self.world.router.remove_forwarder(raw, far)
        self.world.flush()
        self.world.check()
        assert not self.world.registry.sent_to
        assert not self.world.registry.watchers
        assert len(self.world.router.forwarders) == 0

    def arrivals(self, peer: Peer) -> int:
        """Check the frames that a connection got; return how many packets it got."""
        frames = peer.frames()
        packets = [frame for frame in frames if frame[0] == FrameType.RECV_PACKET]
        owed = [frame for _, frame in self.owed[peer]]
        for kind in (False, True):
            rest = iter(frame for frame in owed if looks_like_disco(frame[37:]) == kind)
            got = [frame for frame in packets if looks_like_disco(frame[37:]) == kind]
            assert all(frame in rest for frame in got), "a subsequence, each once"
        if peer not in self.slow and not peer.left:
            assert packets == owed
        changes = Counter(
            frame for frame in frames if frame[0] in (FrameType.PEER_GONE, FrameType.PEER_PRESENT)
        )
        if peer.left:
            assert changes <= self.notices[peer]
        else:
            assert changes == self.notices[peer]
        return len(packets)


Relay.TestCase.settings = settings(max_examples=100, stateful_step_count=40, deadline=None)
TestRelay = Relay.TestCase
