from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable
from typing import Any

import pytest

from pyderp.admission.gate import recheck_for_ever
from pyderp.admission.verdict import ClientIdentity

from .fakes import JumpingLoop, identity


def run(main: Coroutine[Any, Any, None]) -> None:
    with asyncio.Runner(loop_factory=JumpingLoop) as runner:
        runner.run(main)


@contextlib.asynccontextmanager
async def rechecking(
    interval: float,
    live: Callable[[], Iterable[ClientIdentity]],
    check: Callable[[ClientIdentity], Coroutine[Any, Any, None]],
) -> AsyncIterator[None]:
    task = asyncio.ensure_future(recheck_for_ever(interval, live, check))
    try:
        yield
    finally:
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task


def test_each_client_is_checked_once_a_round_at_even_intervals() -> None:
    async def main() -> None:
        loop = asyncio.get_running_loop()
        checked: list[tuple[ClientIdentity, float]] = []
        enough = asyncio.Event()
        begin = loop.time()

        async def check(checked_client: ClientIdentity) -> None:
            checked.append((checked_client, loop.time() - begin))
            if len(checked) == 8:
                enough.set()

        clients = [identity(n) for n in range(4)]
        # A client with two connections from one address is one client.
        async with rechecking(60, lambda: clients + clients, check):
            await enough.wait()
        assert [checked_client for checked_client, _ in checked] == clients * 2
        assert [when for _, when in checked] == pytest.approx([15 * n for n in range(8)])

    run(main())


def test_slow_checks_do_not_delay_others_and_are_at_most_16() -> None:
    async def main() -> None:
        running = most = 0
        full = asyncio.Event()
        go = asyncio.Event()
        done: set[ClientIdentity] = set()
        enough = asyncio.Event()

        async def check(checked_client: ClientIdentity) -> None:
            nonlocal running, most
            running += 1
            most = max(most, running)
            if running == 16:
                full.set()
            await go.wait()
            running -= 1
            done.add(checked_client)
            if len(done) == 40:
                enough.set()

        async with rechecking(60, lambda: map(identity, range(40)), check):
            await full.wait()
            # The times of the other checks pass meanwhile.
            await asyncio.sleep(120)
            go.set()
            await enough.wait()
        assert most == 16

    run(main())


def test_a_failure_ends_one_round_only(caplog: pytest.LogCaptureFixture) -> None:
    async def main() -> None:
        rounds = 0
        enough = asyncio.Event()

        def live() -> list[ClientIdentity]:
            nonlocal rounds
            rounds += 1
            if rounds == 1:
                raise RuntimeError("live failed")
            return [identity(rounds)]

        async def check(checked_client: ClientIdentity) -> None:
            if checked_client == identity(2):
                raise RuntimeError("check failed")
            enough.set()

        async with rechecking(60, live, check):
            await enough.wait()

    run(main())
    assert "live failed" in caplog.text
    assert "check failed" in caplog.text


def test_cancelling_ends_running_checks() -> None:
    async def main() -> None:
        started = asyncio.Event()
        ended = asyncio.Event()

        async def check(_: ClientIdentity) -> None:
            started.set()
            try:
                await asyncio.get_running_loop().create_future()
            finally:
                ended.set()

        async with rechecking(60, lambda: [identity()], check):
            await started.wait()
        assert ended.is_set()

    run(main())


def test_without_clients_no_recheck_is_made() -> None:
    async def main() -> None:
        looked = 0
        enough = asyncio.Event()

        def live() -> list[ClientIdentity]:
            nonlocal looked
            looked += 1
            if looked == 3:
                enough.set()
            return []

        async def check(_: ClientIdentity) -> None:
            raise AssertionError

        async with rechecking(60, live, check):
            await enough.wait()

    run(main())
