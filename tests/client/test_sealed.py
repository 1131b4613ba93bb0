"""SealedPeer: each packet opens once, at one side, for a minute."""

from __future__ import annotations

import hashlib
import itertools
import struct

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pyderp.client.sealed import SealedPeer
from pyderp.errors import InvalidKey, LocalProtocolError, SealError
from pyderp.keys import NodePrivate, NodePublic
from tests import vectors as v
from tests.conftest import Run

quick = settings(derandomize=True, deadline=None, max_examples=60)

A = NodePrivate.generate(b"\x0a" * 32)
B = NodePrivate.generate(b"\x0b" * 32)
C = NodePrivate.generate(b"\x0c" * 32)
START = 1_700_000_000.0


class Clock:
    """Time that stands until it is told to go."""

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
    """Why a packet is refused."""
    with pytest.raises(SealError) as caught:
        receiver.open_untrusted(packet)
    return str(caught.value)


def forged(plain: bytes) -> bytes:
    """A packet from Alice to Bob with a content of the test's choice."""
    return b"PDS\x01" + A.seal_to(B.public, plain, nonce=fresh(24))


def context(sender: NodePrivate, receiver: NodePrivate) -> bytes:
    keys = sender.public.raw + receiver.public.raw
    return hashlib.sha256(b"pyderp sealed packet 1\0" + keys).digest()[:16]


# What passes


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


def test_layout() -> None:
    """Frozen: other versions must be able to read it."""
    alice, _, _ = pair()
    alice.seal(b"first")
    packet = alice.seal(b"hello")
    assert packet[:4] == b"PDS\x01"
    plain = B.open_from(A.public, packet[4:])
    assert plain[:16] == context(A, B)
    assert plain[16:32] == alice._session
    assert struct.unpack(">QQ", plain[32:48]) == (1, 1_700_000_000_000)
    assert plain[48:] == b"hello"


def test_same_payload_never_gives_the_same_packet() -> None:
    alice, _, _ = pair()
    assert len({alice.seal(b"same") for _ in range(10)}) == 10


def test_one_may_talk_to_oneself() -> None:
    me = peer(A, A.public, Clock())
    packet = me.seal(b"note")
    assert me.open_untrusted(packet) == b"note"
    assert "replay" in refused(me, packet)


def test_send_seals_and_sends_to_the_peer(run: Run) -> None:
    async def main() -> None:
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

    run(main())


@pytest.mark.parametrize("key", [v.ZERO_KEY, v.LOW_ORDER_KEY])
def test_key_that_shares_no_secret_is_refused(key: NodePublic) -> None:
    with pytest.raises(InvalidKey, match="no secret can be shared"):
        SealedPeer(A, key, send=nowhere)


# What does not


@pytest.mark.parametrize("packet", [b"", b"PDS", b"PDS\x02" + bytes(100), b"hello world"])
def test_what_is_no_sealed_packet(packet: bytes) -> None:
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


def test_packet_of_someone_else_is_forged() -> None:
    carol = peer(C, B.public, Clock())
    _, bob, _ = pair()
    assert "forged" in refused(bob, carol.seal(b"I am Alice"))


def test_packet_for_someone_else_is_forged() -> None:
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
    """So a replay does not pass after a restart."""
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


def test_refused_packet_uses_nothing_up() -> None:
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
def test_jump_of_the_counter_costs_nothing_and_forgets_nothing(jump: int) -> None:
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


def test_clock_that_goes_back_does_not_let_replays_in() -> None:
    alice, bob, clock = pair()
    packet = alice.seal(b"hello")
    bob.open_untrusted(packet)
    clock.now += 100
    bob.open_untrusted(peer(A, B.public, clock).seal(b"x"))
    clock.now -= 100
    assert "forgotten" in refused(bob, packet)
    assert "forgotten" in refused(bob, alice.seal(b"of the same time"))


def test_sessions_are_bounded_and_none_is_replayed() -> None:
    """The one whose last packet is the oldest goes, and with it whatever was sealed till then."""
    alice, bob, clock = pair()
    first = [alice.seal(b"1"), alice.seal(b"2")]
    bob.open_untrusted(first[0])
    for _ in range(64):
        clock.now += 0.1
        bob.open_untrusted(peer(A, B.public, clock).seal(b"x"))
    assert len(bob._seen._sessions) == 64
    assert "forgotten" in refused(bob, first[0])
    # The session comes back with a later packet; what is older stays refused.
    later = alice.seal(b"3")
    assert bob.open_untrusted(later) == b"3"
    for packet in (*first, later):
        refused(bob, packet)


@quick
@given(st.data())
def test_any_order_with_duplicates_opens_each_packet_once(data: st.DataObject) -> None:
    """Two sessions of Alice, some packets lost, some twice, all within the window."""
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
