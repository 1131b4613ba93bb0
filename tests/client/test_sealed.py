"""SealedPeer: each packet opens once, at one side, for a minute."""

from __future__ import annotations

import array
import gc
import hashlib
import itertools
import struct

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pyderp import Client
from pyderp.client.sealed import SealedPeer, SealedPeers
from pyderp.errors import InvalidKey, LocalProtocolError, SealError
from pyderp.keys import NodePrivate, NodePublic
from tests import vectors as v

quick = settings(derandomize=True, deadline=None, max_examples=60)

A = NodePrivate.generate(b"\x0a" * 32)
B = NodePrivate.generate(b"\x0b" * 32)
C = NodePrivate.generate(b"\x0c" * 32)
START = 1_700_000_000.0


class Clock:
    """A clock that goes on only when the test sets it."""

    def __init__(self) -> None:
        self.now = START

    def __call__(self) -> float:
        return self.now


async def nowhere(_: NodePublic, __: bytes) -> None:
    raise AssertionError("sent")


_numbers = itertools.count()


def fresh(n: int) -> bytes:
    """Bytes that never repeat."""
    return next(_numbers).to_bytes(n, "big")


def peer(private: NodePrivate, public: NodePublic, clock: Clock) -> SealedPeer:
    return SealedPeer(private, public, send=nowhere, random=fresh, clock=clock)


def pair(clock: Clock | None = None) -> tuple[SealedPeer, SealedPeer, Clock]:
    """Alice's channel to Bob, Bob's to Alice, and the clock of both."""
    clock = clock or Clock()
    return peer(A, B.public, clock), peer(B, A.public, clock), clock


def refused(receiver: SealedPeer, packet: bytes) -> str:
    """The reason why a packet is refused."""
    with pytest.raises(SealError) as caught:
        receiver.open_untrusted(packet)
    return str(caught.value)


def forged(plain: bytes) -> bytes:
    """A packet from Alice to Bob with content of the test's choice."""
    return b"PDS\x01" + A.seal_to(B.public, plain, nonce=fresh(24))


def context(sender: NodePrivate, receiver: NodePrivate) -> bytes:
    keys = sender.public.raw + receiver.public.raw
    return hashlib.sha256(b"pyderp sealed packet 1\0" + keys).digest()[:16]


# Packets that open


@pytest.mark.parametrize("data", [b"", b"x", b"hello", bytes(SealedPeer.max_payload)])
def test_sealed_packet_opens_at_the_other_side(data: bytes) -> None:
    alice, bob, _ = pair()
    for sender, receiver in ((alice, bob), (bob, alice)):
        packet = sender.seal(data)
        assert len(packet) == len(data) + SealedPeer.overhead
        assert receiver.open_untrusted(packet) == data


def test_longest_payload_makes_the_longest_packet() -> None:
    alice, _, _ = pair()
    assert len(alice.seal(bytes(alice.max_payload))) == 65536
    with pytest.raises(LocalProtocolError, match="payload too big: 65445, at most 65444 bytes"):
        alice.seal(bytes(alice.max_payload + 1))


def test_layout_of_a_packet() -> None:
    """The layout is frozen: other versions must be able to read it."""
    alice, _, _ = pair()
    alice.seal(b"first")
    packet = alice.seal(b"hello")
    assert packet[:4] == b"PDS\x01"
    plain = B.open_from(A.public, packet[4:])
    assert plain[:16] == context(A, B)
    assert plain[16:32] == alice._session
    assert struct.unpack(">QQ", plain[32:48]) == (1, 1_700_000_000_000)
    assert plain[48:] == b"hello"


def test_the_same_payload_never_makes_the_same_packet() -> None:
    alice, _, _ = pair()
    assert len({alice.seal(b"same") for _ in range(10)}) == 10


def test_a_client_can_seal_for_itself() -> None:
    me = peer(A, A.public, Clock())
    packet = me.seal(b"note")
    assert me.open_untrusted(packet) == b"note"
    assert "replay" in refused(me, packet)


