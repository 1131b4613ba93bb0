from __future__ import annotations

import asyncio
import contextlib
import errno
import json
import logging
import socket
import threading
from typing import Any

import aiohttp
import pytest
from aiohttp.client_reqrep import ConnectionKey
from hypothesis import given
from hypothesis import strategies as st
from yarl import URL

from pyderp.admission.reach import OwnThreadResolver, Reach, _check_redirect
from pyderp.admission.url import AdmissionURL, Undecided, _proxy_for, allows_untrusted
from pyderp.admission.verdict import AdmissionCounters, Cause, Verdict
from pyderp.errors import ConfigError

from .fakes import CLOSE, STALL, Reply, Request, identity, key, response, serving


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


BUDGET = 0.2
"""Timeout in seconds, instead of five."""
LONG = 20.0

ALLOW = response(b'{"Allow":true}')
DENY = response(b'{"Allow":false}')


async def ask(url: str, *, fail_open: bool = True, budget: float = LONG) -> Verdict:
    """Check client 1 once."""
    controller = AdmissionURL(url, AdmissionCounters(), fail_open=fail_open, timeout=budget)
    try:
        return await controller.ask(identity())
    finally:
        await controller.aclose()


def free_url() -> str:
    """Return a URL whose port is closed."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{probe.getsockname()[1]}/"


async def test_the_request_has_exactly_this_body_and_no_content_type() -> None:
    async with serving([ALLOW]) as server:
        assert await ask(server.url) == Verdict(True)
    (request,) = server.requests
    assert request.line == b"POST /admit?x=1 HTTP/1.1"
    assert request.body == (b'{"NodePublic":"nodekey:' + b"0" * 63 + b'1","Source":"192.0.2.7"}')
    assert request.headers.keys() == {"Host", "User-Agent", "Accept-Encoding", "Content-Length"}


async def test_an_unknown_address_is_an_empty_source() -> None:
    async with serving([ALLOW]) as server:
        controller = AdmissionURL(server.url, AdmissionCounters())
        await controller.ask(identity(address=""))
        await controller.ask(identity(address="2001:db8::1"))
        await controller.aclose()
    assert [json.loads(r.body)["Source"] for r in server.requests] == ["", "2001:db8::1"]


ANSWERS: dict[str, tuple[bytes, str]] = {
    "allow": (ALLOW, ""),
    "lower case": (response(b'{"allow":true}'), ""),
    "upper case": (response(b'{"ALLOW":true,"Other":[1]}'), ""),
    "trailing bytes": (response(b' \n{"Allow":true} and more'), ""),
    "long tail": (response(b'{"Allow":true}' + b" " * 9000), ""),
    "deny": (DENY, "not allowed"),
    "empty object": (response(b"{}"), "not allowed"),
    "null": (response(b'{"Allow":null}'), "not allowed"),
    "201": (response(b'{"Allow":true}', "201 Created"), "201 Created"),
    "204": (response(b"", "204 No Content"), "204 No Content"),
    "302 to nowhere": (response(b'{"Allow":true}', "302 Found"), "302 Found"),
    "403": (response(b'{"Allow":false}', "403 Forbidden"), "403 Forbidden"),
    "500": (response(b'{"Allow":true}', "500 Oops"), "500 Oops"),
    "no JSON": (response(b"<html>"), "no usable answer"),
    "nothing": (response(b""), "no usable answer"),
    "half": (response(b'{"Allow":true'), "no usable answer"),
    "text": (response(b'{"Allow":"yes"}'), "neither true nor false"),
    "array": (response(b"[true]"), "no usable answer"),
    "too long": (response(b'{"Pad":"' + b"x" * 4096 + b'","Allow":true}'), "4096"),
}
"""The response, and a part of the reason for a refusal, or an empty one."""


@pytest.mark.parametrize("fail_open", [True, False])
async def test_a_response_decides_with_and_without_fail_open(fail_open: bool) -> None:
    for name, (answer, reason) in ANSWERS.items():
        async with serving([answer]) as server:
            verdict = await ask(server.url, fail_open=fail_open)
        assert verdict.allowed is not bool(reason), name
        assert reason in verdict.reason, name
        assert verdict.allowed or verdict.reason.startswith("admission controller: "), name
        # Only a complete answer with status 200 may disconnect other connections.
        assert verdict.definitive is (reason in ("", "not allowed")), name


async def test_a_refusal_names_key_and_address() -> None:
    async with serving([DENY]) as server:
        verdict = await ask(server.url)
    assert verdict.reason == f"admission controller: {key(1)}/192.0.2.7 not allowed"


HUGE_HEADER = b"HTTP/1.1 200 OK\r\nX: " + b"x" * 100_000 + b"\r\n\r\n"
NO_ANSWERS: dict[str, tuple[Reply, Cause]] = {
    "silence": ([STALL], Cause.TIMED_OUT),
    "half a head": ([b"HTTP/1.1 200 OK\r\nContent-", STALL], Cause.TIMED_OUT),
    "half a body": (
        [b'HTTP/1.1 200 OK\r\nContent-Length: 14\r\n\r\n{"Allow":', STALL],
        Cause.TIMED_OUT,
    ),
    "close": ([CLOSE], Cause.BAD_ANSWER),
    "close in the head": ([b"HTTP/1.1 200 OK\r\nContent-", CLOSE], Cause.BAD_ANSWER),
    "no HTTP": ([b"SSH-2.0-x\r\n\r\n", CLOSE], Cause.BAD_ANSWER),
    "garbage status line": ([b"HTTP/1.1 yes please\r\n\r\n", CLOSE], Cause.BAD_ANSWER),
    "huge header": ([HUGE_HEADER, ALLOW], Cause.BAD_ANSWER),
    "bad length": (
        [b'HTTP/1.1 200 OK\r\nContent-Length: many\r\n\r\n{"Allow":true}', CLOSE],
        Cause.BAD_ANSWER,
    ),
    "redirect loop": ([response(b"", "307 Go", "Location: /\r\n")], Cause.BAD_ANSWER),
    "redirect to FTP": (
        [response(b"", "307 Go", "Location: ftp://127.0.0.1/\r\n")],
        Cause.BAD_ANSWER,
    ),
    "redirect to no URL": ([response(b"", "307 Go", "Location: http://[\r\n")], Cause.BAD_ANSWER),
    "redirect to nowhere": (
        [response(b"", "307 Go", "Location: http://127.0.0.1:1/\r\n")],
        Cause.BAD_ANSWER,
    ),
}
"""What the server sends on an open connection, and the cause of the verdict."""


@pytest.mark.parametrize("fail_open", [True, False])
@pytest.mark.parametrize("name", NO_ANSWERS)
async def test_a_connection_without_a_valid_answer_refuses_even_with_fail_open(
    name: str, fail_open: bool, caplog: pytest.LogCaptureFixture
) -> None:
    """An attacker may make a controller fail. Only an unreachable one lets clients in."""
    reply, cause = NO_ANSWERS[name]

    async def main() -> None:
        counters = AdmissionCounters()
        budget = BUDGET if cause is Cause.TIMED_OUT else LONG
        async with serving(reply) as server:
            controller = AdmissionURL(server.url, counters, fail_open=fail_open, timeout=budget)
            verdict = await controller.ask(identity())
            await controller.aclose()
            assert len(server.requests) == (10 if "loop" in name else 1)
        assert (verdict.allowed, verdict.cause) == (False, cause)
        assert counters == AdmissionCounters(queries=1, errors=1)

    with caplog.at_level(logging.WARNING, "pyderp.admission"):
        await main()
    assert ("no answer within 0.2 s" in caplog.text) is (cause is Cause.TIMED_OUT)
    assert "is let in" not in caplog.text


async def test_an_unreachable_server_allows_only_with_fail_open() -> None:
    counters = AdmissionCounters()
    for fail_open in (True, False):
        controller = AdmissionURL(free_url(), counters, fail_open=fail_open)
        verdict = await controller.ask(identity())
        await controller.aclose()
        assert (verdict.allowed, verdict.cause) == (fail_open, Cause.UNREACHABLE)
    assert counters == AdmissionCounters(queries=2, errors=2, failed_open=1)


def failing_with(error: BaseException) -> type[aiohttp.TCPConnector]:
    """Return a connector class whose connections fail with an error."""

    class Failing(aiohttp.TCPConnector):
        async def _create_connection(self, *_: Any, **__: Any) -> Any:
            raise error

    return Failing


def connector_error(number: int | None) -> aiohttp.ClientConnectorError:
    key = ConnectionKey("c.example", 80, False, True, None, None, None)
    error = OSError("Multiple exceptions") if number is None else OSError(number, "told")
    return aiohttp.ClientConnectorError(key, error)


def dns_error(number: int) -> aiohttp.ClientConnectorDNSError:
    key = ConnectionKey("c.example", 80, False, True, None, None, None)
    return aiohttp.ClientConnectorDNSError(key, socket.gaierror(number, "told"))


@pytest.mark.parametrize(
    ("error", "opens"),
    [
        pytest.param(connector_error(errno.ECONNREFUSED), True, id="refused"),
        pytest.param(connector_error(errno.EHOSTUNREACH), True, id="no-host"),
        pytest.param(connector_error(None), True, id="each-address-in-its-way"),
        pytest.param(dns_error(socket.EAI_AGAIN), True, id="no-name-server"),
        pytest.param(dns_error(socket.EAI_NONAME), True, id="no-name"),
        pytest.param(TimeoutError(), True, id="time-out"),
        # These are errors of the relay itself, which a flood of clients may cause.
        pytest.param(connector_error(errno.EMFILE), False, id="no-files"),
        pytest.param(connector_error(errno.ENFILE), False, id="no-files-at-all"),
        pytest.param(connector_error(errno.EADDRNOTAVAIL), False, id="no-port"),
        pytest.param(connector_error(errno.ENOBUFS), False, id="no-buffer"),
        pytest.param(connector_error(errno.ENOMEM), False, id="no-memory"),
        pytest.param(dns_error(socket.EAI_MEMORY), False, id="no-memory-for-a-name"),
        pytest.param(dns_error(socket.EAI_SYSTEM), False, id="no-file-for-a-name"),
        pytest.param(aiohttp.ServerDisconnectedError(), False, id="proxy-closes"),
        pytest.param(ValueError("odd"), False, id="odd"),
    ],
)
async def test_only_an_unreachable_server_fails_open_and_no_error_of_the_relay(
    error: Exception, opens: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(aiohttp, "TCPConnector", failing_with(error))

    verdict = await ask("http://c.example/")
    cause = Cause.UNREACHABLE if opens else Cause.FAILED
    assert (verdict.allowed, verdict.cause) == (opens, cause)


async def test_without_a_thread_for_the_look_up_the_client_is_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def no_thread(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", no_thread)
    verdict = await ask("http://c.example/")
    assert (verdict.allowed, verdict.cause) == (False, Cause.FAILED)


async def test_names_are_looked_up_two_at_once_in_separate_threads(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    running: list[str] = []
    most = 0
    two, go = threading.Event(), threading.Event()

    def getaddrinfo(host: str, *_: object, **__: object) -> list[tuple[Any, ...]]:
        nonlocal most
        running.append(threading.current_thread().name)
        most = max(most, len(running))
        if len(running) == 2:
            two.set()
        assert go.wait(LONG)
        running.pop()
        return [(socket.AF_INET6, socket.SOCK_STREAM, 6, "", ("fe80::1", 80, 0, 3))]

    async def main() -> None:
        resolver = OwnThreadResolver()
        loop = asyncio.get_running_loop()
        asked = [asyncio.ensure_future(resolver.resolve(f"c{n}.example", 80)) for n in range(5)]
        await loop.run_in_executor(None, two.wait, LONG)
        assert set(running) == {"pyderp look-up of c0.example", "pyderp look-up of c1.example"}
        go.set()
        for found in await asyncio.gather(*asked):
            assert [(each["host"], each["port"]) for each in found] == [("fe80::1%3", 80)]
        assert most == 2
        await resolver.close()

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    await main()


async def test_a_refused_connection_does_not_fail_open_while_the_server_answers_others() -> None:
    """A full accept queue refuses some. A client that fills it must not be allowed by that."""
    clock = Clock()
    reach = Reach(clock=clock)
    counters = AdmissionCounters()
    async with serving([DENY]) as server:
        controller = AdmissionURL(server.url, counters, reach=reach)
        assert (await controller.ask(identity(1))).definitive
        await controller.aclose()
    # The same server, whose port refuses connections from now on.
    for seconds, allowed in ((0, False), (29, False), (2, True)):
        clock.now += seconds
        verdict = await controller.ask(identity(2))
        assert verdict.allowed is allowed
        assert verdict.cause is (Cause.UNREACHABLE if allowed else Cause.CROWDED)
    assert (counters.queries, counters.errors, counters.failed_open) == (4, 3, 1)
    await controller.aclose()


async def test_the_first_refused_attempt_waits_for_concurrent_ones(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with serving([DENY]) as server:
        both = asyncio.Barrier(2)
        make = aiohttp.TCPConnector._create_connection

        async def some(self: Any, request: Any, *rest: Any) -> Any:
            if await both.wait() == 0:
                raise connector_error(errno.ECONNREFUSED)
            return await make(self, request, *rest)

        monkeypatch.setattr(aiohttp.TCPConnector, "_create_connection", some)
        controller = AdmissionURL(server.url, AdmissionCounters(), reach=Reach(grace=LONG))
        verdicts = await asyncio.gather(*(controller.ask(identity(n)) for n in (1, 2)))
        assert {verdict.cause for verdict in verdicts} == {Cause.CROWDED, Cause.ANSWERED}
        assert not any(verdict.allowed for verdict in verdicts)
        await controller.aclose()


async def test_a_server_known_to_be_unreachable_is_not_tried_for_each_client() -> None:
    clock = Clock()
    counters = AdmissionCounters()
    controller = AdmissionURL(free_url(), counters, reach=Reach(clock=clock))
    for seconds, queries in ((0, 1), (0.9, 1), (0.2, 2)):
        clock.now += seconds
        assert (await controller.ask(identity())).cause is Cause.UNREACHABLE
        assert counters.queries == queries
    assert counters.failed_open == 3
    await controller.aclose()


def test_a_redirect_from_https_to_http_is_refused() -> None:
    for base, target, good in (
        ("https://c.example/a", "/b", True),
        ("https://c.example/a", "https://d.example/", True),
        ("https://c.example/a", "http://c.example/a", False),
        ("https://c.example/a", "ftp://c.example/a", False),
        ("http://c.example/a", "https://c.example/a", True),
        ("http://c.example/a", "http://d.example/a", True),
    ):
        with contextlib.nullcontext() if good else pytest.raises(ValueError, match="redirected"):
            _check_redirect(URL(base), target)


async def test_the_rest_of_a_body_is_not_waited_for() -> None:
    head = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
    parts: Reply = [head, b"9\r\n", b'{"Allow":', b"\r\n5\r\n", b"true}", STALL]
    async with serving(parts) as server:
        assert await ask(server.url) == Verdict(True)


async def test_redirects_are_followed_like_in_a_browser() -> None:
    def reply(request: Request) -> Reply:
        path = request.line.split()[1].decode()
        target = {"/307": "/here", "/302": "/here"}.get(path)
        if target is None:
            return [ALLOW]
        return [response(b"", f"{path[1:]} Go", f"Location: {target}\r\n")]

    async with serving(reply) as server:
        base = server.url.partition("/admit")[0]
        assert await ask(f"{base}/307") == Verdict(True)
        assert await ask(f"{base}/302") == Verdict(True)
    again = server.requests[1]
    assert (again.line, again.body) == (b"POST /here HTTP/1.1", server.requests[0].body)
    changed = server.requests[3]
    assert (changed.line, changed.body) == (b"GET /here HTTP/1.1", b"")


async def test_a_connection_is_reused() -> None:
    async with serving([ALLOW]) as server:
        controller = AdmissionURL(server.url, AdmissionCounters())
        for _ in range(3):
            assert await controller.ask(identity()) == Verdict(True)
        await controller.aclose()
    assert (server.connections, len(server.requests)) == (1, 3)


async def test_a_kept_connection_that_the_server_drops_allows_no_client() -> None:
    dropped = 0

    def reply(_: Request) -> Reply:
        # Each connection answers one request, and is closed after the next was read.
        nonlocal dropped
        if len(server.requests) - dropped > server.connections:
            dropped += 1
            return [CLOSE]
        return [DENY]

    async with serving(reply) as server:
        controller = AdmissionURL(server.url, AdmissionCounters())
        for _ in range(3):
            assert (await controller.ask(identity())).definitive
        await controller.aclose()
    assert dropped == 2


async def test_a_cancelled_check_closes_its_connection() -> None:
    async with serving([STALL]) as server:
        controller = AdmissionURL(server.url, AdmissionCounters())
        asking = asyncio.get_running_loop().create_task(controller.ask(identity()))
        await server.wait_for_requests(1)
        asking.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asking
        await controller.aclose()
        server.released.set()


async def test_a_password_is_sent_and_never_logged(caplog: pytest.LogCaptureFixture) -> None:
    async with serving([ALLOW]) as server:
        url = server.url.replace("http://", "http://user:s3cret@")
        assert await ask(url) == Verdict(True)
        assert server.requests[0].headers["Authorization"] == "Basic dXNlcjpzM2NyZXQ="
    verdict = await ask(url, fail_open=False)
    assert not verdict.allowed
    assert "s3cret" not in verdict.reason
    assert "unreachable" in caplog.text
    assert "s3cret" not in caplog.text


async def test_text_from_the_server_is_one_short_line() -> None:
    async with serving([response(b"", "500 " + "\x1b[31m" + "x" * 500)]) as server:
        verdict = await ask(server.url)
    assert verdict.reason.isprintable()
    assert len(verdict.reason) < 250


@pytest.mark.parametrize(
    "url", ["", "http://", "https:///x", "ftp://host/", "http://host:99999/", "http://[::1/"]
)
def test_an_invalid_url_is_a_config_error(url: str) -> None:
    with pytest.raises(ConfigError, match="admission URL"):
        AdmissionURL(url, AdmissionCounters())


def test_the_environments_proxy_is_not_used_for_this_machine(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("http_proxy", "http://192.0.2.1:8080")
    monkeypatch.setenv("no_proxy", "direct.example")
    assert _proxy_for("http://controller.example/") == "http://192.0.2.1:8080"
    assert _proxy_for("http://direct.example/") is None
    for host in ("localhost", "127.0.0.1", "[::1]"):
        assert _proxy_for(f"http://{host}:8080/") is None
    monkeypatch.setenv("https_proxy", "192.0.2.1:8080")
    assert _proxy_for("https://controller.example/") == "http://192.0.2.1:8080"


def test_an_unusable_proxy_is_a_config_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("https_proxy", "socks5://user:s3cret@192.0.2.1:1080")
    with pytest.raises(
        ConfigError, match=r"proxy for https:// .* controller.example in NO_PROXY"
    ) as e:
        AdmissionURL("https://controller.example/", AdmissionCounters())
    assert "s3cret" not in str(e.value)
    AdmissionURL("https://127.0.0.1/", AdmissionCounters())


async def test_a_proxy_gets_the_whole_url(monkeypatch: pytest.MonkeyPatch) -> None:
    async with serving([ALLOW]) as proxy:
        monkeypatch.setenv("http_proxy", proxy.url.partition("/admit")[0])
        assert await ask("http://controller.example/admit") == Verdict(True)
        assert proxy.requests[0].line == b"POST http://controller.example/admit HTTP/1.1"


@pytest.mark.parametrize(
    ("data", "allowed"),
    [
        (b'{"Allow":true}', True),
        (b'{"Allow":true,"allow":false}', False),
        (b'{"Allow":false,"aLLOW":true}', True),
        (b'{"Allow":true,"Allow":null}', True),
        (b'{"Inner":{"Allow":true}}', False),
        (b'{"Allow":true}{"Allow":false}', True),
        (b'{"Text":"\xff","Allow":true}', True),
    ],
)
def test_the_last_value_of_the_first_object_counts(data: bytes, allowed: bool) -> None:
    assert allows_untrusted(data) is allowed


@pytest.mark.parametrize("data", [b"", b"{", b'{"Allow":NaN}', b"\xef\xbb\xbf{}", b'{"a":' * 2000])
def test_without_a_complete_object_there_is_no_decision(data: bytes) -> None:
    with pytest.raises(Undecided):
        allows_untrusted(data)


@pytest.mark.parametrize("data", [b"1", b"[true]", b"null", b'"Allow"', b"true"])
def test_other_values_than_objects_allow_no_client(data: bytes) -> None:
    assert allows_untrusted(data) is False


@given(st.binary())
def test_any_bytes_are_a_decision_or_an_error(data: bytes) -> None:
    try:
        allowed = allows_untrusted(data)
    except (Undecided, ValueError):
        return
    assert not allowed or b"true" in data


async def test_other_look_ups_that_hang_do_not_delay_the_look_up_of_the_server() -> None:
    """Its name is looked up in its own threads, because those of the loop may all be in use."""
    loop = asyncio.get_running_loop()
    release = threading.Event()
    taken = [loop.run_in_executor(None, release.wait) for _ in range(100)]
    try:
        async with serving([DENY]) as server:
            verdict = await ask(server.url.replace("127.0.0.1", "localhost"))
        assert verdict.definitive
    finally:
        release.set()
        await asyncio.gather(*taken)
