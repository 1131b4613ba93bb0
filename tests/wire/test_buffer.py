"""Complete frames, however the stream is cut; the client's fast lanes equal frame by frame."""

from __future__ import annotations

import array
import itertools
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from pyderp.errors import FrameTooLarge, LocalProtocolError, RemoteProtocolError, UnexpectedFrame
from pyderp.keys import NodePublic
from pyderp.wire import frames
from pyderp.wire.buffer import FrameBuffer, PacketLane, SendQueue
from pyderp.wire.client import ClientSession
from pyderp.wire.messages import (
    KeepAlive,
    Message,
    ReceivedPacket,
    Skipped,
    unpack_message_untrusted,
)
from tests import vectors as v

from .chunks import byte_by_byte, chunkings

STREAM = bytes.fromhex(
    "04 00000003 616263"  # a small frame
    "06 00000000"  # an empty one
    "ff 00000001 00"  # an unknown type
)
FRAMES = [(0x04, b"abc"), (0x06, b""), (0xFF, b"\0")]


@pytest.mark.parametrize("chunks", chunkings(STREAM))
def test_any_chunking_has_the_same_frames(chunks: list[bytes]) -> None:
    buffer = FrameBuffer(limit=3)
    assert [f for chunk in chunks for f in buffer.receive_data(chunk)] == FRAMES
    assert len(buffer) == 0


def test_a_frame_is_returned_with_its_last_byte() -> None:
    buffer = FrameBuffer(limit=3)
    held = [(list(buffer.receive_data(chunk)), len(buffer)) for chunk in byte_by_byte(STREAM[:8])]
    assert held == [([], n) for n in range(1, 8)] + [([FRAMES[0]], 0)]


@pytest.mark.parametrize("make", [bytes, bytearray, memoryview])
def test_any_bytes_like_object_may_be_passed_and_reused(
    make: type[bytes] | type[bytearray] | type[memoryview],
) -> None:
    mutable = bytearray(STREAM)
    buffer = FrameBuffer(limit=3)
    given = list(buffer.receive_data(make(mutable)))
    mutable[:] = bytes(len(mutable))
    assert given == FRAMES
    assert all(type(payload) is bytes for _, payload in given)


@pytest.mark.parametrize("limit", [0, 1, 1024, 1048576])
def test_limit_is_inclusive(limit: int) -> None:
    payload = b"x" * limit
    assert list(FrameBuffer(limit).receive_data(b"\x05" + limit.to_bytes(4, "big") + payload)) == [
        (5, payload)
    ]


@pytest.mark.parametrize("chunks", chunkings(bytes.fromhex("06 00000000 05 00100001")))
def test_a_larger_frame_is_refused_at_its_header(chunks: list[bytes]) -> None:
    buffer = FrameBuffer(limit=1048576)
    frames: list[tuple[int, bytes]] = []

    def feed_all() -> None:
        for chunk in chunks:
            frames.extend(buffer.receive_data(chunk))

    with pytest.raises(FrameTooLarge) as caught:
        feed_all()
    assert str(caught.value) == (
        "unexpectedly large frame of 1048577 bytes returned, limit is 1048576"
    )
    assert caught.value.frame_type == 5
    assert frames == [(6, b"")]


def test_limit_may_change_between_two_frames_of_one_chunk() -> None:
    buffer = FrameBuffer(limit=3)
    frames = []
    for frame in buffer.receive_data(STREAM[:8] + b"\x05\x00\x00\x00\x04wxyz"):
        frames.append(frame)
        buffer.limit = 4
    assert frames == [FRAMES[0], (5, b"wxyz")]


def test_frames_read_before_a_loop_ends_are_not_returned_again() -> None:
    buffer = FrameBuffer(limit=3)
    first = buffer.receive_data(STREAM)
    assert next(first) == FRAMES[0]
    first.close()  # type: ignore[attr-defined]  # a generator
    assert list(buffer.receive_data(b"")) == FRAMES[1:]


def test_missing_is_the_rest_of_the_header_and_then_of_the_frame() -> None:
    buffer = FrameBuffer(limit=100)
    seen = []
    for chunk in byte_by_byte(bytes.fromhex("04 00000003 616263 06 00")):
        seen.append(buffer.missing)
        list(buffer.receive_data(chunk))
    assert seen == [5, 4, 3, 2, 1, 3, 2, 1, 5, 4]
    assert buffer.missing == 3


def test_held_are_the_bytes_of_the_frame_that_is_incomplete_or_too_large() -> None:
    buffer = FrameBuffer(limit=3)
    list(buffer.receive_data(STREAM[:8] + b"\x05\0"))
    assert buffer.held == b"\x05\0"
    with pytest.raises(FrameTooLarge):
        list(buffer.receive_data(b"\0\0\x04abc"))
    assert buffer.held == b"\x05\0\0\0\x04abc"