async def test_send_seals_and_sends_to_the_peer() -> None:
    sent: list[tuple[NodePublic, bytes]] = []

    async def send(key: NodePublic, packet: bytes) -> None:
        sent.append((key, packet))

    alice = SealedPeer(A, B.public, send=send)
    bob = SealedPeer(B, A.public, send=send)
    await alice.send(b"hello")
    [(key, packet)] = sent
    assert key == B.public
    assert bob.open_untrusted(packet) == b"hello"
    with pytest.raises(LocalProtocolError):
        await alice.send(bytes(65536))


NO_SECRET = [
    v.ZERO_KEY,
    v.LOW_ORDER_KEY,
    NodePublic(b"\x01" + bytes(31)),
    NodePublic(b"\xec" + b"\xff" * 30 + b"\x7f"),
    NodePublic(b"\xed" + b"\xff" * 30 + b"\x7f"),
]


@pytest.mark.parametrize("key", NO_SECRET)
async def test_key_that_shares_no_secret_opens_and_seals_nothing(key: NodePublic) -> None:
    """A relay can send packets of such a source: a channel to it can be made without an error."""
    alice, _, _ = pair()
    async with Client.for_url("http://127.0.0.1:1/derp", private_key=A) as client:
        for channel in (SealedPeer(A, key, send=nowhere), client.sealed(key)):
            for packet in (b"", b"PDS\x01" + bytes(88), alice.seal(b"x")):
                with pytest.raises(SealError, match="no secret can be shared with key"):
                    channel.open_untrusted(packet)
            with pytest.raises(InvalidKey, match="no secret can be shared with key"):
                channel.seal(b"x")
            with pytest.raises(InvalidKey, match="no secret can be shared with key"):
                await channel.send(b"x")


@given(st.binary(min_size=32, max_size=32))
def test_a_channel_to_any_source_can_be_made(raw: bytes) -> None:
    key = NodePublic(raw)
    someone = SealedPeers(A, send=nowhere).get(key)
    assert someone.peer == key
    with pytest.raises(SealError):
        someone.open_untrusted(b"PDS\x01" + bytes(100))


def test_payload_is_all_bytes_of_any_bytes_like_object() -> None:
    alice, bob, _ = pair()
    numbers = array.array("I", [1, 2])
    for data in (memoryview(numbers), bytearray(numbers)):
        assert bob.open_untrusted(alice.seal(data)) == numbers.tobytes()
    with pytest.raises(LocalProtocolError, match="payload too big: 65536, at most 65444"):
        alice.seal(memoryview(array.array("I", bytes(65536))))
    for wrong in ("text", [1], 8, None):
        with pytest.raises(TypeError, match=f"a payload is bytes, not {type(wrong).__name__}"):
            alice.seal(wrong)  # type: ignore[arg-type]  # a mistake of a program


# Packets that are refused


@pytest.mark.parametrize("packet", [b"", b"PDS", b"PDS\x02" + bytes(100), b"hello world"])
def test_bytes_that_are_not_a_sealed_packet_are_refused(packet: bytes) -> None:
    _, bob, _ = pair()
    assert refused(bob, packet) == "not a sealed packet"


