"""What is lost depends on the seed, the connection and the frame's number, and on nothing else."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from hypothesis import given
from hypothesis import strategies as st

from pyderp.testing.framing import Cutter, Mode
from pyderp.testing.pipe import Pipe
from pyderp.testing.plan import Plan, Way
from pyderp.wire.frames import pack_frame

HEAD = b"GET / HTTP/1.1\r\n\r\n"
FRAMES = [pack_frame(4, bytes(32) + bytes([n])) for n in range(60)]


def make_pipe(
    plan: Plan,
    deliver: Callable[[bytes], None],
    *,
    way: Way = "up",
    number: int = 1,
    finish: Callable[[], None] = lambda: None,
) -> Pipe:
    """A pipe that knows no frames but packets."""
    return Pipe(
        plan,
        way,
        number,
        cutter=Cutter(lambda _: Mode.FRAMES),
        change=lambda _, frame: frame,
        deliver=deliver,
        finish=finish,
    )


def passed(
    plan: Plan,
    sizes: list[int] | None = None,
    *,
    way: Way = "up",
    number: int = 1,
    lossless: int = 0,
) -> list[int]:
    """Which of sixty packets pass; the first are sent without loss."""
    out = bytearray()

    async def scenario() -> None:
        pipe = make_pipe(plan, out.extend, way=way, number=number)
        loss, plan.loss = plan.loss, 0
        pipe.receive_data(HEAD + b"".join(FRAMES[:lossless]))
        plan.loss = loss
        data = b"".join(FRAMES[lossless:])
        for size in sizes or []:
            pipe.receive_data(data[:size])
            data = data[size:]
        pipe.receive_data(data)

    asyncio.run(scenario())
    body = out.removeprefix(HEAD)
    return [body[at] for at in range(len(FRAMES[0]) - 1, len(body), len(FRAMES[0]))]


@given(st.lists(st.integers(1, 500), max_size=20))
def test_reads_do_not_matter(sizes: list[int]) -> None:
    """However the stream is cut into reads, the same packets pass."""
    assert passed(Plan(7, loss=0.5), sizes) == passed(Plan(7, loss=0.5))


def test_seed_connection_and_way_matter() -> None:
    """Each has losses of its own."""
    everywhere = [
        passed(Plan(7, loss=0.5)),
        passed(Plan(8, loss=0.5)),
        passed(Plan(7, loss=0.5), number=2),
        passed(Plan(7, loss=0.5), way="down"),
    ]
    assert all(10 < len(each) < 50 for each in everywhere)
    assert len({tuple(each) for each in everywhere}) == 4


@given(st.floats(0, 1), st.floats(0, 1))
def test_what_passes_with_more_loss_passes_with_less(one: float, other: float) -> None:
    """A packet's luck is drawn once, and the probability is the measure of it."""
    less, more = sorted((one, other))
    assert set(passed(Plan(7, loss=more))) <= set(passed(Plan(7, loss=less)))


@given(st.integers(0, 60))
def test_when_the_loss_begins_does_not_matter(lossless: int) -> None:
    """A packet's luck does not depend on what was set for those before it."""
    whole = passed(Plan(7, loss=0.5))
    late = passed(Plan(7, loss=0.5), lossless=lossless)
    assert late == list(range(lossless)) + [n for n in whole if n >= lossless]


def test_drops_on_demand_do_not_change_the_luck_of_others() -> None:
    """`drop_next` takes its packets, and all others fare as without it."""
    plan = Plan(7, loss=0.5)
    plan.drop_next["up"] = 10
    assert passed(plan) == [n for n in passed(Plan(7, loss=0.5)) if n >= 10]
    assert plan.drop_next["up"] == 0


def test_half_a_frame_goes_on_before_the_end() -> None:
    """Once, and nothing after it."""
    out: list[bytes] = []

    async def scenario() -> None:
        pipe = make_pipe(Plan(1), out.append, finish=lambda: out.append(b"the end"))
        pipe.receive_data(HEAD + FRAMES[0] + FRAMES[1][:10])
        pipe.receive_eof()
        pipe.receive_eof()
        pipe.put(b"late")

    asyncio.run(scenario())
    assert out == [HEAD, FRAMES[0], FRAMES[1][:10], b"the end"]


def test_after_a_stop_nothing_goes_on() -> None:
    """Neither what waits, nor what comes, nor what is in the same read; none of it counts."""
    out: list[bytes] = []

    async def scenario() -> None:
        plan = Plan(1, frozen=True)
        pipe = make_pipe(plan, out.append)
        pipe.receive_data(HEAD + FRAMES[0])
        pipe.stop()
        plan.frozen = False
        pipe.run()
        pipe.receive_data(FRAMES[1])
        pipe.receive_eof()
        assert out == []

        def deliver_and_stop(data: bytes) -> None:
            out.append(data)
            if data == FRAMES[0]:
                pipe.stop()

        plan = Plan(1)
        pipe = make_pipe(plan, deliver_and_stop)
        pipe.receive_data(HEAD + FRAMES[0] + FRAMES[1])
        assert out == [HEAD, FRAMES[0]]
        assert plan.counters.passed == 1

    asyncio.run(scenario())