quick = settings(derandomize=True, deadline=None, max_examples=300)

LIMIT = frames.MAX_CLIENT_FRAME
KEEP_ALIVE = frames.KEEP_ALIVE_FRAME


def packet(source: NodePublic, data: bytes) -> bytes:
    return frames.pack_received_packet(source, data)


def lane() -> PacketLane:
    return PacketLane(LIMIT)


# In


def test_a_run_of_packets_is_read_up_to_the_first_other_frame() -> None:
    run = packet(v.K1, b"a") * 3 + packet(v.K2, b"bc") + packet(v.K1, b"")
    expected = [
        ReceivedPacket(v.K1, b"a"),
        ReceivedPacket(v.K1, b"a"),
        ReceivedPacket(v.K1, b"a"),
        ReceivedPacket(v.K2, b"bc"),
        ReceivedPacket(v.K1, b""),
    ]
    for rest in (
        b"",
        KEEP_ALIVE + packet(v.K1, bytes(50)),
        packet(v.K1, b"a")[:-1],
        packet(v.K1, b"")[:4],
        frames.pack_frame(5, bytes(31)) + packet(v.K1, b"a"),
        frames.frame_header(5, LIMIT + 1) + bytes(LIMIT + 1),
    ):
        messages: list[Message] = []
        assert lane().take_untrusted(b"x" + run + rest, 1, messages) == 1 + len(run)
        assert messages == expected


def test_limit_of_the_lane_is_inclusive() -> None:
    small = PacketLane(limit=40)
    messages: list[Message] = []
    largest = packet(v.K1, bytes(8))
    assert small.take_untrusted(largest + packet(v.K1, bytes(9)), 0, messages) == len(largest)
    assert messages == [ReceivedPacket(v.K1, bytes(8))]


@pytest.mark.parametrize(
    ("data", "used"),
    [
        (b"", False),
        (KEEP_ALIVE * 10, False),
        (frames.pack_frame(5, bytes(31)) + bytes(10), False),
        (packet(v.K1, b"a")[:36], False),
        (packet(v.K1, b"a")[:37], True),
        (packet(v.K1, b"a"), True),
    ],
    ids=["nothing", "other frames", "too short", "half a key", "half a packet", "a packet"],
)
def test_a_lane_is_used_once_a_packet_has_begun(data: bytes, used: bool) -> None:
    fresh = lane()
    fresh.take_untrusted(data, 0, [])
    assert fresh.used is used


def test_packets_of_one_peer_share_a_key() -> None:
    messages: list[Message] = []
    data = packet(v.K1, b"a") + packet(v.K2, b"b") + packet(v.K1, b"cc")
    at = lane().take_untrusted(data, 0, messages)
    assert at == len(data)
    first, _, third = messages
    assert isinstance(first, ReceivedPacket)
    assert isinstance(third, ReceivedPacket)
    assert first.source is third.source


def test_the_number_of_remembered_keys_is_bounded() -> None:
    busy = lane()
    keys = [NodePublic(n.to_bytes(32, "big")) for n in range(1500)]
    messages: list[Message] = []
    for key in (*keys, *keys):
        busy.take_untrusted(packet(key, b"x"), 0, messages)
    assert messages == [ReceivedPacket(key, b"x") for key in (*keys, *keys)]
    assert len(busy._sources) <= 1024


def test_the_lane_continues_behind_other_frames_and_cuts() -> None:
    """All other frames are read frame by frame."""
    session = ClientSession(v.CLIENT, random=v.gives(v.CLIENT_NONCE))
    stream = packet(v.K1, b"a") * 2 + KEEP_ALIVE + packet(v.K1, b"b") * 2
    assert session.receive_data(v.SERVER_KEY_FRAME + stream + stream[:50]) == [
        ReceivedPacket(v.K1, b"a"),
        ReceivedPacket(v.K1, b"a"),
        KeepAlive(),
        ReceivedPacket(v.K1, b"b"),
        ReceivedPacket(v.K1, b"b"),
        ReceivedPacket(v.K1, b"a"),
    ]
    assert not session._between_frames
    assert session.receive_data(stream[50:])[0] == ReceivedPacket(v.K1, b"a")
    assert session._between_frames


class CountingLane(PacketLane):
    """Counts the packets that it reads."""

    taken = 0

    def take_untrusted(self, data: bytes, at: int, messages: list[Message]) -> int:
        before = len(messages)
        at = super().take_untrusted(data, at, messages)
        self.taken += len(messages) - before
        return at


