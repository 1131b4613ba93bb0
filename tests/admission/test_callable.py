from __future__ import annotations

import asyncio

import pytest

from pyderp import NodePublic
from pyderp.admission.callable import AdmissionFunction
from pyderp.admission.verdict import AdmissionCounters, Cause, Verdict
from pyderp.config import Decide

from .fakes import identity, key

REFUSED = Verdict(False, f"admission function: {key(1)}/192.0.2.7 not allowed")


async def ask(decide: Decide, *, budget: float = 20) -> Verdict:
    return await AdmissionFunction(decide, AdmissionCounters(), timeout=budget).ask(identity())


def test_a_plain_and_an_async_function() -> None:
    async def main() -> None:
        seen: list[tuple[NodePublic, str]] = []

        def plain(key: NodePublic, address: str) -> bool:
            seen.append((key, address))
            return len(seen) == 1

        async def waiting(key: NodePublic, address: str) -> bool:
            await asyncio.sleep(0)
            return plain(key, address)

        assert [await ask(plain), await ask(waiting)] == [Verdict(True), REFUSED]
        seen.clear()
        assert [await ask(waiting), await ask(plain)] == [Verdict(True), REFUSED]
        assert seen == [(key(1), "192.0.2.7")] * 2

    asyncio.run(main())


@pytest.mark.parametrize("error", [ValueError("oops"), TimeoutError("oops"), OSError("oops")])
def test_a_function_that_raises_keeps_out(
    error: Exception, caplog: pytest.LogCaptureFixture
) -> None:
    async def main() -> None:
        def plain(key: NodePublic, address: str) -> bool:
            raise error

        async def waiting(key: NodePublic, address: str) -> bool:
            await asyncio.sleep(0)
            raise error

        for decide in (plain, waiting):
            assert await ask(decide) == Verdict(
                False, "admission function: failed", cause=Cause.FAILED
            )

    asyncio.run(main())
    assert caplog.text.count("oops") >= 2
    assert "Traceback" in caplog.text


def test_other_values_than_true_and_false_keep_out(caplog: pytest.LogCaptureFixture) -> None:
    async def main() -> None:
        async def forgot(key: NodePublic, address: str) -> None:
            await asyncio.sleep(0)

        wrong: list[object] = [lambda *_: 1, lambda *_: "yes", forgot]
        for decide in wrong:
            assert callable(decide)
            verdict = await ask(decide)
            assert (verdict.allowed, verdict.cause) == (False, Cause.BAD_ANSWER)

    asyncio.run(main())
    assert "gave a NoneType; want True or False" in caplog.text


def test_a_function_that_hangs_keeps_out() -> None:
    async def main() -> None:
        async def hang(key: NodePublic, address: str) -> bool:
            await asyncio.get_running_loop().create_future()
            return True

        verdict = await ask(hang, budget=0.05)
        assert (verdict.allowed, verdict.cause) == (False, Cause.TIMED_OUT)
        assert "no answer within 0.05 s" in verdict.reason

    asyncio.run(main())
