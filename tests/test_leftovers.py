"""The helper that finds leftovers finds each kind, and none where all are gone."""

from __future__ import annotations

import asyncio
import gc
import os
import socket
from collections.abc import Iterator

import pytest

from pyderp.errors import ConnectionClosed
from pyderp.wire.messages import Restarting

from .leftovers import Snapshot, collector_off, none_left, none_left_now

_HELD: list[object] = []


class _Node:
    def __init__(self) -> None:
        self.other: object = None


def _cycle() -> None:
    node, error = _Node(), ConnectionClosed("over", generation=1)
    node.other = error
    error.args = (node,)


def test_an_object_that_is_freed_is_not_left() -> None:
    with none_left_now():
        error: ConnectionClosed | None = ConnectionClosed("over", generation=1)
        del error
    assert gc.isenabled()


def test_an_object_that_is_held_is_left() -> None:
    with (
        pytest.raises(AssertionError, match=r"1 × pyderp\.errors\.Restarting"),
        none_left_now(),
    ):
        _HELD.append([Restarting(1.0, 1.0)])
    _HELD.clear()


def test_an_object_that_may_stay_is_not_left() -> None:
    with none_left_now(but=("pyderp.errors.Restarting",)):
        _HELD.append([Restarting(1.0, 1.0)])
    _HELD.clear()


def test_a_cycle_is_left_and_shown() -> None:
    with collector_off():
        snapshot = Snapshot()
        _cycle()
        left = snapshot.left()
        assert left.objects["pyderp.errors.ConnectionClosed"] == 1
        assert left.cycles["tests.test_leftovers._Node"] == 1
        assert any("pyderp.errors.ConnectionClosed → " in chain for chain in left.chains)
        assert not snapshot.left()  # the search freed it
    assert gc.isenabled()


def test_a_cycle_without_an_object_of_pyderp_is_left() -> None:
    def of_a_list() -> None:
        with none_left_now():
            items: list[object] = []
            items.append(items)
            del items

    with pytest.raises(AssertionError, match=r"cycles: 1 × builtins\.list"):
        of_a_list()


def test_a_cycle_that_a_finalizer_breaks_is_left() -> None:
    """The collector closes a generator before it looks for garbage; the rest is free then."""

    def numbers(held: list[object]) -> Iterator[int]:
        yield len(held)

    def through_a_generator() -> None:
        with none_left_now():
            held: list[object] = [Restarting(1.0, 1.0)]
            generator = numbers(held)
            next(generator)
            held.append(generator)
            del held, generator

    with pytest.raises(AssertionError, match=r"cycles: 1 × pyderp\.errors\.Restarting"):
        through_a_generator()


def test_a_descriptor_is_left() -> None:
    read, write = os.pipe()
    os.close(write)
    snapshot = Snapshot()
    copy = os.dup(read)
    assert len(snapshot.left().descriptors) == 1
    os.close(copy)
    assert not snapshot.left().descriptors
    os.close(read)


async def test_tasks_and_timers_of_a_loop_are_left() -> None:
    snapshot = Snapshot()
    loop = asyncio.get_running_loop()
    task = asyncio.create_task(asyncio.sleep(100))
    await asyncio.sleep(0)
    assert len(snapshot.left().tasks) == 1
    task.cancel()
    await asyncio.wait([task])
    assert not snapshot.left().tasks
    timer = loop.call_later(100, print)
    is_asyncio = isinstance(loop, asyncio.BaseEventLoop)
    assert len(snapshot.left().timers) == is_asyncio
    timer.cancel()
    assert not snapshot.left().timers


async def test_a_transport_is_left_until_it_is_closed() -> None:
    loop = asyncio.get_running_loop()
    one, other = socket.socketpair()
    with other:
        snapshot = Snapshot()
        transport, _ = await loop.create_connection(asyncio.Protocol, sock=one)
        del one
        assert snapshot.left().objects.total() >= 1
        async with none_left():
            transport.abort()
            del transport
        assert not snapshot.left()


async def test_an_exception_that_was_not_retrieved_is_left() -> None:
    async def fail() -> None:
        raise ValueError("not retrieved")

    async def forget() -> None:
        async with none_left():
            task = asyncio.create_task(fail())
            await asyncio.sleep(0)
            del task

    asyncio.get_running_loop().set_exception_handler(lambda _loop, _context: None)
    with pytest.raises(AssertionError, match="errors: Task exception was never retrieved"):
        await forget()
