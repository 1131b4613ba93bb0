from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Hashable
from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyderp.admission.source import Questions, Source, Turn, Turns, share_of
from pyderp.admission.verdict import AdmissionCounters, Cause, ClientIdentity, Verdict

from .fakes import JumpingLoop, identity

DENIED = Verdict(False, "no")


async def settle() -> None:
    for _ in range(3):
        await asyncio.sleep(0)


def queue(turns: Turns, share: Hashable) -> asyncio.Task[Turn]:
    return asyncio.get_running_loop().create_task(turns.take(share))


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("192.0.2.1", "192.0.2.1", True),
        ("192.0.2.1", "192.0.2.2", False),
        ("::ffff:192.0.2.1", "192.0.2.1", True),
        ("2001:db8::1", "2001:db8::ffff:1", True),
        ("2001:db8::1", "2001:db8:0:1::1", False),
        ("fe80::1%eth0", "fe80::2%eth1", True),
        ("", "@", True),
        ("", "0.0.0.0", False),
    ],
)
def test_a_share_is_an_address_or_a_network_of_64_bits(one: str, other: str, same: bool) -> None:
    assert (share_of(one) == share_of(other)) is same


def test_shares_get_turns_in_rotation() -> None:
    """A share with a thousand waiting checks delays a share with one by one turn."""

    async def main() -> None:
        turns = Turns(1, 1)
        first = await turns.take("crowd")
        order: list[str] = []

        async def ask(share: str) -> None:
            turn = await turns.take(share)
            order.append(share)
            await asyncio.sleep(0)
            turns.end(turn)

        asking = [asyncio.create_task(ask(share)) for share in ["crowd"] * 5 + ["a", "b", "a"]]
        await settle()
        assert turns.waiting == 8
        turns.end(first)
        await asyncio.wait(asking)
        assert order == ["crowd", "a", "b", "crowd", "a", "crowd", "crowd", "crowd"]
        assert (turns.taken, turns.waiting) == (0, 0)

    asyncio.run(main())


def test_a_share_is_bounded_even_if_turns_are_free() -> None:
    async def main() -> None:
        turns = Turns(6, 2)
        crowd = [queue(turns, "crowd") for _ in range(10)]
        await settle()
        assert (turns.taken, turns.waiting) == (2, 8)
        other = await turns.take("other")
        turns.end(crowd[0].result())
        await settle()
        assert [task.done() for task in crowd] == [True] * 3 + [False] * 7
        turns.end(other)
        assert turns.taken == 2
        for task in crowd:
            task.cancel()
        await asyncio.wait(crowd)

    asyncio.run(main())


def test_a_question_that_is_cancelled_leaves_no_trace() -> None:
    async def main() -> None:
        turns = Turns(1, 1)
        first = await turns.take("a")
        waiting = [queue(turns, share) for share in ("a", "b")]
        await settle()
        waiting[0].cancel()
        await settle()
        assert turns.waiting == 1
        # Cancelled, and a turn becomes free before the task runs.
        late = queue(turns, "c")
        await settle()
        late.cancel()
        turns.end(first)
        await settle()
        assert late.cancelled()
        turns.end(waiting[1].result())
        first = await turns.take("a")
        waiting[1] = queue(turns, "b")
        await settle()
        # The turn is granted and the task cancelled at the same moment: the turn is not lost.
        turns.end(first)
        waiting[1].cancel()
        await settle()
        assert waiting[1].cancelled()
        assert (turns.taken, turns.waiting) == (0, 0)
        turns.end(await turns.take("a"))

    asyncio.run(main())


def test_slow_answers_halve_the_turns_once_and_quick_ones_raise_them_again() -> None:
    async def main() -> None:
        turns = Turns(64, 64)
        early = [await turns.take(None) for _ in range(64)]
        for turn in early:
            turns.end(turn, slow=True)
        # Slow answers to questions of the same moment count as one.
        assert turns.limit == 32
        for _ in range(10):
            turns.end(await turns.take(None), slow=True)
        assert turns.limit == 4
        for _ in range(24):
            turns.end(await turns.take(None), slow=False)
        assert turns.limit == 10
        turns.end(await turns.take(None))
        assert turns.limit == 10
        for _ in range(500):
            turns.end(await turns.take(None), slow=False)
        assert turns.limit == 64

    asyncio.run(main())


@given(st.data(), st.integers(1, 5), st.integers(1, 3))
def test_in_any_order_the_limits_hold_and_no_question_waits_while_a_turn_is_free(
    data: st.DataObject, most: int, share: int
) -> None:
    async def main() -> None:
        turns = Turns(most, share)
        asked: list[tuple[str, asyncio.Task[Turn]]] = []
        ended: set[int] = set()
        for _ in range(data.draw(st.integers(0, 25))):
            what = data.draw(st.sampled_from(["take", "end", "cancel"]))
            if what == "take":
                owner = data.draw(st.sampled_from("abc"))
                asked.append((owner, queue(turns, owner)))
            elif asked:
                n = data.draw(st.integers(0, len(asked) - 1))
                task = asked[n][1]
                if what == "cancel":
                    task.cancel()
                elif task.done() and not task.cancelled() and n not in ended:
                    ended.add(n)
                    turns.end(task.result(), slow=data.draw(st.sampled_from([None, True, False])))
            if data.draw(st.booleans()):
                await settle()
        await settle()
        has = [
            owner
            for n, (owner, task) in enumerate(asked)
            if task.done() and not task.cancelled() and n not in ended
        ]
        waits = {owner for owner, task in asked if not task.done()}
        assert turns.taken == len(has)
        assert all(has.count(owner) <= share for owner in has)
        assert turns.taken <= most
        if turns.taken < turns.limit:
            assert all(has.count(owner) == share for owner in waits)
        for _, task in asked:
            task.cancel()
        await settle()

    asyncio.run(main())


