from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from dataclasses import dataclass, field
from typing import Any

import pytest

from pyderp.admission.questions import Questions
from pyderp.admission.verdict import AdmissionCounters, Cause, ClientIdentity, Verdict

from .fakes import JumpingLoop, identity

DENIED = Verdict(False, "no")


@dataclass
class Slow:
    """Answers one question at a time, each after `seconds`, and gives up after five."""

    seconds: float
    name: str = "source"
    verdict: Verdict = DENIED
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


def test_an_address_has_8_turns_and_all_together_64() -> None:
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


def test_who_has_no_turn_is_kept_out_and_counted_once() -> None:
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


def test_a_flood_from_one_address_delays_another_by_little() -> None:
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
def test_a_flood_does_not_keep_rechecks_from_their_answers(addresses: int) -> None:
    """However many addresses it has: a slow source is asked less at once."""

    async def main() -> None:
        source = Slow(0.09)
        questions = Questions(source, AdmissionCounters(), timeout=5)
        stop = asyncio.Event()

        async def attack(n: int) -> None:
            who = identity(n, f"192.0.2.{n % addresses}")
            while not stop.is_set():
                await questions.ask(who, recheck=False)

        flood = [asyncio.ensure_future(attack(n)) for n in range(200)]
        await asyncio.sleep(20)
        rechecks = [questions.ask(identity(n, "198.51.100.1"), recheck=True) for n in range(16)]
        assert {verdict.cause for verdict in await asyncio.gather(*rechecks)} == {Cause.ANSWERED}
        stop.set()
        await asyncio.gather(*flood)

    run(main())


def test_a_source_that_is_away_is_asked_no_less() -> None:
    """It says nothing about how much it can bear, and who cannot be asked about may be let in."""

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


def test_a_question_that_is_cancelled_or_fails_gives_its_turn_back() -> None:
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
