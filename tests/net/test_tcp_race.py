from __future__ import annotations

import asyncio
import socket
from ipaddress import ip_address

import pytest

from pyderp.errors import ConfigError, DialError, FailureReason
from pyderp.net import tcp
from pyderp.net.settings import NetworkSettings
from pyderp.net.tcp import (
    Attempt,
    connect_to_any,
    connect_to_host,
    interleave,
    staggered_race,
)

from .ways_out import Names, Sockets, closed_port, echo, serving

NEVER = 3600.0


class Runner:
    """An attempt that ends when the test says so."""

    def __init__(self) -> None:
        self.started = asyncio.Event()
        self.cancelled = False
        self.outcome: asyncio.Future[socket.socket] = asyncio.Future()

    async def __call__(self) -> socket.socket:
        self.started.set()
        try:
            return await self.outcome
        except asyncio.CancelledError:
            self.cancelled = True
            raise

    def win(self) -> socket.socket:
        sock = socket.socket()
        self.outcome.set_result(sock)
        return sock

    def fail(self, text: str) -> None:
        self.outcome.set_exception(DialError(text))


def race_of(*runners: Attempt, delay: float) -> asyncio.Task[socket.socket]:
    return asyncio.create_task(staggered_race(runners, delay=delay))


async def test_the_next_starts_after_the_delay_and_the_slower_one_is_cancelled() -> None:
    first, second, third = Runner(), Runner(), Runner()
    task = race_of(first, second, third, delay=0.01)
    await third.started.wait()
    assert first.started.is_set()
    assert second.started.is_set()
    sock = second.win()
    assert await task is sock
    assert (first.cancelled, third.cancelled) == (True, True)
    sock.close()


async def test_no_second_attempt_starts_if_the_first_is_quick() -> None:
    first, second = Runner(), Runner()
    task = race_of(first, second, delay=NEVER)
    await first.started.wait()
    with first.win() as sock:
        assert await task is sock
    assert not second.started.is_set()


async def test_the_next_starts_at_once_when_one_fails() -> None:
    first, second = Runner(), Runner()
    task = race_of(first, second, delay=NEVER)
    first.fail("no")
    await second.started.wait()
    with second.win() as sock:
        assert await task is sock


async def test_no_delay_starts_all() -> None:
    first, second = Runner(), Runner()
    task = race_of(first, second, delay=0)
    await first.started.wait()
    await second.started.wait()
    second.fail("no")
    with first.win() as sock:
        assert await task is sock


async def test_a_second_winner_is_closed() -> None:
    first, second = Runner(), Runner()
    task = race_of(first, second, delay=0)
    await second.started.wait()
    with first.win() as sock:
        late = second.win()
        assert await task is sock
        assert late.fileno() == -1


async def test_if_all_fail_the_first_failure_is_raised_with_all() -> None:
    runners = [Runner() for _ in range(3)]
    task = race_of(*runners, delay=0)
    await runners[2].started.wait()
    for number in (1, 2, 0):
        runners[number].fail(f"failure of {number}")
        await asyncio.sleep(0.001)
    with pytest.raises(DialError) as caught:
        await task
    assert str(caught.value) == "failure of 1"
    group = caught.value.__cause__
    assert isinstance(group, ExceptionGroup)
    assert [str(e) for e in group.exceptions] == [f"failure of {n}" for n in (1, 2, 0)]


@pytest.mark.parametrize(
    ("failures", "reason"),
    [
        ([OSError(101, "Network is unreachable")], FailureReason.UNREACHABLE),
        ([OSError(101, "unreachable"), ConnectionRefusedError()], FailureReason.REFUSED),
        ([ConnectionRefusedError(), TimeoutError()], FailureReason.TIMEOUT),
        ([ConnectionResetError(), socket.gaierror()], FailureReason.UNKNOWN_NAME),
        ([ConnectionResetError(), DialError("no")], FailureReason.CUT),
        ([DialError("no", reason=FailureReason.REFUSED)], FailureReason.REFUSED),
    ],
)
async def test_of_several_reasons_the_first_in_the_list_counts(
    failures: list[OSError], reason: FailureReason
) -> None:
    def failing(error: OSError) -> Attempt:
        async def attempt() -> socket.socket:
            raise error

        return attempt

    with pytest.raises(DialError) as caught:
        await staggered_race([failing(error) for error in failures], delay=0)
    assert caught.value.reason is reason


async def test_another_error_ends_the_race() -> None:
    first, second, third = Runner(), Runner(), Runner()
    task = race_of(first, second, third, delay=0)
    await third.started.wait()
    late = third.win()
    error = ConfigError("mark")
    first.outcome.set_exception(error)
    with pytest.raises(ConfigError) as caught:
        await task
    assert caught.value is error
    assert second.cancelled
    assert late.fileno() == -1


async def test_cancelling_cancels_all_and_closes_winners() -> None:
    first, second = Runner(), Runner()
    task = race_of(first, second, delay=0)
    await second.started.wait()
    won = first.win()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert second.cancelled
    # It was cancelled before it returned its socket, or returned it and that was closed.
    assert first.cancelled or won.fileno() == -1
    won.close()


def test_interleave_takes_families_in_turn() -> None:
    def order(*texts: str) -> list[str]:
        return [str(ip) for ip in interleave([ip_address(text) for text in texts])]

    assert order("::1", "::2", "::3", "1.1.1.1", "1.1.1.2") == [
        "::1",
        "1.1.1.1",
        "::2",
        "1.1.1.2",
        "::3",
    ]
    assert order("1.1.1.1", "::1", "::2") == ["1.1.1.1", "::1", "::2"]
    assert order("1.1.1.1") == ["1.1.1.1"]


async def test_families_take_turns_and_all_failures_are_kept() -> None:
    sockets, port = Sockets(), closed_port()
    addresses = [ip_address(text) for text in ("127.0.0.1", "127.0.0.2", "::1")]
    with pytest.raises(DialError) as caught:
        await connect_to_any(addresses, port, settings=sockets.watch())
    assert str(caught.value) == f"connect to 127.0.0.1:{port}: Connection refused"
    assert isinstance(caught.value.__cause__, ExceptionGroup)
    tried = [str(e).split(": ")[0] for e in caught.value.__cause__.exceptions]
    assert tried == [
        f"connect to 127.0.0.1:{port}",
        f"connect to [::1]:{port}",
        f"connect to 127.0.0.2:{port}",
    ]
    await sockets.closed()


async def test_the_stagger_is_300_ms(monkeypatch: pytest.MonkeyPatch) -> None:
    delays: list[float] = []

    async def spy(_: object, *, delay: float) -> None:
        delays.append(delay)

    monkeypatch.setattr(tcp, "staggered_race", spy)
    await connect_to_any([ip_address("127.0.0.1")], 1, settings=NetworkSettings())
    assert delays == [0.3]


async def test_a_host_can_be_limited_to_one_family() -> None:
    names = Names({"h": {socket.AF_INET: ["127.0.0.1"], socket.AF_INET6: OSError("none")}})
    async with serving(echo) as port:
        with await connect_to_host(
            "h", port, settings=NetworkSettings(), resolver=names, family=socket.AF_INET
        ) as sock:
            assert sock.getpeername()[0] == "127.0.0.1"
        assert names.asked == [("h", socket.AF_INET)]
