"""Groups of tasks: which errors end the others and are raised, and that nothing is left."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Callable, Coroutine
from typing import Any

import pytest

from pyderp import Client, NodePrivate, Relay, RelayConfig
from pyderp.tasks import cancel_and_wait, in_own_thread, run_together

from .leftovers import none_left


async def forever() -> None:
    await asyncio.get_running_loop().create_future()


async def fail(text: str = "no") -> None:
    await asyncio.sleep(0)
    raise ValueError(text)


async def stubborn() -> None:
    """Takes a few turns to end."""
    try:
        await forever()
    finally:
        for _ in range(5):
            await asyncio.sleep(0)


async def together(*works: Coroutine[Any, Any, None]) -> None:
    await run_together(*map(asyncio.create_task, works))


async def test_all_have_ended_when_it_returns() -> None:
    done: list[int] = []

    async def work(n: int) -> None:
        await asyncio.sleep(0)
        done.append(n)

    await together(work(1), work(2))
    assert sorted(done) == [1, 2]


async def test_the_first_that_fails_ends_the_others() -> None:
    other = asyncio.create_task(stubborn())
    with pytest.raises(ValueError, match="first"):
        await run_together(other, asyncio.create_task(fail("first")))
    assert other.cancelled()


async def test_cancelling_waits_for_all() -> None:
    works = [asyncio.create_task(stubborn()) for _ in range(2)]
    task = asyncio.create_task(run_together(*works))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    task.cancel()
    await asyncio.sleep(0)
    task.cancel()  # during the end
    with contextlib.suppress(asyncio.CancelledError):
        await task
    assert task.cancelled()
    assert all(work.cancelled() for work in works)


async def test_an_error_of_a_cancelled_task_is_dropped() -> None:
    async def fails_at_the_end() -> None:
        try:
            await forever()
        finally:
            raise ValueError("not retrieved")

    task = asyncio.create_task(fails_at_the_end())
    await asyncio.sleep(0)
    await cancel_and_wait([task])


async def fails() -> None:
    with contextlib.suppress(ValueError):
        await together(forever(), fail())


async def is_cancelled() -> None:
    task = asyncio.create_task(together(forever(), stubborn()))
    await asyncio.sleep(0)
    await cancel_and_wait([task])


@pytest.mark.parametrize("end", [fails, is_cancelled])
async def test_nothing_is_left_of_a_group(end: Callable[[], Coroutine[Any, Any, None]]) -> None:
    await end()
    async with none_left():
        await end()


async def test_a_call_in_its_own_thread_returns_or_raises() -> None:
    def name_of_thread() -> str:
        return threading.current_thread().name

    def fail_in_thread() -> None:
        raise ValueError("no")

    assert await in_own_thread(name_of_thread, name="own") == "own"
    with pytest.raises(ValueError, match="no"):
        await in_own_thread(fail_in_thread, name="own")


async def test_a_cancelled_call_does_not_wait_for_its_thread() -> None:
    release = threading.Event()
    waiting = asyncio.ensure_future(in_own_thread(release.wait, name="own"))
    await asyncio.sleep(0)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    release.set()


def join(name: str) -> None:
    for thread in threading.enumerate():
        if thread.name == name:
            thread.join(5)
            assert not thread.is_alive()


async def fails_in_a_thread() -> None:
    def fail_in_thread() -> None:
        raise ValueError("no")

    with contextlib.suppress(ValueError):
        await in_own_thread(fail_in_thread, name="failing")
    join("failing")  # the caller continues before the thread has dropped the error


async def is_cancelled_before_its_thread_ends() -> None:
    release = threading.Event()
    task = asyncio.create_task(in_own_thread(release.wait, name="abandoned"))
    await asyncio.sleep(0)
    await cancel_and_wait([task])
    release.set()
    join("abandoned")


@pytest.mark.parametrize("end", [fails_in_a_thread, is_cancelled_before_its_thread_ends])
async def test_nothing_is_left_of_a_call_in_its_own_thread(
    end: Callable[[], Coroutine[Any, Any, None]],
) -> None:
    await end()
    async with none_left():
        await end()


async def test_a_thread_that_outlives_the_event_loop_ends_quietly() -> None:
    release = threading.Event()

    waiting = asyncio.ensure_future(in_own_thread(release.wait, name="late"))
    await asyncio.sleep(0)
    waiting.cancel()
    assert [each.daemon for each in threading.enumerate() if each.name == "late"] == [True]
    release.set()
    join("late")


@pytest.mark.parametrize("call", ["connect", "send", "recv", "relay"])
def test_without_asyncio_the_error_has_the_remedy(call: str) -> None:
    """As under trio, which runs coroutines itself."""
    client = Client.for_url("http://127.0.0.1:1/derp")
    relay = Relay(RelayConfig())
    work: Coroutine[Any, Any, object] = {
        "connect": client.connect,
        "send": lambda: client.send(NodePrivate.generate().public, b"x"),
        "recv": client.recv,
        "relay": relay.start,
    }[call]()
    with pytest.raises(RuntimeError, match=r"no asyncio event loop .* use pyderp\.blocking"):
        work.send(None)
    work.close()


async def test_without_a_free_thread_it_is_an_error_of_the_system(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def start(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    async def main() -> None:
        with pytest.raises(OSError, match="can't start new thread"):
            await in_own_thread(lambda: None, name="own")

    monkeypatch.setattr(threading.Thread, "start", start)
    await main()
