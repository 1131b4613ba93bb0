from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import Sequence
from ipaddress import ip_address

import pytest

from pyderp.addresses import IPAddress
from pyderp.errors import DialError
from pyderp.net import dns
from pyderp.net.dns import Addresses, DNSCache

from .ways_out import Names

V4, OTHER_V4 = "192.0.2.1", "192.0.2.2"
V6, OTHER_V6 = "2001:db8::1", "2001:db8::2"
FAILURE = OSError("no network")


class Clock:
    """A clock that the test sets."""

    now = 1000.0

    def __call__(self) -> float:
        return self.now


def texts(found: Addresses) -> list[str]:
    return [str(ip) for ip in found.all]


async def settled() -> None:
    """Let the loop run until all tasks wait."""
    for _ in range(5):
        await asyncio.sleep(0)


def look_ups() -> list[asyncio.Task[object]]:
    return [task for task in asyncio.all_tasks() if task.get_name().startswith("pyderp look-up")]


@pytest.mark.parametrize(
    ("addresses", "primary"),
    [
        ([V4], V4),
        ([V4, OTHER_V4], V4),
        ([V6, V4, OTHER_V4], V4),
        ([V6, OTHER_V6], OTHER_V6),
        (["::ffff:192.0.2.1", V6], V4),
    ],
)
async def test_primary_is_the_first_ipv4_or_the_last_ipv6(
    addresses: list[str], primary: str
) -> None:
    found = await DNSCache(resolver=Names({"h": addresses})).lookup("h")
    assert str(found.primary) == primary
    assert len(found.all) == len(addresses)


async def test_an_answer_is_used_for_its_time_to_live() -> None:
    names, clock = Names({"h": [V4]}), Clock()
    cache = DNSCache(resolver=names, clock=clock)
    assert texts(await cache.lookup("h")) == [V4]
    names.answers = {"h": [OTHER_V4]}
    clock.now += 599.9
    assert texts(await cache.lookup("h")) == [V4]
    clock.now += 0.2
    assert texts(await cache.lookup("h")) == [OTHER_V4]
    assert len(names.asked) == 2


async def test_the_time_to_live_can_be_set() -> None:
    names, clock = Names({"h": [V4]}), Clock()
    cache = DNSCache(resolver=names, clock=clock, ttl=5)
    await cache.lookup("h")
    clock.now += 4.9
    await cache.lookup("h")
    assert len(names.asked) == 1
    clock.now += 0.2
    await cache.lookup("h")
    assert len(names.asked) == 2


async def test_a_failure_is_not_remembered() -> None:
    names = Names({"h": FAILURE})
    cache = DNSCache(resolver=names)
    with pytest.raises(DialError, match="look-up of 'h': no network"):
        await cache.lookup("h")
    names.answers = {"h": [V4]}
    assert texts(await cache.lookup("h")) == [V4]


@pytest.mark.parametrize("answer", [FAILURE, []])
async def test_the_last_good_answer_is_used_after_a_failure(answer: Exception | list[str]) -> None:
    for use_last_good in (True, False):
        names, clock = Names({"h": [V4]}), Clock()
        cache = DNSCache(resolver=names, clock=clock, use_last_good=use_last_good)
        await cache.lookup("h")
        names.answers = {"h": answer}
        clock.now += 100_000
        if use_last_good:
            assert texts(await cache.lookup("h")) == [V4]
        else:
            with pytest.raises(DialError):
                await cache.lookup("h")
        # The failure is not remembered either.
        names.answers = {"h": [OTHER_V4]}
        assert texts(await cache.lookup("h")) == [OTHER_V4]


@pytest.mark.parametrize(
    ("addresses", "cached"),
    [
        (["10.1.2.3"], False),
        (["172.16.0.1"], False),
        (["172.31.255.255"], False),
        (["192.168.1.1"], False),
        (["fd00::1"], False),
        (["fc00::1"], False),
        (["10.1.2.3", V6], False),
        ([V4, "10.1.2.3"], True),  # only the primary counts
        (["172.32.0.1"], True),
        (["127.0.0.1"], True),
        (["169.254.0.1"], True),
        (["100.64.0.1"], True),
        (["fe80::1"], True),
        ([V6], True),
    ],
)
async def test_private_addresses_are_used_but_not_remembered(
    addresses: list[str], cached: bool
) -> None:
    names = Names({"h": addresses})
    cache = DNSCache(resolver=names)
    assert texts(await cache.lookup("h")) == addresses
    await cache.lookup("h")
    assert len(names.asked) == (1 if cached else 2)


