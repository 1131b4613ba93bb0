"""Deadlines: between operations they only refuse, during one they drop the connection."""

from __future__ import annotations

import asyncio
import functools
from dataclasses import dataclass

import pytest

from pyderp.errors import ConnectionClosed
from pyderp.wsconn import WebSocketStream
from pyderp.wsconn.bounds import Deadline

from .peers import Peer, Role, stream
from .test_reading import until_it_waits

SOON = 0.03
"""Seconds; a shorter time may pass before the operation begins on a slow machine."""


@dataclass
class Direction:
    """One of the two directions of a stream."""

    name: str

    @property
    def other(self) -> Direction:
        return Direction("write" if self.name == "read" else "read")

    def set(self, of: WebSocketStream, seconds: float | None) -> None:
        """Set this direction's deadline, so many seconds from now."""
        when = None if seconds is None else asyncio.get_running_loop().time() + seconds
        {"read": of.set_read_deadline, "write": of.set_write_deadline}[self.name](when)

    async def works(self, of: WebSocketStream, peer: Peer) -> None:
        """Check that bytes pass."""
        if self.name == "read":
            peer.binary(b"here")
            assert await of.readexactly(4) == b"here"
        else:
            await of.write(b"there")
            assert (await peer.message())[1] == b"there"

    async def operation(self, of: WebSocketStream) -> None:
        """An operation that ends only with the stream."""
        if self.name == "read":
            await of.read(10)
        else:
            await of.write(bytes(16 << 20))

    async def times_out(self, of: WebSocketStream) -> None:
        with pytest.raises(TimeoutError, match=f"the {self.name} deadline has passed"):
            await self.operation(of)

    async def is_closed(self, of: WebSocketStream) -> None:
        with pytest.raises(ConnectionClosed, match="dropped"):
            await self.operation(of)


@pytest.fixture(params=["read", "write"])
def direction(request: pytest.FixtureRequest) -> Direction:
    return Direction(request.param)


async def passes(seconds: float) -> None:
    """Wait by the clock, as a deadline is a time and not a number of turns."""
    await asyncio.sleep(seconds)


@pytest.mark.parametrize("seconds", [0, -1, -1e9])
async def test_a_deadline_in_the_past_refuses_until_it_is_reset(
    role: Role, direction: Direction, seconds: float
) -> None:
    async with stream(role) as (made, peer):
        for again in (None, 60.0):
            direction.set(made, seconds)
            for _ in range(2):
                await direction.times_out(made)
            await direction.other.works(made, peer)
            direction.set(made, again)
            await direction.works(made, peer)


async def test_a_deadline_that_passes_between_operations_refuses(
    role: Role, direction: Direction
) -> None:
    async with stream(role) as (made, peer):
        direction.set(made, SOON / 3)
        await passes(SOON / 2)
        await direction.times_out(made)
        await direction.other.works(made, peer)
        direction.set(made, None)
        await direction.works(made, peer)


async def test_a_deadline_that_passes_during_an_operation_drops_the_connection(
    role: Role, direction: Direction
) -> None:
    async with stream(role) as (made, peer):
        # Started before the deadline is set, as it may pass before on a busy machine.
        operation = asyncio.create_task(direction.times_out(made))
        await asyncio.sleep(0)
        direction.set(made, SOON)
        await operation
        await direction.times_out(made)
        await direction.other.is_closed(made)
        for again in (None, 60.0):
            direction.set(made, again)
            await direction.is_closed(made)
        # No close frame. What was half written is an incomplete frame.
        if direction.name == "read":
            assert await peer.left() == b""
        else:
            assert 0 < len(await peer.left()) < 16 << 20


async def test_a_waiting_operation_of_the_other_direction_is_closed(
    role: Role, direction: Direction
) -> None:
    async with stream(role) as (made, _):
        other = asyncio.create_task(direction.other.is_closed(made))
        operation = asyncio.create_task(direction.times_out(made))
        await asyncio.sleep(0)
        direction.set(made, SOON)
        await operation
        await other


async def test_a_deadline_in_the_past_ends_an_operation_at_once(
    role: Role, direction: Direction
) -> None:
    async with stream(role) as (made, peer):
        task = asyncio.create_task(direction.times_out(made))
        for _ in range(3):
            await asyncio.sleep(0)
        assert not task.done()
        direction.set(made, -1)
        await task
        direction.set(made, None)
        await direction.is_closed(made)
        await peer.left()