@pytest.mark.parametrize("between", [KEEP_ALIVE, frames.pack_ping(b"12345678")])
def test_packets_behind_another_frame_are_read_by_the_lane(between: bytes) -> None:
    session = ClientSession(v.CLIENT, random=v.gives(v.CLIENT_NONCE), server_key=v.SERVER.public)
    session._packets = counting = CountingLane(LIMIT)
    session.receive_data((packet(v.K1, b"a") * 3 + between) * 2 + packet(v.K1, b"a"))
    assert counting.taken == 7


def test_a_packet_inside_a_packet_is_data() -> None:
    """Wherever the outer packet is cut."""
    inner = packet(v.K2, b"inner")
    outer = packet(v.K1, inner * 2)
    for chunks in chunkings(outer):
        assert all_at_once(chunks)[0] == [ReceivedPacket(v.K1, inner * 2)]


def test_a_packet_instead_of_server_key_is_refused() -> None:
    session = ClientSession(v.CLIENT, random=v.gives(v.CLIENT_NONCE))
    with pytest.raises(UnexpectedFrame):
        session.receive_data(packet(v.K1, b"a"))


def one_by_one(stream: bytes) -> tuple[list[Message], list[Skipped], str]:
    """Read a stream without the lane; return messages, skipped frames and the error."""
    messages: list[Message] = []
    skipped: list[Skipped] = []
    try:
        for kind, payload in FrameBuffer(LIMIT).receive_data(stream):
            message = unpack_message_untrusted(kind, payload)
            if isinstance(message, Skipped):
                skipped.append(message)
            else:
                messages.append(message)
    except FrameTooLarge as e:
        return messages, skipped, str(e)
    return messages, skipped, ""


def all_at_once(chunks: list[bytes]) -> tuple[list[Message], list[Skipped], str]:
    """Read the same with a session."""
    messages: list[Message] = []
    skipped: list[Skipped] = []
    session = ClientSession(
        v.CLIENT,
        random=v.gives(v.CLIENT_NONCE),
        server_key=v.SERVER.public,
        on_skip=skipped.append,
    )
    for chunk in chunks:
        try:
            messages += session.receive_data(chunk)
        except RemoteProtocolError as e:
            return messages, skipped, str(e)
    return messages, skipped, str(session.error or "")


some_packets = st.builds(
    packet,
    st.sampled_from([v.K1, v.K2]),
    st.sampled_from([b"", b"a", b"b" * 40, packet(v.K2, b"in")]),
)
runs = st.builds(lambda frame, times: frame * times, some_packets, st.integers(1, 5))
any_frames = st.builds(
    frames.pack_frame,
    # All but ServerInfo, which must be sealed.
    st.sampled_from([5, 6, 8, 9, 0x12, 0x13, 0x14, 0x15, 1, 0xFF]),
    st.binary(max_size=60),
)
streams = st.builds(
    lambda whole, end: b"".join(whole) + end,
    st.lists(runs | any_frames, max_size=8),
    st.just(b"") | st.binary(max_size=40) | st.just(frames.frame_header(5, LIMIT + 1)),
).filter(lambda stream: not _has_server_info(stream))


def _has_server_info(stream: bytes) -> bool:
    try:
        return any(kind == 3 for kind, _ in FrameBuffer(LIMIT).receive_data(stream))
    except FrameTooLarge:
        return False


@quick
@given(streams, st.lists(st.integers(0, 400), max_size=12))
@example(packet(v.K1, b"a") * 2 + frames.pack_frame(5, b"short") + packet(v.K1, b"a"), [37, 38, 75])
def test_any_chunking_has_the_result_of_frame_by_frame(stream: bytes, cuts: list[int]) -> None:
    edges = [0, *sorted(cut for cut in cuts if cut < len(stream)), len(stream)]
    chunks = [stream[start:end] for start, end in itertools.pairwise(edges)]
    messages, skipped, error = all_at_once(chunks)
    expected, expected_skipped, expected_error = one_by_one(stream)
    assert (skipped, error) == (expected_skipped, expected_error)
    assert messages == expected


@quick
@given(streams)
def test_every_cut_in_two_and_byte_by_byte_has_the_same_result(stream: bytes) -> None:
    stream = stream[:200]
    expected, _, error = one_by_one(stream)
    for chunks in chunkings(stream):
        messages, _, found = all_at_once(chunks)
        assert found == error
        assert messages == expected


# Out

PACKETS = [b"a" * 40, b"b" * 40, b"", b"c", b"d" * 40, bytes(65536)]