async def test_without_any_address_each_source_is_in_the_error() -> None:
    cache = DNSCache(resolver=Names({"h": []}), fallbacks=[Names({"h": FAILURE})])
    with pytest.raises(DialError) as caught:
        await cache.lookup("h")
    assert str(caught.value) == 'no IPs for "h" found'
    group = caught.value.__cause__
    assert isinstance(group, ExceptionGroup)
    assert [str(e) for e in group.exceptions] == [
        'no IPs for "h" found',
        "look-up of 'h': no network",
    ]


@pytest.mark.parametrize("first", [FAILURE, []])
async def test_fallbacks_are_asked_in_turn(first: Exception | Sequence[str]) -> None:
    names = [Names({"h": first}), Names({"h": FAILURE}), Names({"h": [V4]}), Names({})]
    cache = DNSCache(resolver=names[0], fallbacks=names[1:])
    assert texts(await cache.lookup("h")) == [V4]
    assert [len(each.asked) for each in names] == [1, 1, 1, 0]
    await cache.lookup("h")
    assert [len(each.asked) for each in names] == [1, 1, 1, 0]


async def test_time_limits(monkeypatch: pytest.MonkeyPatch) -> None:
    """10 s, with an older answer 3 s, fallbacks 30 s."""
    given: list[float] = []
    real = asyncio.timeout

    def timeout(delay: float) -> asyncio.Timeout:
        given.append(delay)
        return real(0.001)

    monkeypatch.setattr("pyderp.net.dns.asyncio.timeout", timeout)
    mute, clock = Names({"h": None}), Clock()
    cache = DNSCache(resolver=mute, fallbacks=[mute, mute], clock=clock)
    with pytest.raises(DialError) as caught:
        await cache.lookup("h")
    assert str(caught.value) == "look-up of 'h': no answer within 10 s"
    assert (given, mute.cancelled) == ([10, 30, 30], 3)

    monkeypatch.setattr("pyderp.net.dns.asyncio.timeout", real)
    mute.answers = {"h": [V4]}
    await cache.lookup("h")
    clock.now += 1000
    monkeypatch.setattr("pyderp.net.dns.asyncio.timeout", timeout)
    mute.answers = {"h": None}
    given.clear()
    assert texts(await cache.lookup("h")) == [V4]
    assert given == [3, 30, 30]
    monkeypatch.undo()


