"""Writes: when they happen, in which order, and what is counted if one ends its connection."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from pyderp.relay.backlog import Backlog, recv_frame
from pyderp.relay.connection import Connection, EndReason, How
from pyderp.relay.counters import DropReason
from pyderp.relay.delivery import Delivery
from pyderp.wire.frames import KEEP_ALIVE_FRAME, pack_health
from pyderp.wire.messages import Pong
from tests.relay.world import World, disco, key


class Socket:
    """A sink that records each write, then calls a function that the test sets."""

    def __init__(self) -> None:
        self.writes: list[list[bytes]] = []
        self.then: Callable[[], bool] = lambda: True
        """Called at the end of a write; its result is that of the write."""

    def send(self, chunks: list[bytes]) -> bool:
        self.writes.append(list(chunks))
        return self.then()

    def unsent_size(self) -> int:
        raise AssertionError("the kernel accepted everything, or the connection ended")

    def end(self, reason: EndReason, how: How, detail: str = "") -> None:
        raise AssertionError(reason)


def connect(delivery: Delivery) -> tuple[Connection, Socket]:
    """Return a registered connection and its socket."""
    socket = Socket()
    connection = Connection(key("b"), socket)
    delivery.registry.add(connection)
    return connection, socket


@pytest.fixture
def delivery() -> Delivery:
    return Delivery(lambda: 100.0)


A, B = recv_frame(key("a"), b"data"), recv_frame(key("a"), disco())


def test_a_flush_is_wanted_until_all_is_written_and_departures_are_forgotten(
    delivery: Delivery,
) -> None:
    assert not delivery.wants_flush
    connection, socket = connect(delivery)
    delivery.enqueue(connection, A, disco=False)
    assert delivery.wants_flush
    delivery.flush()
    assert not delivery.wants_flush
    assert socket.writes == [[A]]
    delivery.registry.remember(key("a"), connection)
    delivery.registry.remove(connection)
    assert delivery.wants_flush
    delivery.flush()
    assert not delivery.wants_flush


def test_no_keep_alive_is_sent_while_other_bytes_wait(delivery: Delivery) -> None:
    connection, socket = connect(delivery)
    delivery.keep_alive(connection)
    delivery.flush()
    delivery.pause(connection, 0)
    delivery.keep_alive(connection)
    delivery.resume(connection)
    delivery.flush()
    assert socket.writes == [[KEEP_ALIVE_FRAME]]


@pytest.mark.parametrize("waits", [False, True])
def test_packets_of_a_failed_write_are_write_errors(delivery: Delivery, waits: bool) -> None:
    """Packets of this turn, and packets that waited in the backlog."""
    connection, socket = connect(delivery)
    socket.then = lambda: False
    if waits:
        delivery.pause(connection, 0)
    for frame in (A, B, A):
        delivery.enqueue(connection, frame, disco=frame is B)
    delivery.send_control(connection, KEEP_ALIVE_FRAME)
    if waits:
        delivery.resume(connection)
    else:
        delivery.flush()
    counters = delivery.counters
    assert counters.drops[DropReason.WRITE_ERROR, "other"] == [2, 8]
    assert counters.drops[DropReason.WRITE_ERROR, "disco"] == [1, len(disco())]
    assert (counters.packets_sent, counters.bytes_sent) == (0, 0)
    assert (connection.packets_sent, connection.bytes_sent) == (0, 0)
    assert len(socket.writes) == 1


def test_packets_of_a_write_that_ends_its_connection_are_sent(delivery: Delivery) -> None:
    """The write itself succeeded. Later packets are not for this socket."""
    connection, socket = connect(delivery)

    def end() -> bool:
        delivery.give_up(connection, 0)
        return True

    socket.then = end
    delivery.enqueue(connection, A, disco=False)
    delivery.flush()
    assert connection.backlog is None
    assert delivery.counters.packets_sent == 1
    assert sum(delivery.counters.dropped(reason) for reason in DropReason) == 0


def test_presence_changes_are_written_by_a_flush_and_counted_by_batches(
    delivery: Delivery,
) -> None:
    connection, socket = connect(delivery)
    connection.backlog = Backlog()
    change = pack_health("x" * 1000)
    connection.backlog.changes.extend([change] * 100)
    delivery.mark_dirty(connection)
    delivery.flush()
    sizes = [len(write) for write in socket.writes]
    assert sizes == [66, 34], "64 KiB a write"
    assert connection.backlog is None
    batches = delivery.counters.mesh_update_batch_size
    loops = delivery.counters.mesh_update_loop_count
    assert (batches.count, batches.sum) == (2, 100)
    assert (loops.count, loops.sum) == (1, 2)


def test_control_frames_wait_in_order_while_the_socket_is_full(
    delivery: Delivery,
) -> None:
    connection, socket = connect(delivery)
    delivery.send_control(connection, pack_health("collected before the pause"))
    delivery.pause(connection, 0)
    delivery.send_control(connection, pack_health("later"))
    delivery.flush()
    assert socket.writes == []
    delivery.resume(connection)
    assert socket.writes == [[pack_health("collected before the pause"), pack_health("later")]]


@pytest.mark.parametrize("frames", [1, 2, 3])
def test_a_flush_counts_one_write_with_its_frames(delivery: Delivery, frames: int) -> None:
    """A packet that is sent alone is counted by other code than several."""
    connection, socket = connect(delivery)
    for _ in range(frames):
        delivery.enqueue(connection, A, disco=False)
    delivery.flush()
    assert socket.writes == [[A] * frames]
    writes = delivery.counters.buffered_write_frames
    assert (writes.count, writes.sum) == (1, frames)


@pytest.mark.parametrize("waits", [False, True])
def test_after_its_pong_was_written_a_client_gets_the_next(world: World, waits: bool) -> None:
    """The first pong is written by a flush, or when the client reads again."""
    a = world.join("a")
    if waits:
        a.block()
    world.ping(a, b"pong one")
    if waits:
        a.read()
    assert world.got(a) == [Pong(b"pong one")]
    world.ping(a, b"pong two")
    assert world.got(a) == [Pong(b"pong two")]
