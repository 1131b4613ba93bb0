"""One direction through the proxy: whole frames from any chunks, in time and in order."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pyderp.testing.pipe import Cutter, FaultPlan, Mode, Pipe, Way, read_request
from pyderp.wire.frames import MAX_CLIENT_FRAME, frame_header, pack_frame
from pyderp.wire.http import Upgrade
from pyderp.wire.upgrade import upgrade_request

quick = settings(deadline=None)

HEAD = b"GET /derp HTTP/1.1\r\nHost: r\r\n\r\n"


def cut(data: bytes, sizes: list[int], mode: Mode = Mode.FRAMES) -> list[tuple[int | None, bytes]]:
    """The pieces of a stream read in chunks of these sizes, and then the rest."""
    cutter = Cutter(lambda _: mode)
    pieces: list[tuple[int | None, bytes]] = []
    for size in sizes:
        pieces += cutter.receive_data(data[:size])
        data = data[size:]
    pieces += cutter.receive_data(data)
    if rest := cutter.rest():
        pieces.append((None, rest))
    return pieces


@quick
@given(
    st.lists(st.tuples(st.integers(0, 255), st.binary(max_size=50)), max_size=6),
    st.binary(max_size=4),
    st.lists(st.integers(1, 20)),
)
def test_frames_are_the_same_from_any_chunks(
    frames: list[tuple[int, bytes]], tail: bytes, sizes: list[int]
) -> None:
    """Head and whole frames come out, and half a frame at the end."""
    wanted: list[tuple[int | None, bytes]] = [(None, HEAD)]
    wanted += [(kind, pack_frame(kind, payload)) for kind, payload in frames]
    wanted += [(None, tail)] if tail else []
    assert cut(b"".join(piece for _, piece in wanted), sizes) == wanted


@quick
@given(st.binary(max_size=300), st.lists(st.integers(1, 50)), st.sampled_from(Mode))
def test_no_byte_is_lost_or_added(data: bytes, sizes: list[int], mode: Mode) -> None:
    """The joined pieces are the input."""
    assert b"".join(piece for _, piece in cut(data, sizes, mode)) == data


def test_a_frame_too_large_is_passed_on_at_once() -> None:
    """Its header passes at once, and all bytes after it."""
    cutter = Cutter(lambda _: Mode.FRAMES)
    list(cutter.receive_data(HEAD))
    assert not list(cutter.receive_data(frame_header(5, MAX_CLIENT_FRAME)))
    cutter = Cutter(lambda _: Mode.FRAMES)
    list(cutter.receive_data(HEAD))
    header = frame_header(5, MAX_CLIENT_FRAME + 1)
    assert list(cutter.receive_data(header)) == [(None, header)]
    assert list(cutter.receive_data(b"\x06\0\0\0\0")) == [(None, b"\x06\0\0\0\0")]


def test_a_head_without_end_is_passed_on() -> None:
    """After 64 KiB it is no head."""
    cutter = Cutter(lambda _: Mode.FRAMES)
    assert not list(cutter.receive_data(b"G" * 65536))
    assert list(cutter.receive_data(b"G")) == [(None, b"G" * 65537)]


@pytest.mark.parametrize(
    ("head", "found"),
    [
        (HEAD, (Upgrade.NONE, False)),
        (upgrade_request("r", "/derp", user_agent="t"), (Upgrade.DERP, False)),
        (upgrade_request("r", "/derp", user_agent="t", fast_start=True), (Upgrade.DERP, True)),
        (
            b"GET /derp HTTP/1.1\r\nHost: r\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            b"Sec-WebSocket-Protocol: derp\r\n\r\n",
            (Upgrade.WEBSOCKET, False),
        ),
        (b"nonsense\r\n\r\n", (Upgrade.NONE, False)),
        (b"\r\n\r\n", (Upgrade.NONE, False)),
    ],
)
def test_requests_are_read_as_the_relay_reads_them(
    head: bytes, found: tuple[Upgrade, bool]
) -> None:
    assert read_request(head) == found


PLAIN_HEAD = b"GET / HTTP/1.1\r\n\r\n"
FRAMES = [pack_frame(4, bytes(32) + bytes([n])) for n in range(60)]


def make_pipe(
    plan: FaultPlan,
    deliver: Callable[[bytes], None],
    *,
    way: Way = "up",
    number: int = 1,
    finish: Callable[[], None] = lambda: None,
) -> Pipe:
    """A pipe that drops packets only."""
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
    plan: FaultPlan,
    sizes: list[int] | None = None,
    *,
    way: Way = "up",
    number: int = 1,
    lossless: int = 0,
) -> list[int]:
    """Which of sixty packets pass; the first ones are sent without loss."""
    out = bytearray()

    async def scenario() -> None:
        pipe = make_pipe(plan, out.extend, way=way, number=number)
        loss, plan.loss = plan.loss, 0
        pipe.receive_data(PLAIN_HEAD + b"".join(FRAMES[:lossless]))
        plan.loss = loss
        data = b"".join(FRAMES[lossless:])
        for size in sizes or []:
            pipe.receive_data(data[:size])
            data = data[size:]
        pipe.receive_data(data)

    asyncio.run(scenario())
    body = out.removeprefix(PLAIN_HEAD)
    return [body[at] for at in range(len(FRAMES[0]) - 1, len(body), len(FRAMES[0]))]


@quick
@given(st.lists(st.integers(1, 500), max_size=20))
def test_chunks_do_not_change_losses(sizes: list[int]) -> None:
    """The same packets pass."""
    assert passed(FaultPlan(7, loss=0.5), sizes) == passed(FaultPlan(7, loss=0.5))


def test_seed_connection_and_direction_change_losses() -> None:
    everywhere = [
        passed(FaultPlan(7, loss=0.5)),
        passed(FaultPlan(8, loss=0.5)),
        passed(FaultPlan(7, loss=0.5), number=2),
        passed(FaultPlan(7, loss=0.5), way="down"),
    ]
    assert all(10 < len(each) < 50 for each in everywhere)
    assert len({tuple(each) for each in everywhere}) == 4


@quick
@given(st.floats(0, 1), st.floats(0, 1))
def test_what_passes_with_more_loss_passes_with_less(one: float, other: float) -> None:
    """The random number of a packet is drawn once, and compared with the probability."""
    less, more = sorted((one, other))
    assert set(passed(FaultPlan(7, loss=more))) <= set(passed(FaultPlan(7, loss=less)))


@quick
@given(st.integers(0, 60))
def test_the_start_of_a_loss_does_not_change_later_losses(lossless: int) -> None:
    """The random number of a packet does not depend on earlier settings."""
    whole = passed(FaultPlan(7, loss=0.5))
    late = passed(FaultPlan(7, loss=0.5), lossless=lossless)
    assert late == list(range(lossless)) + [n for n in whole if n >= lossless]


def test_drop_next_does_not_change_losses_of_others() -> None:
    """All other packets pass or are lost as without it."""
    plan = FaultPlan(7, loss=0.5)
    plan.drop_next["up"] = 10
    assert passed(plan) == [n for n in passed(FaultPlan(7, loss=0.5)) if n >= 10]
    assert plan.drop_next["up"] == 0


async def test_half_a_frame_passes_before_the_end() -> None:
    """Once, and nothing after it."""
    out: list[bytes] = []

    pipe = make_pipe(FaultPlan(1), out.append, finish=lambda: out.append(b"the end"))
    pipe.receive_data(PLAIN_HEAD + FRAMES[0] + FRAMES[1][:10])
    pipe.receive_eof()
    pipe.receive_eof()
    pipe.put(b"late")
    assert out == [PLAIN_HEAD, FRAMES[0], FRAMES[1][:10], b"the end"]


async def test_after_a_stop_nothing_passes() -> None:
    """Neither waiting nor new bytes, nor the rest of the same read; none is counted."""
    out: list[bytes] = []

    plan = FaultPlan(1, frozen=True)
    pipe = make_pipe(plan, out.append)
    pipe.receive_data(PLAIN_HEAD + FRAMES[0])
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

    plan = FaultPlan(1)
    pipe = make_pipe(plan, deliver_and_stop)
    pipe.receive_data(PLAIN_HEAD + FRAMES[0] + FRAMES[1])
    assert out == [PLAIN_HEAD, FRAMES[0]]
    assert plan.counters.passed == 1