def test_any_bit_that_flips_and_any_cut_is_refused() -> None:
    alice, bob, _ = pair()
    packet = alice.seal(b"hello")
    for bit in range(8 * len(packet)):
        changed = bytearray(packet)
        changed[bit // 8] ^= 1 << bit % 8
        text = "not a sealed packet" if bit < 32 else "sealed packet is forged or damaged"
        assert refused(bob, bytes(changed)) == text
    for end in range(len(packet)):
        refused(bob, packet[:end])
    refused(bob, packet + b"\0")
    assert bob.open_untrusted(packet) == b"hello"


def test_a_packet_of_another_sender_is_forged() -> None:
    carol = peer(C, B.public, Clock())
    _, bob, _ = pair()
    assert "forged" in refused(bob, carol.seal(b"I am Alice"))


def test_a_packet_for_another_receiver_is_forged() -> None:
    to_carol = peer(A, C.public, Clock())
    _, bob, _ = pair()
    assert "forged" in refused(bob, to_carol.seal(b"hello"))


def test_reflected_packet_is_refused() -> None:
    alice, bob, _ = pair()
    assert "reflected" in refused(alice, alice.seal(b"hello"))
    assert "reflected" in refused(bob, bob.seal(b"hello"))


@pytest.mark.parametrize("plain", [b"", b'{"version":2}', bytes(47), bytes(48), bytes(100)])
def test_box_that_was_made_for_another_use_is_refused(plain: bytes) -> None:
    _, bob, _ = pair()
    assert "another use" in refused(bob, forged(plain))


# Time


@pytest.mark.parametrize(("age", "good"), [(60.0, True), (60.001, False), (3600.0, False)])
def test_old_packet_is_refused(age: float, good: bool) -> None:
    alice, bob, clock = pair()
    packet = alice.seal(b"hello")
    clock.now += age
    if good:
        assert bob.open_untrusted(packet) == b"hello"
    else:
        assert "too old" in refused(bob, packet)


@pytest.mark.parametrize(("ahead", "good"), [(60.0, True), (60.001, False), (1e9, False)])
def test_packet_from_the_future_is_refused(ahead: float, good: bool) -> None:
    alice, bob, clock = pair()
    clock.now += ahead
    packet = alice.seal(b"hello")
    clock.now -= ahead
    if good:
        assert bob.open_untrusted(packet) == b"hello"
    else:
        assert "from the future" in refused(bob, packet)


@pytest.mark.parametrize(("before", "good"), [(5.0, True), (5.001, False)])
def test_packet_from_before_the_channel_is_refused(before: float, good: bool) -> None:
    """So a replay is refused after a restart."""
    alice, _, clock = pair()
    packet = alice.seal(b"hello")
    clock.now += before
    bob = peer(B, A.public, clock)
    if good:
        assert bob.open_untrusted(packet) == b"hello"
    else:
        assert "too old" in refused(bob, packet)


@pytest.mark.parametrize("time", [0, 2**64 - 1])
def test_extreme_times_are_refused(time: int) -> None:
    _, bob, _ = pair()
    refused(bob, forged(context(A, B) + bytes(16) + struct.pack(">QQ", 0, time)))


# Replays


def test_replay_is_refused_at_any_later_time() -> None:
    alice, bob, clock = pair()
    packet = alice.seal(b"pay 5")
    bob.open_untrusted(packet)
    for _ in range(200):
        refused(bob, packet)
        clock.now += 1.0
        bob.open_untrusted(alice.seal(b"other"))


def test_a_refused_packet_uses_up_no_counter() -> None:
    alice, bob, clock = pair()
    packet = alice.seal(b"hello")
    clock.now -= 61
    assert "future" in refused(bob, packet)
    clock.now += 61
    assert bob.open_untrusted(packet) == b"hello"


def test_window_is_2048_packets() -> None:
    alice, bob, _ = pair()
    packets = [alice.seal(bytes([n % 256])) for n in range(2050)]
    bob.open_untrusted(packets[2048])
    assert "overtook" in refused(bob, packets[0])
    assert bob.open_untrusted(packets[1]) == b"\x01"
    assert "replay" in refused(bob, packets[1])
    bob.open_untrusted(packets[2049])
    assert "overtook" in refused(bob, packets[1])
    assert "replay" in refused(bob, packets[2048])
    [session] = bob._seen._sessions.values()
    assert session.bits.bit_length() <= 2048


@pytest.mark.parametrize("jump", [2047, 2048, 2**40, 2**64 - 1])
def test_a_jump_of_the_counter_keeps_the_window(jump: int) -> None:
    _, bob, _ = pair()

    def packet(counter: int) -> bytes:
        return forged(context(A, B) + bytes(16) + struct.pack(">QQ", counter, int(START * 1000)))

    bob.open_untrusted(packet(0))
    bob.open_untrusted(packet(jump))
    for counter in (0, jump):
        refused(bob, packet(counter))


def test_sessions_that_are_old_are_forgotten() -> None:
    _, bob, clock = pair()
    for _ in range(10):
        bob.open_untrusted(peer(A, B.public, clock).seal(b"x"))
    assert len(bob._seen._sessions) == 10
    clock.now += 60.001
    bob.open_untrusted(peer(A, B.public, clock).seal(b"x"))
    assert len(bob._seen._sessions) == 1


def test_session_lives_as_long_as_its_latest_packet_is_recent() -> None:
    """Also if an older one came last."""
    alice, bob, clock = pair()
    early = alice.seal(b"early")
    clock.now += 30
    late = alice.seal(b"late")
    bob.open_untrusted(late)
    bob.open_untrusted(early)
    clock.now += 35
    assert "replay" in refused(bob, late)


def test_sessions_forgotten_in_any_order_stay_forgotten() -> None:
    alice, bob, clock = pair()
    old = alice.seal(b"old")
    clock.now += 5
    new = peer(A, B.public, clock).seal(b"new")
    bob.open_untrusted(new)
    bob.open_untrusted(old)
    clock.now += 100
    bob.open_untrusted(peer(A, B.public, clock).seal(b"x"))
    clock.now -= 100
    for packet in (old, new):
        assert "forgotten" in refused(bob, packet)


def test_a_clock_that_goes_back_admits_no_replay() -> None:
    alice, bob, clock = pair()
    packet = alice.seal(b"hello")
    bob.open_untrusted(packet)
    clock.now += 100
    bob.open_untrusted(peer(A, B.public, clock).seal(b"x"))
    clock.now -= 100
    assert "forgotten" in refused(bob, packet)
    assert "forgotten" in refused(bob, alice.seal(b"of the same time"))


def test_sessions_are_bounded_and_none_is_replayed() -> None:
    """The session whose last packet is the oldest is dropped; all packets sealed up to then are
    refused."""
    alice, bob, clock = pair()
    first = [alice.seal(b"1"), alice.seal(b"2")]
    bob.open_untrusted(first[0])
    for _ in range(64):
        clock.now += 0.1
        bob.open_untrusted(peer(A, B.public, clock).seal(b"x"))
    assert len(bob._seen._sessions) == 64
    assert "forgotten" in refused(bob, first[0])
    # The session comes back with a later packet; older ones stay refused.
    later = alice.seal(b"3")
    assert bob.open_untrusted(later) == b"3"
    for packet in (*first, later):
        refused(bob, packet)


@quick
@given(st.data())
def test_any_order_with_duplicates_opens_each_packet_once(data: st.DataObject) -> None:
    """Two sessions of Alice, some packets lost, some sent twice, all within the window."""
    clock = Clock()
    bob = peer(B, A.public, clock)
    packets: list[tuple[bytes, bytes]] = []
    for sender in (peer(A, B.public, clock), peer(A, B.public, clock)):
        for n in range(data.draw(st.integers(0, 15))):
            clock.now += 0.01
            packets.append((sender.seal(payload := bytes([n, len(packets)])), payload))
    arriving = data.draw(st.lists(st.sampled_from(packets), max_size=80)) if packets else []
    opened = []
    for packet, payload in arriving:
        if packet in opened:
            assert "replay" in refused(bob, packet)
        else:
            assert bob.open_untrusted(packet) == payload
            opened.append(packet)
    assert set(opened) == {packet for packet, _ in arriving}


@quick
@given(st.lists(st.tuples(st.floats(-30, 70), st.integers(0, 99), st.booleans()), max_size=60))
def test_nothing_opens_twice_whatever_the_clock_does(steps: list[tuple[float, int, bool]]) -> None:
    """Also with more sessions than are kept, over hours, with a clock that jumps."""
    clock = Clock()
    bob = peer(B, A.public, clock)
    packets: list[bytes] = []
    opened: set[bytes] = set()
    alice = peer(A, B.public, clock)
    for wait, pick, new in steps:
        clock.now += wait
        if new:
            for _ in range(20):
                alice = peer(A, B.public, clock)
                packets.append(alice.seal(b""))
        packets.append(alice.seal(b""))
        for packet in (packets[-1 - pick % len(packets)], *packets[-21:]):
            try:
                bob.open_untrusted(packet)
            except SealError:
                continue
            assert packet not in opened
            opened.add(packet)


@quick
@given(st.binary(max_size=200), st.booleans())
def test_any_bytes_are_refused(data: bytes, prefixed: bool) -> None:
    _, bob, _ = pair()
    refused(bob, b"PDS\x01" + data if prefixed else data)


# Many peers


def peers(clock: Clock, limit: int) -> SealedPeers:
    """Bob's channels."""
    return SealedPeers(B, send=nowhere, random=fresh, clock=clock, limit=limit)


def private(n: int) -> NodePrivate:
    # Some bits of the first and the last byte do not count.
    return NodePrivate.generate(n.to_bytes(16, "big") + bytes(16))


def invented(n: int) -> NodePublic:
    return NodePublic(hashlib.sha256(n.to_bytes(8, "big")).digest())


async def test_invented_sources_admit_no_replay() -> None:
    """A relay repeats a packet after packets of more sources than a client keeps."""
    async with Client.for_url("http://127.0.0.1:1/derp", private_key=B) as bob:
        packet = SealedPeer(A, B.public, send=nowhere).seal(b"pay 5")
        assert bob.sealed(A.public).open_untrusted(packet) == b"pay 5"
        for n in range(10_001):
            junk = bob.sealed(invented(n))
            if n % 100 == 0:
                refused(junk, packet)
        gc.collect()
        assert "replay" in refused(bob.sealed(A.public), packet)
        later = SealedPeer(A, B.public, send=nowhere).seal(b"pay 6")
        assert bob.sealed(A.public).open_untrusted(later) == b"pay 6"


async def test_10001_peers_and_no_replay() -> None:
    """The peer with the oldest last packet is dropped; its packets stay refused."""
    async with Client.for_url("http://127.0.0.1:1/derp", private_key=B) as bob:
        # The clock stands: on a busy machine the first packet would be too old at the end.
        bob._sealed.clock = clock = Clock()
        packets = []
        for n in range(1, 10_002):
            key = private(n)
            packets.append((key.public, peer(key, B.public, clock).seal(b"")))
            bob.sealed(key.public).open_untrusted(packets[-1][1])
        assert len(bob._sealed._opened) == 10_000
        gc.collect()
        (first, packet), *others = packets
        assert "forgotten" in refused(bob.sealed(first), packet)
        for other, packet in others:
            assert "replay" in refused(bob.sealed(other), packet)


def test_a_dropped_peer_comes_back_with_later_packets() -> None:
    clock = Clock()
    bob = peers(clock, 2)
    alice = peer(A, B.public, clock)
    clock.now += 1
    seen = alice.seal(b"1")
    unseen = alice.seal(b"of the same time")
    bob.get(A.public).open_untrusted(seen)
    for n in (1, 2):
        bob.get(private(n).public).open_untrusted(peer(private(n), B.public, clock).seal(b""))
    for packet in (seen, unseen):
        assert "forgotten" in refused(bob.get(A.public), packet)
    clock.now += 0.001
    later = alice.seal(b"2")
    assert bob.get(A.public).open_untrusted(later) == b"2"
    for packet in (seen, unseen, later):
        refused(bob.get(A.public), packet)


def test_floor_holds_when_the_clock_goes_back() -> None:
    """It is the time of a packet, not the time of the drop."""
    clock = Clock()
    bob = peers(clock, 1)
    clock.now += 50
    ahead = peer(A, B.public, clock).seal(b"ahead")
    bob.get(A.public).open_untrusted(ahead)
    clock.now += 100
    bob.get(A.public).open_untrusted(peer(A, B.public, clock).seal(b""))
    clock.now -= 100
    bob.get(C.public).open_untrusted(peer(C, B.public, clock).seal(b""))
    assert "forgotten" in refused(bob.get(A.public), ahead)


def test_a_peer_is_in_use_if_a_packet_opened_and_not_if_one_was_refused() -> None:
    """A relay can neither keep a peer in the cache nor push it out with packets of its own."""
    clock = Clock()
    bob = peers(clock, 2)
    packets = {n: peer(private(n), B.public, clock).seal(b"") for n in (1, 2, 3)}
    for n in (1, 2):
        bob.get(private(n).public).open_untrusted(packets[n])
    again = peer(private(1), B.public, clock).seal(b"")
    bob.get(private(1).public).open_untrusted(again)
    refused(bob.get(private(2).public), b"junk")
    bob.get(private(3).public).open_untrusted(packets[3])
    gc.collect()
    assert "replay" in refused(bob.get(private(1).public), packets[1])
    assert "forgotten" in refused(bob.get(private(2).public), packets[2])


def test_keys_without_a_secret_push_out_no_peer() -> None:
    clock = Clock()
    bob = peers(clock, 1)
    packet = peer(A, B.public, clock).seal(b"")
    bob.get(A.public).open_untrusted(packet)
    for key in NO_SECRET:
        refused(bob.get(key), packet)
    assert "replay" in refused(bob.get(A.public), packet)


def test_an_object_in_use_is_the_only_one_of_its_peer() -> None:
    """A program may hold an object that the cache has dropped, and open with it."""
    clock = Clock()
    bob = peers(clock, 1)
    held = bob.get(A.public)
    for n in range(3):
        bob.get(invented(n))
    assert bob.get(A.public) is held
    for n in range(3):
        bob.get(invented(n))
    packet = peer(A, B.public, clock).seal(b"")
    held.open_untrusted(packet)
    assert bob.get(A.public) is held
    bob.get(C.public).open_untrusted(peer(C, B.public, clock).seal(b""))
    assert bob.get(A.public) is held
    clock.now += 1
    packet = peer(A, B.public, clock).seal(b"")
    held.open_untrusted(packet)
    # A peer that has opened a packet is kept from then on, also if it had been dropped before.
    del held
    for n in range(3):
        bob.get(invented(n))
    gc.collect()
    assert "replay" in refused(bob.get(A.public), packet)


def test_both_kinds_are_bounded() -> None:
    clock = Clock()
    bob = peers(clock, 3)
    for n in range(1, 11):
        key = private(n)
        clock.now += 0.001
        bob.get(key.public).open_untrusted(peer(key, B.public, clock).seal(b""))
        bob.get(invented(n))
    gc.collect()
    assert (len(bob._opened), len(bob._unopened), len(bob._alive)) == (3, 3, 6)


@quick
@given(
    st.lists(
        st.tuples(st.sampled_from([-30.0, -1.0, 0.0, 0.0, 0.1, 1.0, 70.0]), st.integers(0, 5)),
        max_size=80,
    ),
    st.data(),
)
def test_nothing_opens_twice_however_many_peers(
    steps: list[tuple[float, int]], data: st.DataObject
) -> None:
    """With fewer places than peers, a clock that jumps, and a program that holds some objects."""
    clock = Clock()
    bob = peers(clock, 2)
    senders = [peer(private(n + 1), B.public, clock) for n in range(5)]
    packets: list[tuple[NodePublic, bytes]] = []
    opened: set[bytes] = set()
    held: list[SealedPeer] = []
    for wait, index in steps:
        clock.now += wait
        if index < 5:
            packets.append((private(index + 1).public, senders[index].seal(b"")))
        else:
            bob.get(invented(len(packets)))
        if not packets:
            continue
        for key, packet in data.draw(st.lists(st.sampled_from(packets), max_size=4)):
            mine = [each for each in held if each.peer == key]
            receiver = data.draw(st.sampled_from([*mine, bob.get(key)]))
            del mine
            held = [*held, receiver][-data.draw(st.integers(1, 3)) :]
            try:
                receiver.open_untrusted(packet)
            except SealError:
                continue
            assert packet not in opened
            opened.add(packet)
