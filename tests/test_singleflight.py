from __future__ import annotations

import asyncio

import pytest

from pyderp.tasks import SingleFlight


class Query:
    """A query whose end the test decides."""

    def __init__(self) -> None:
        self.started: list[asyncio.Future[int]] = []

    async def __call__(self) -> int:
        self.started.append(asyncio.get_running_loop().create_future())
        return await self.started[-1]


async def turns() -> None:
    """Let every task run that can."""
    for _ in range(10):
        await asyncio.sleep(0)


def test_callers_of_one_key_share_a_query() -> None:
    async def main() -> None:
        flight: SingleFlight[str, int] = SingleFlight()
        query = Query()
        callers = [asyncio.ensure_future(flight.get("a", query, name="test")) for _ in range(5)]
        other = asyncio.ensure_future(flight.get("b", query, name="test"))
        await turns()
        assert len(query.started) == 2
        query.started[0].set_result(7)
        assert await asyncio.gather(*callers) == [7] * 5
        assert not other.done()
        query.started[1].set_result(8)
        assert await other == 8
        assert len(flight) == 0

    asyncio.run(main())


def test_a_query_that_has_ended_is_not_shared() -> None:
    async def main() -> None:
        flight: SingleFlight[str, int] = SingleFlight()

        async def now() -> int:
            return 1

        async def later() -> int:
            return 2

        assert [
            await flight.get("a", now, name="test"),
            await flight.get("a", later, name="test"),
        ] == [1, 2]

    asyncio.run(main())


def test_cancelling_one_caller_leaves_the_query_to_the_others() -> None:
    async def main() -> None:
        flight: SingleFlight[str, int] = SingleFlight()
        query = Query()
        first, second = (
            asyncio.ensure_future(flight.get("a", query, name="test")) for _ in range(2)
        )
        await turns()
        first.cancel()
        with pytest.raises(asyncio.CancelledError):
            await first
        await turns()
        query.started[0].set_result(7)
        assert await second == 7

    asyncio.run(main())


def test_a_query_without_callers_is_cancelled_and_not_joined() -> None:
    async def main() -> None:
        flight: SingleFlight[str, int] = SingleFlight()
        query = Query()
        only = asyncio.ensure_future(flight.get("a", query, name="test"))
        await turns()
        only.cancel()
        # The next caller comes right after the other left: the query is cancelled, and has not
        # ended yet.
        again = asyncio.ensure_future(flight.get("a", query, name="test"))
        with pytest.raises(asyncio.CancelledError):
            await only
        await turns()
        assert query.started[0].cancelled()
        query.started[1].set_result(8)
        assert await again == 8
        assert len(flight) == 0

    asyncio.run(main())


def test_a_failing_query_fails_for_all_callers() -> None:
    async def main() -> None:
        flight: SingleFlight[str, int] = SingleFlight()

        async def fail() -> int:
            raise ValueError("no")

        results = await asyncio.gather(
            *(flight.get("a", fail, name="test") for _ in range(3)), return_exceptions=True
        )
        assert [str(result) for result in results] == ["no"] * 3

    asyncio.run(main())


def test_after_renew_new_callers_get_a_new_query() -> None:
    async def main() -> None:
        flight: SingleFlight[str, int] = SingleFlight()
        query = Query()
        old = asyncio.ensure_future(flight.get("a", query, name="test"))
        await turns()
        flight.renew()
        new = asyncio.ensure_future(flight.get("a", query, name="test"))
        await turns()
        query.started[0].set_result(1)
        assert await old == 1
        joined = asyncio.ensure_future(flight.get("a", query, name="test"))
        await turns()
        query.started[1].set_result(2)
        assert (await new, await joined) == (2, 2)

    asyncio.run(main())


def test_closing_ends_queries_and_returns_none_to_callers() -> None:
    async def main() -> None:
        flight: SingleFlight[str, int] = SingleFlight()
        query = Query()
        callers = [asyncio.ensure_future(flight.get(key, query, name="test")) for key in "aab"]
        await turns()
        await flight.aclose()
        assert len(flight) == 0
        assert await asyncio.gather(*callers) == [None] * 3
        await flight.aclose()

    asyncio.run(main())


def test_kept_work_goes_on_without_callers_and_the_next_one_joins_it() -> None:
    async def main() -> None:
        flight: SingleFlight[str, int] = SingleFlight(keep=True)
        query = Query()
        first = asyncio.ensure_future(flight.get("a", query, name="test"))
        await turns()
        first.cancel()
        with pytest.raises(asyncio.CancelledError):
            await first
        second = asyncio.ensure_future(flight.get("a", query, name="test"))
        await turns()
        query.started[0].set_result(7)
        assert await second == 7
        assert len(query.started) == 1
        assert len(flight) == 0

    asyncio.run(main())


@pytest.mark.parametrize("wait", [False, True])
def test_the_last_cancelled_caller_waits_for_the_end_on_request(wait: bool) -> None:
    async def main() -> None:
        flight: SingleFlight[str, int] = SingleFlight(wait=wait)
        may_end = asyncio.Event()

        async def slow_to_cancel() -> int:
            never: asyncio.Future[int] = asyncio.get_running_loop().create_future()
            try:
                return await never
            finally:
                await may_end.wait()

        only = asyncio.ensure_future(flight.get("a", slow_to_cancel, name="test"))
        await turns()
        only.cancel()
        await turns()
        assert only.done() is not wait
        assert len(flight) == 1
        may_end.set()
        with pytest.raises(asyncio.CancelledError):
            await only
        await turns()
        assert len(flight) == 0

    asyncio.run(main())