def frames_of(packets: list[bytes]) -> bytes:
    return b"".join(frames.pack_send_packet(v.K1, data) for data in packets)


def test_packets_are_packed_like_single_ones() -> None:
    queue = SendQueue()
    assert queue.add_packets(v.K1, PACKETS) == len(PACKETS)
    assert (queue.packets, queue.size) == (len(PACKETS), len(frames_of(PACKETS)))
    assert b"".join(queue.take()) == frames_of(PACKETS)
    assert (queue.packets, queue.size, queue.take()) == (0, 0, [])
    assert queue.add_packets(v.K1, []) == 0
    assert queue.take() == []


def test_frames_and_packets_are_sent_in_order() -> None:
    queue = SendQueue()
    queue.add(KEEP_ALIVE)
    queue.add_packets(v.K1, [b"a"])
    queue.add(KEEP_ALIVE * 2, packets=2)
    assert (queue.packets, queue.size) == (3, 15 + 38)
    assert b"".join(queue.take()) == KEEP_ALIVE + frames_of([b"a"]) + KEEP_ALIVE * 2


def test_the_queue_stops_once_it_exceeds_the_limit() -> None:
    """It continues from there. Bytes that waited before count, too."""
    queue = SendQueue()
    queue.add(bytes(100))
    packets = [bytes(63)] * 5
    assert queue.add_packets(v.K1, packets, limit=299) == 2
    queue.take()
    assert queue.add_packets(v.K1, packets, 2, limit=200) == 5
    assert queue.packets == 3


def test_packets_that_are_not_allowed_are_skipped() -> None:
    """`allowed` is called with the size of the whole frame, in order, and not beyond the limit."""
    queue = SendQueue()
    asked: list[int] = []

    def allowed(size: int) -> bool:
        asked.append(size)
        return size != 38

    packets = [b"aa", b"b", b"cc", b"d"]
    assert queue.add_packets(v.K1, packets, limit=78 - 1, allowed=allowed) == 3
    assert asked == [39, 38, 39]
    assert b"".join(queue.take()) == frames_of([b"aa", b"cc"])


def test_session_sends_all_packets_or_none() -> None:
    session = ClientSession(v.CLIENT, random=v.gives(v.CLIENT_NONCE), server_key=v.SERVER.public)
    session.data_to_send()
    session.send_packets(v.K1, iter(PACKETS))
    assert b"".join(session.data_to_send()) == frames_of(PACKETS)
    session.send_packets(v.K1, [])
    with pytest.raises(LocalProtocolError, match="packet too big: 65537"):
        session.send_packets(v.K1, [*PACKETS, bytes(65537)])
    assert session.data_to_send() == []


def test_packets_of_any_bytes_like_object_are_packed_with_all_their_bytes() -> None:
    numbers = array.array("I", [1, 2])
    plain = numbers.tobytes()
    session = ClientSession(v.CLIENT, random=v.gives(v.CLIENT_NONCE), server_key=v.SERVER.public)
    session.data_to_send()
    # One of two bytes first: its length is the number of items of the next.
    session.send_packets(v.K1, [b"ab", memoryview(numbers), bytearray(numbers), b"cd"])
    assert b"".join(session.data_to_send()) == frames_of([b"ab", plain, plain, b"cd"])


@pytest.mark.parametrize("wrong", ["ab", [1, 2], 2, None])
def test_an_invalid_packet_is_refused_before_anything_is_queued(wrong: Any) -> None:
    session = ClientSession(v.CLIENT, random=v.gives(v.CLIENT_NONCE), server_key=v.SERVER.public)
    session.data_to_send()
    name = type(wrong).__name__
    calls: list[Callable[[], None]] = [
        lambda: session.send_packets(v.K1, [b"ab", wrong]),
        lambda: session.send_packet(v.K1, wrong),
        lambda: session.forward_packet(v.K1, v.K2, wrong),
    ]
    for call in calls:
        with pytest.raises(TypeError, match=f"a packet is bytes, not {name}"):
            call()
    for ping in (session.send_ping, session.send_pong):
        with pytest.raises(TypeError, match=f"a ping is bytes, not {name}"):
            ping(wrong)
    with pytest.raises(TypeError, match="a packet is bytes, not int"):
        session.send_packets(v.K1, b"packets")  # type: ignore[arg-type]  # one, not several
    assert session.data_to_send() == []


def test_packets_cannot_be_sent_before_server_key() -> None:
    session = ClientSession(v.CLIENT, random=v.gives(v.CLIENT_NONCE))
    with pytest.raises(LocalProtocolError, match="cannot send while greeting"):
        session.send_packets(v.K1, [b"hello"])
    assert session.data_to_send() == []