# Checks by one source


@dataclass
class Slow(Source):
    """Answers one check at a time, each after `seconds`, and gives up after five."""

    seconds: float
    name: str = "source"
    verdict: Verdict = DENIED
    trouble: str = ""
    asked: list[ClientIdentity] = field(default_factory=list)
    running: int = 0
    most: int = 0
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)

    async def ask(self, identity: ClientIdentity) -> Verdict:
        self.asked.append(identity)
        self.running += 1
        self.most = max(self.most, self.running)
        try:
            async with asyncio.timeout(5), self.lock:
                await asyncio.sleep(self.seconds)
                return self.verdict
        except TimeoutError:
            return Verdict(False, "late", cause=Cause.TIMED_OUT)
        finally:
            self.running -= 1

    async def aclose(self) -> None:
        pass


def run(main: Coroutine[Any, Any, None]) -> None:
    with asyncio.Runner(loop_factory=JumpingLoop) as runner:
        runner.run(main)


def test_an_address_has_8_turns_and_all_addresses_64() -> None:
    async def main() -> None:
        source = Slow(0.01)
        questions = Questions(source, AdmissionCounters(), timeout=5)
        one = [identity(n, "192.0.2.1") for n in range(30)]
        await asyncio.gather(*(questions.ask(each, recheck=False) for each in one))
        assert source.most == 8
        many = [identity(n, f"198.51.100.{n % 50}") for n in range(200)]
        await asyncio.gather(*(questions.ask(each, recheck=False) for each in many))
        assert source.most == 64

    run(main())


def test_a_client_that_gets_no_turn_is_refused_and_counted_once() -> None:
    async def main() -> None:
        counters = AdmissionCounters()
        questions = Questions(Slow(3), counters, timeout=4)
        verdicts = await asyncio.gather(
            *(questions.ask(identity(n), recheck=False) for n in range(20))
        )
        reason = "source: too many questions at once: no turn within 4 s"
        crowded = Verdict(False, reason, cause=Cause.CROWDED)
        assert verdicts.count(crowded) == counters.crowded > 0
        assert {verdict.cause for verdict in verdicts} == {
            Cause.ANSWERED,
            Cause.TIMED_OUT,
            Cause.CROWDED,
        }
        assert counters == AdmissionCounters(crowded=counters.crowded)

    run(main())


def test_a_flood_from_one_address_hardly_delays_another() -> None:
    async def main() -> None:
        loop = asyncio.get_running_loop()
        questions = Questions(Slow(0.09), AdmissionCounters(), timeout=5)
        flood = [
            asyncio.ensure_future(questions.ask(identity(n, "192.0.2.66"), recheck=False))
            for n in range(1000)
        ]
        await asyncio.sleep(1)
        begin = loop.time()
        verdict = await questions.ask(identity(2000, "192.0.2.7"), recheck=False)
        assert verdict.definitive
        assert loop.time() - begin < 1
        await asyncio.gather(*flood)

    run(main())


@pytest.mark.parametrize("addresses", [1, 100])
def test_rechecks_are_answered_during_a_flood(addresses: int) -> None:
    """However many addresses the flood has: a slow source gets fewer checks at once."""

    async def main() -> None:
        source = Slow(0.09)
        questions = Questions(source, AdmissionCounters(), timeout=5)
        stop = asyncio.Event()

        async def attack(n: int) -> None:
            owner = identity(n, f"192.0.2.{n % addresses}")
            while not stop.is_set():
                await questions.ask(owner, recheck=False)

        flood = [asyncio.ensure_future(attack(n)) for n in range(200)]
        await asyncio.sleep(20)
        rechecks = [questions.ask(identity(n, "198.51.100.1"), recheck=True) for n in range(16)]
        assert {verdict.cause for verdict in await asyncio.gather(*rechecks)} == {Cause.ANSWERED}
        stop.set()
        await asyncio.gather(*flood)

    run(main())


def test_an_unreachable_source_does_not_lower_the_limit() -> None:
    """It says nothing about the load that the source can bear."""

    async def main() -> None:
        source = Slow(0, verdict=Verdict(True, cause=Cause.UNREACHABLE))

        async def hang(identity: ClientIdentity) -> Verdict:
            await asyncio.sleep(5)
            return source.verdict

        source.ask = hang  # type: ignore[method-assign] # a source of another kind
        questions = Questions(source, AdmissionCounters(), timeout=5)
        for _ in range(3):
            many = [identity(n, f"198.51.100.{n}") for n in range(64)]
            verdicts = await asyncio.gather(*(questions.ask(e, recheck=False) for e in many))
            assert all(verdict.allowed for verdict in verdicts)

    run(main())


def test_a_check_that_is_cancelled_or_fails_releases_its_turn() -> None:
    async def main() -> None:
        source = Slow(1000)
        questions = Questions(source, AdmissionCounters(), timeout=5)
        for _ in range(20):
            asking = asyncio.ensure_future(questions.ask(identity(), recheck=False))
            await asyncio.sleep(0.1)
            asking.cancel()
            with pytest.raises(asyncio.CancelledError):
                await asking
        source.seconds = 0.1
        assert await questions.ask(identity(), recheck=False) == DENIED

        async def broken(identity: ClientIdentity) -> Verdict:
            raise RuntimeError("bug")

        source.ask = broken  # type: ignore[method-assign] # a source of another kind
        for _ in range(20):
            with pytest.raises(RuntimeError):
                await questions.ask(identity(), recheck=False)

    run(main())