async def test_without_last_good_an_older_answer_causes_no_early_return(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    names, clock = Names({"h": [V4]}), Clock()
    cache = DNSCache(resolver=names, clock=clock, use_last_good=False)
    await cache.lookup("h")
    clock.now += 1000
    monkeypatch.setattr(dns, "_TIMEOUT", 0.001)
    names.answers = {"h": None}
    with pytest.raises(DialError, match=r"no answer within 0\.001 s"):
        await cache.lookup("h")


async def test_look_ups_of_one_name_are_joined() -> None:
    names = Names({"h": [V4], "other": [V6]})
    cache = DNSCache(resolver=names)
    found = await asyncio.gather(*(cache.lookup(name) for name in ("h", "h", "other", "h")))
    assert [texts(each) for each in found] == [[V4], [V4], [V6], [V4]]
    assert sorted(host for host, _ in names.asked) == ["h", "other"]


async def test_all_waiting_callers_get_the_failure() -> None:
    names = Names({"h": FAILURE})
    cache = DNSCache(resolver=names)
    found = await asyncio.gather(*(cache.lookup("h") for _ in range(3)), return_exceptions=True)
    assert [str(e) for e in found] == ["look-up of 'h': no network"] * 3
    assert len(names.asked) == 1


async def test_cancelling_one_waiting_caller_leaves_the_others() -> None:
    names = Names({"h": None})
    cache = DNSCache(resolver=names)
    waiting = [asyncio.create_task(cache.lookup("h")) for _ in range(3)]
    await settled()
    waiting[0].cancel()
    await settled()
    assert [task.cancelled() for task in waiting] == [True, False, False]
    assert (len(look_ups()), names.cancelled) == (1, 0)
    waiting[1].cancel()
    waiting[2].cancel()
    await settled()
    assert all(task.cancelled() for task in waiting)
    assert (look_ups(), names.cancelled, len(names.asked)) == ([], 1, 1)
    # The next one starts a new look-up.
    names.answers = {"h": [V4]}
    assert texts(await cache.lookup("h")) == [V4]


async def test_the_last_waiting_caller_waits_for_the_end_and_the_next_starts_anew() -> None:
    ending, may_end = asyncio.Event(), asyncio.Event()
    asked = 0

    async def slow_to_cancel(host: str, family: socket.AddressFamily) -> list[IPAddress]:
        nonlocal asked
        asked += 1
        if asked > 1:
            return [ip_address(V4)]
        try:
            await asyncio.get_running_loop().create_future()
            return []
        finally:
            ending.set()
            await may_end.wait()

    cache = DNSCache(resolver=slow_to_cancel)
    waiting = asyncio.create_task(cache.lookup("h"))
    await settled()
    waiting.cancel()
    await ending.wait()
    await settled()
    assert not waiting.done()
    assert texts(await cache.lookup("h")) == [V4]
    may_end.set()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    assert not look_ups()


async def test_cancelling_at_every_turn_leaves_no_task() -> None:
    for answer in ([V4], FAILURE):
        for turns in range(12):
            cache = DNSCache(resolver=Names({"h": answer}))
            waiting = [asyncio.create_task(cache.lookup("h")) for _ in range(2)]
            for _ in range(turns):
                await asyncio.sleep(0)
            for task in waiting:
                task.cancel()
            await asyncio.gather(*waiting, return_exceptions=True)
            assert not look_ups()
            assert not cache._running


async def test_an_address_is_not_looked_up() -> None:
    names = Names({})
    cache = DNSCache(resolver=names)
    assert texts(await cache.lookup("::ffff:192.0.2.1")) == [V4]
    assert texts(await cache.lookup(V6)) == [V6]
    assert not names.asked


async def test_a_single_host_has_fixed_addresses_and_others_are_refused() -> None:
    addresses = [ip_address(V6), ip_address("::ffff:192.0.2.1")]
    names = Names({})
    cache = DNSCache(resolver=names, single_host="h", single_host_addresses=addresses)
    found = await cache.lookup("h")
    assert (texts(found), str(found.primary)) == ([V6, V4], V4)
    for other in ("g", V4):
        with pytest.raises(DialError) as caught:
            await cache.lookup(other)
        assert str(caught.value) == (
            f'dnscache: unexpected hostname "{other}" doesn\'t match expected "h"'
        )
    assert not names.asked


def test_a_single_host_and_its_addresses_need_each_other() -> None:
    with pytest.raises(ValueError, match="need each other"):
        DNSCache(single_host="h")
    with pytest.raises(ValueError, match="need each other"):
        DNSCache(single_host_addresses=[ip_address(V4)])


async def test_what_the_cache_does_is_logged_on_demand(caplog: pytest.LogCaptureFixture) -> None:
    caplog.clear()
    caplog.set_level(logging.DEBUG, "pyderp.net")
    names, clock = Names({"h": [V4, V6]}), Clock()
    cache = DNSCache(resolver=names, clock=clock)
    await cache.lookup("h")
    assert not caplog.messages
    await cache.lookup("h", debug=True)
    clock.now += 1000
    await cache.lookup("h", debug=True)
    clock.now += 1000
    names.answers = {"h": FAILURE, "g": FAILURE}
    await cache.lookup("h", debug=True)
    with pytest.raises(DialError):
        await cache.lookup("g", debug=True)
    both = f"{V4}, {V6}"
    assert caplog.messages == [
        f"dnscache: h: {both}, cached",
        f"dnscache: h: {both}",
        f"dnscache: h: {both}, the last good answer, after look-up of 'h': no network",
        "dnscache: g: look-up of 'g': no network",
    ]