async def test_a_later_deadline_replaces_the_first(role: Role) -> None:
    async with stream(role) as (made, peer):
        for again in (None, 60.0):
            read = asyncio.create_task(made.read(10))
            await asyncio.sleep(0)
            made.set_read_deadline(asyncio.get_running_loop().time() + SOON)
            Direction("read").set(made, again)
            await passes(SOON * 1.5)
            peer.binary(b"late")
            assert await read == b"late"


async def test_set_deadline_sets_both(role: Role) -> None:
    async with stream(role) as (made, peer):
        loop = asyncio.get_running_loop()
        made.set_deadline(loop.time() - 1)
        await Direction("read").times_out(made)
        await Direction("write").times_out(made)
        made.set_deadline(None)
        await Direction("read").works(made, peer)
        await Direction("write").works(made, peer)


async def test_bytes_that_came_are_not_read_after_the_deadline(role: Role) -> None:
    async with stream(role) as (made, peer):
        peer.binary(b"abc")
        assert await made.read(1) == b"a"
        made.set_read_deadline(0)
        with pytest.raises(TimeoutError):
            await made.read(1)
        with pytest.raises(TimeoutError):
            await made.readexactly(1)
        made.set_read_deadline(None)
        assert await made.read(10) == b"bc"


async def test_a_deadline_goes_before_the_end(role: Role) -> None:
    async with stream(role) as (made, peer):
        peer.close(1000)
        peer.hang_up()
        assert await made.read(1) == b""
        made.set_read_deadline(0)
        with pytest.raises(TimeoutError):
            await made.read(1)
        made.set_read_deadline(None)
        assert await made.read(1) == b""


async def test_a_queued_read_times_out_with_the_one_before_it(role: Role) -> None:
    async with stream(role) as (made, _):
        made.set_read_deadline(asyncio.get_running_loop().time() + SOON)
        reads = [asyncio.create_task(made.read(1)) for _ in range(2)]
        for read in reads:
            with pytest.raises(TimeoutError, match="read deadline"):
                await read


async def test_a_deadline_ends_an_operation_that_starts_in_its_turn(role: Role) -> None:
    """In either order."""
    async with stream(role) as (made, peer):
        for _ in range(200):
            made.set_read_deadline(asyncio.get_running_loop().time())
            with pytest.raises(TimeoutError):
                await made.read(1)
        made.set_read_deadline(None)
        await Direction("read").works(made, peer)


async def test_a_deadline_that_is_far_away_leaves_no_timer(
    role: Role, direction: Direction
) -> None:
    async with stream(role) as (made, peer):
        made.set_deadline(asyncio.get_running_loop().time() + 3600)
        await direction.works(made, peer)
        deadline = made._read_deadline if direction.name == "read" else made._write_deadline
        assert deadline._timer is None
        made.set_deadline(float("inf"))
        await direction.works(made, peer)


async def test_a_deadline_whose_timer_fired_early_stays_passed() -> None:
    """uvloop's timers round to milliseconds."""
    cut: list[str] = []
    deadline = Deadline("read", lambda: cut.append)
    deadline.set(asyncio.get_running_loop().time() + 60)
    with pytest.raises(TimeoutError), deadline.operation():
        deadline._fire()
    assert cut == ["a read deadline"]
    with pytest.raises(TimeoutError), deadline.operation():
        raise AssertionError
    deadline.set(None)
    with deadline.operation():
        pass
    assert cut == ["a read deadline"]


async def test_a_deadline_drops_the_refusal_of_a_wrong_type(role: Role) -> None:
    async with stream(role) as (made, peer):
        peer.text(b"text")
        read = asyncio.create_task(made.read(1))
        assert (await peer.closing()).code == 1003
        made.set_read_deadline(0)
        with pytest.raises(TimeoutError):
            await read
        assert await peer.left() == b""


async def test_cancelling_goes_before_the_deadline(role: Role) -> None:
    async with stream(role) as (made, peer):
        read = asyncio.create_task(made.read(1))
        await until_it_waits(read)
        made.set_read_deadline(0)
        read.cancel()
        with pytest.raises(asyncio.CancelledError):
            await read
        assert await peer.left() == b""
        made.set_read_deadline(None)
        await functools.partial(Direction("read").is_closed, made)()
