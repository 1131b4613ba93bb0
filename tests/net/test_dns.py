from __future__ import annotations

import asyncio
import gc
import socket
import threading
import weakref
from collections.abc import Iterator, Sequence
from ipaddress import ip_address
from typing import Any

import pytest

from pyderp.errors import DialError
from pyderp.net import dns
from pyderp.net.dns import lookup, system_resolver

from .ways_out import Names

BOUND = 20.0


async def test_the_system_resolves_localhost() -> None:
    assert await system_resolver("localhost", socket.AF_INET) == [ip_address("127.0.0.1")]
    assert await lookup("localhost", family=socket.AF_INET) == [ip_address("127.0.0.1")]


async def test_answers_of_the_system_have_no_duplicates_and_keep_zones(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def answer(*_: object, **__: object) -> Sequence[object]:
        tcp = (socket.SOCK_STREAM, socket.IPPROTO_TCP, "")
        return [
            (socket.AF_INET6, *tcp, ("fe80::1", 0, 0, 7)),
            (socket.AF_INET6, *tcp, ("fe80::2%eth0", 0, 0, 8)),
            (socket.AF_INET6, *tcp, ("2001:db8::1", 0, 0, 0)),
            (socket.AF_INET, *tcp, ("192.0.2.1", 0)),
            (socket.AF_INET, *tcp, ("192.0.2.1", 0)),
        ]

    monkeypatch.setattr(socket, "getaddrinfo", answer)
    found = await system_resolver("h", socket.AF_UNSPEC)
    monkeypatch.undo()
    assert [str(ip) for ip in found] == [
        "fe80::1%7",
        "fe80::2%eth0",
        "2001:db8::1",
        "192.0.2.1",
    ]


class Hanging:
    """A `socket.getaddrinfo` that answers when the test says so."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, int]] = []
        self.answer = threading.Event()

    def __call__(self, host: str, port: None, family: int, *_: object) -> Sequence[object]:
        self.asked.append((host, family))
        assert self.answer.wait(BOUND)
        if host == "unknown":
            raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
        return [(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP, "", ("192.0.2.1", 0))]


@pytest.fixture
def hanging(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hanging]:
    """The system's look-ups hang; threads that still wait at the end of the test are released."""
    made = Hanging()
    monkeypatch.setattr(socket, "getaddrinfo", made)
    yield made
    made.answer.set()


def ask(host: str = "h", family: socket.AddressFamily = socket.AF_INET) -> asyncio.Task[list[Any]]:
    return asyncio.create_task(system_resolver(host, family))


async def until_asked(hanging: Hanging, count: int) -> None:
    while len(hanging.asked) < count:  # noqa: ASYNC110 (a thread's doing)
        await asyncio.sleep(0.001)


async def test_hanging_look_ups_do_not_delay_others(monkeypatch: pytest.MonkeyPatch) -> None:
    """Event loops have few threads for look-ups; uvloop has two."""
    release = threading.Event()

    def answer(host: str, *_: object) -> Sequence[object]:
        if host.startswith("hangs"):
            assert release.wait(BOUND)
        return [(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP, "", ("192.0.2.1", 0))]

    async def main() -> None:
        hanging = [ask(f"hangs {i}") for i in range(40)]
        async with asyncio.timeout(BOUND):
            assert [str(ip) for ip in await ask("good")] == ["192.0.2.1"]
        release.set()
        await asyncio.gather(*hanging)

    monkeypatch.setattr(socket, "getaddrinfo", answer)
    await main()


async def test_a_host_has_one_thread_at_most(hanging: Hanging) -> None:
    """A cancelled caller leaves its look-up to the next caller; other hosts are answered."""

    for _ in range(40):
        asking = ask()
        await asyncio.sleep(0)
        asking.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asking
    last = [ask(), ask(), ask("h", socket.AF_INET6), ask("other")]
    await until_asked(hanging, 3)
    assert sorted(hanging.asked) == [
        ("h", socket.AF_INET),
        ("h", socket.AF_INET6),
        ("other", socket.AF_INET),
    ]
    last[0].cancel()
    hanging.answer.set()
    answers = await asyncio.gather(*last, return_exceptions=True)
    assert isinstance(answers[0], asyncio.CancelledError)
    assert answers[1:] == [[ip_address("192.0.2.1")]] * 3
    assert answers[1] is not answers[2]
    assert await system_resolver("h", socket.AF_INET) == [ip_address("192.0.2.1")]
    assert hanging.asked[3:] == [("h", socket.AF_INET)]


async def test_all_waiting_callers_get_the_failure(hanging: Hanging) -> None:
    asking = [ask("unknown"), ask("unknown")]
    await until_asked(hanging, 1)
    hanging.answer.set()
    for each in await asyncio.gather(*asking, return_exceptions=True):
        assert isinstance(each, socket.gaierror)
    assert len(hanging.asked) == 1


async def test_a_failure_without_a_waiting_caller_is_not_reported(
    hanging: Hanging, caplog: pytest.LogCaptureFixture
) -> None:
    asking = ask("unknown")
    await until_asked(hanging, 1)
    asking.cancel()
    (look_up,) = (t for t in asyncio.all_tasks() if t.get_name() == "pyderp look-up of unknown")
    hanging.answer.set()
    await asyncio.wait([look_up])
    gc.collect()
    assert not caplog.records


def test_each_loop_looks_up_for_itself_and_none_is_kept(hanging: Hanging) -> None:
    """A loop that is closed during a look-up is freed when the system gives up."""

    async def begin(count: int) -> weakref.ref[asyncio.AbstractEventLoop]:
        asking = ask()
        await until_asked(hanging, count)
        asking.cancel()
        return weakref.ref(asyncio.get_running_loop())

    for count in (1, 2):
        hanging.answer.clear()
        loop = asyncio.run(begin(count))
        hanging.answer.set()
        for thread in threading.enumerate():
            if thread.name.startswith("pyderp look-up"):
                thread.join(BOUND)
        gc.collect()
        assert loop() is None
        assert not dns._asking
    assert len(hanging.asked) == 2


@pytest.mark.parametrize(
    ("host", "address"),
    [
        ("192.0.2.1", "192.0.2.1"),
        ("2001:DB8::1", "2001:db8::1"),
        ("::ffff:192.0.2.1", "192.0.2.1"),
        ("fe80::1%eth0", "fe80::1%eth0"),
    ],
)
async def test_an_address_needs_no_resolver(host: str, address: str) -> None:
    names = Names({})
    assert await lookup(host, resolver=names) == [ip_address(address)]
    assert not names.asked


async def test_the_resolver_is_asked_for_the_family() -> None:
    names = Names({"h": ["::ffff:192.0.2.1", "2001:db8::1"]})
    found = await lookup("h", family=socket.AF_INET6, resolver=names)
    assert found == [ip_address("192.0.2.1"), ip_address("2001:db8::1")]
    assert names.asked == [("h", socket.AF_INET6)]


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        ([], 'no IPs for "h" found'),
        (
            socket.gaierror(socket.EAI_NONAME, "Name or service not known"),
            "look-up of 'h': Name or service not known",
        ),
        (OSError("no network"), "look-up of 'h': no network"),
        (TimeoutError(), "look-up of 'h': TimeoutError"),
    ],
)
async def test_no_address_is_a_dial_error(answer: list[str] | Exception, message: str) -> None:
    with pytest.raises(DialError) as caught:
        await lookup("h", resolver=Names({"h": answer}))
    assert str(caught.value) == message
    assert caught.value.__cause__ is (answer if isinstance(answer, Exception) else None)


@pytest.mark.parametrize("host", ["a..b", "a\0b", "x" * 64 + ".net"])
async def test_a_host_that_cannot_be_a_name_is_a_dial_error(host: str) -> None:
    with pytest.raises(DialError) as caught:
        await lookup(host)
    assert repr(host) in str(caught.value)
