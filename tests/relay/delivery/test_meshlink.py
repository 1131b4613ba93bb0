"""The bounded queue of packets for another relay of the mesh."""

from __future__ import annotations

import pytest

from pyderp.relay.counters import DropReason
from pyderp.relay.delivery import MESH_QUEUE_BYTES, MESH_QUEUE_DEPTH, MeshLink
from pyderp.wire.frames import MAX_PACKET_SIZE, FrameType, pack_forward_packet
from tests.relay.world import World, disco, key, public

U1, U2 = key("u1"), key("u2")


class TestMeshLink:
    """The queue of frames to another relay."""

    def test_a_link_that_is_down_refuses_packets_and_wakes_no_writer(self) -> None:
        woken: list[int] = []
        link = MeshLink(lambda: woken.append(1))
        assert link.forward(U1, U2, b"x") is DropReason.MESH_LINK_DOWN
        assert link.take() == []
        assert woken == []

    def test_frames_are_queued_in_order_and_only_the_first_wakes_the_writer(self) -> None:
        woken: list[int] = []
        link = MeshLink(lambda: woken.append(1))
        link.connected = True
        assert [link.forward(U1, U2, data) for data in (b"x", b"", disco())] == [None] * 3
        assert woken == [1]
        src, dst = public("u1"), public("u2")
        assert link.take() == [pack_forward_packet(src, dst, d) for d in (b"x", b"", disco())]
        assert link.take() == []
        assert link.forward(U1, U2, b"again") is None
        assert woken == [1, 1]

    def test_the_queue_of_a_link_is_bounded_in_frames_and_refuses_the_newest(self) -> None:
        link = MeshLink(lambda: None)
        link.connected = True
        taken = [link.forward(U1, U2, b"%d" % i) for i in range(MESH_QUEUE_DEPTH + 1)]
        assert taken == [None] * MESH_QUEUE_DEPTH + [DropReason.MESH_LINK_FULL]
        assert link.take()[-1].endswith(b"%d" % (MESH_QUEUE_DEPTH - 1))
        assert link.forward(U1, U2, b"x") is None

    def test_the_queue_of_a_link_is_bounded_in_bytes(self) -> None:
        link = MeshLink(lambda: None)
        link.connected = True
        count = MESH_QUEUE_BYTES // (5 + 64 + MAX_PACKET_SIZE)
        for _ in range(2):
            for _ in range(count):
                assert link.forward(U1, U2, bytes(MAX_PACKET_SIZE)) is None
            assert link.forward(U1, U2, bytes(MAX_PACKET_SIZE)) is DropReason.MESH_LINK_FULL
            rest = MESH_QUEUE_BYTES - count * (5 + 64 + MAX_PACKET_SIZE) - (5 + 64)
            assert link.forward(U1, U2, bytes(rest + 1)) is DropReason.MESH_LINK_FULL
            assert link.forward(U1, U2, bytes(rest)) is None, "a smaller packet still fits"
            frames = link.take()
            assert sum(map(len, frames)) == MESH_QUEUE_BYTES
            assert {frame[0] for frame in frames} == {FrameType.FORWARD_PACKET}

    def test_a_batch_stays_queued_until_it_is_written(self) -> None:
        """`batch` returns the first frames that have that many bytes, and does not remove them."""
        woken: list[int] = []
        link = MeshLink(lambda: woken.append(1))
        link.connected = True
        assert link.batch(1000) == []
        for i in range(10):
            link.forward(U1, U2, b"%d" % i)
        assert [frame[-1:] for frame in link.batch(200)] == [b"0", b"1", b"2"]
        assert [frame[-1:] for frame in link.batch(210)] == [b"0", b"1", b"2"]
        link.written(3)
        assert [frame[-1:] for frame in link.batch(10**6)] == [b"%d" % i for i in range(3, 10)]
        link.written(7)
        assert link.batch(1) == []
        assert woken == [1]
        link.forward(U1, U2, bytes(MAX_PACKET_SIZE))
        assert woken == [1, 1]
        assert [len(frame) for frame in link.take()] == [5 + 64 + MAX_PACKET_SIZE]

    def test_frames_being_written_count_for_the_bounds(self) -> None:
        link = MeshLink(lambda: None)
        link.connected = True
        for i in range(MESH_QUEUE_DEPTH):
            link.forward(U1, U2, b"%d" % i)
        count = len(link.batch(700))
        assert link.forward(U1, U2, b"x") is DropReason.MESH_LINK_FULL
        link.written(count)
        assert [link.forward(U1, U2, b"x") for _ in range(count)] == [None] * count
        assert link.forward(U1, U2, b"x") is DropReason.MESH_LINK_FULL

    def test_the_packet_path_never_connects(self, world: World) -> None:
        link, s = MeshLink(lambda: pytest.fail("woken")), world.join("s")
        world.router.add_forwarder(U1, link)
        world.send(s, "u1", b"x", disco())
        assert not link.connected
        assert world.counters.dropped(DropReason.MESH_LINK_DOWN) == 2
        assert world.got(s) == []
        world.check()
