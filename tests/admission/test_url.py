from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import socket

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyderp.admission.url import AdmissionURL, Undecided, _proxy_for, allows_untrusted
from pyderp.admission.verdict import AdmissionCounters, Verdict
from pyderp.errors import ConfigError
from tests.conftest import Run

from .fakes import CLOSE, STALL, WAIT, Reply, Request, applicant, key, response, serving

BUDGET = 0.2
"""Seconds instead of five."""
LONG = 20.0

ALLOW = response(b'{"Allow":true}')
DENY = response(b'{"Allow":false}')


async def ask(url: str, *, fail_open: bool = True, budget: float = LONG) -> Verdict:
    """Ask once about client 1."""
    controller = AdmissionURL(url, AdmissionCounters(), fail_open=fail_open, timeout=budget)
    try:
        return await controller.ask(applicant())
    finally:
        await controller.aclose()


def free_url() -> str:
    """Where nobody listens."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{probe.getsockname()[1]}/"


def test_the_request_has_exactly_this_body_and_no_content_type(run: Run) -> None:
    async def main() -> None:
        async with serving([ALLOW]) as server:
            assert await ask(server.url) == Verdict(True)
        (request,) = server.requests
        assert request.line == b"POST /admit?x=1 HTTP/1.1"
        assert request.body == (
            b'{"NodePublic":"nodekey:' + b"0" * 63 + b'1","Source":"192.0.2.7"}'
        )
        assert request.headers.keys() == {"Host", "User-Agent", "Accept-Encoding", "Content-Length"}

    run(main())


def test_an_unknown_address_is_an_empty_source(run: Run) -> None:
    async def main() -> None:
        async with serving([ALLOW]) as server:
            controller = AdmissionURL(server.url, AdmissionCounters())
            await controller.ask(applicant(address=""))
            await controller.ask(applicant(address="2001:db8::1"))
            await controller.aclose()
        assert [json.loads(r.body)["Source"] for r in server.requests] == ["", "2001:db8::1"]

    run(main())


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
"""Response, and what is in the reason for keeping the client out, if it does."""


@pytest.mark.parametrize("fail_open", [True, False])
def test_a_response_decides_whether_or_not_failing_opens(run: Run, fail_open: bool) -> None:
    async def main() -> None:
        for name, (answer, reason) in ANSWERS.items():
            async with serving([answer]) as server:
                verdict = await ask(server.url, fail_open=fail_open)
            assert verdict.allowed is not bool(reason), name
            assert reason in verdict.reason, name
            assert verdict.allowed or verdict.reason.startswith("admission controller: "), name
            # Only a whole answer with status 200 is a decision that others may be closed for.
            assert verdict.sure is (reason in ("", "not allowed")), name

    run(main())


def test_a_refusal_names_key_and_address(run: Run) -> None:
    async def main() -> None:
        async with serving([DENY]) as server:
            verdict = await ask(server.url)
        assert verdict.reason == f"admission controller: {key(1)}/192.0.2.7 not allowed"

    run(main())


@pytest.mark.parametrize(
    "reply",
    [
        pytest.param([STALL], id="silence"),
        pytest.param([b"HTTP/1.1 200 OK\r\nContent-", STALL], id="half-a-head"),
        pytest.param([CLOSE], id="close"),
        pytest.param([b"SSH-2.0-x\r\n\r\n", CLOSE], id="no-http"),
    ],
)
@pytest.mark.parametrize("fail_open", [True, False])
def test_without_a_response_failing_opens_if_it_may(
    run: Run, reply: Reply, fail_open: bool, caplog: pytest.LogCaptureFixture
) -> None:
    async def main() -> None:
        async with serving(reply) as server:
            verdict = await ask(server.url, fail_open=fail_open, budget=BUDGET)
        assert verdict.allowed is fail_open
        assert not verdict.sure

    with caplog.at_level(logging.WARNING, "pyderp.admission"):
        run(main())
    assert "unreachable" in caplog.text
    assert ("no answer within 0.2 s" in caplog.text) is (STALL in reply)
    assert ("is let in" in caplog.text) is fail_open


def test_a_server_that_is_not_there(run: Run) -> None:
    async def main() -> None:
        for fail_open in (True, False):
            verdict = await ask(free_url(), fail_open=fail_open)
            assert (verdict.allowed, verdict.sure) == (fail_open, False)

    run(main())


def test_a_body_that_stalls_keeps_out_even_if_failing_opens(run: Run) -> None:
    async def main() -> None:
        head = b'HTTP/1.1 200 OK\r\nContent-Length: 14\r\n\r\n{"Allow":'
        async with serving([head, STALL]) as server:
            verdict = await ask(server.url, budget=BUDGET)
        assert (verdict.allowed, verdict.sure) == (False, False)
        assert "no answer within 0.2 s" in verdict.reason

    run(main())


def test_the_rest_of_a_body_is_not_waited_for(run: Run) -> None:
    async def main() -> None:
        head = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
        parts: Reply = [head, b"9\r\n", b'{"Allow":', b"\r\n5\r\n", b"true}", STALL]
        async with serving(parts) as server:
            assert await ask(server.url) == Verdict(True)

    run(main())


def test_redirects_are_followed_as_a_browser_does(run: Run) -> None:
    async def main() -> None:
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

    run(main())


def test_a_redirect_without_end_is_no_response(run: Run) -> None:
    async def main() -> None:
        async with serving([response(b"", "307 Go", "Location: /\r\n")]) as server:
            verdict = await ask(server.url)
            assert (verdict.allowed, verdict.sure) == (True, False)
            assert len(server.requests) <= 11

    run(main())


def test_a_connection_is_used_again(run: Run) -> None:
    async def main() -> None:
        async with serving([ALLOW]) as server:
            controller = AdmissionURL(server.url, AdmissionCounters())
            for _ in range(3):
                assert await controller.ask(applicant()) == Verdict(True)
            await controller.aclose()
        assert (server.connections, len(server.requests)) == (1, 3)

    run(main())


def test_a_kept_connection_that_the_server_drops_lets_nobody_in(run: Run) -> None:
    async def main() -> None:
        dropped = 0

        def reply(_: Request) -> Reply:
            # Each connection serves one question and drops the next, which was read already.
            nonlocal dropped
            if len(server.requests) - dropped > server.connections:
                dropped += 1
                return [CLOSE]
            return [DENY]

        async with serving(reply) as server:
            controller = AdmissionURL(server.url, AdmissionCounters())
            for _ in range(3):
                assert (await controller.ask(applicant())).sure
            await controller.aclose()
        assert dropped == 2

    run(main())


def test_no_more_than_64_questions_at_once(run: Run) -> None:
    async def main() -> None:
        async with serving([WAIT, ALLOW]) as server, asyncio.TaskGroup() as group:
            controller = AdmissionURL(server.url, AdmissionCounters())
            asking = [group.create_task(controller.ask(applicant(n))) for n in range(100)]
            await server.wait_for_requests(64)
            server.released.set()
            await asyncio.wait(asking)
            assert all(task.result() == Verdict(True) for task in asking)
            assert server.connections == 64
            await controller.aclose()

    run(main())


@pytest.mark.parametrize("reply", [[DENY], [CLOSE]])
def test_who_never_has_a_turn_is_kept_out_even_if_failing_opens(run: Run, reply: Reply) -> None:
    async def main() -> None:
        counters = AdmissionCounters()
        async with serving(reply) as server:
            controller = AdmissionURL(server.url, counters, timeout=BUDGET)
            async with contextlib.AsyncExitStack() as taken:
                for _ in range(64):
                    await taken.enter_async_context(controller._slots)
                verdicts = await asyncio.gather(*(controller.ask(applicant(n)) for n in range(3)))
            reason = "admission controller: too many questions at once: no turn within 0.2 s"
            assert set(verdicts) == {Verdict(False, reason, sure=False)}
            assert server.requests == []
            assert counters == AdmissionCounters(queries=3, errors=3)
            # Who waited and gave up takes nobody's turn.
            assert not controller._slots.locked()
            await controller.aclose()

    run(main())


def test_a_flood_of_refused_keys_opens_nothing(run: Run) -> None:
    async def main() -> None:
        counters = AdmissionCounters()
        async with serving([WAIT, DENY]) as server, asyncio.TaskGroup() as group:
            controller = AdmissionURL(server.url, counters, timeout=LONG)
            asking = [group.create_task(controller.ask(applicant(n))) for n in range(300)]
            await server.wait_for_requests(64)
            for task in asking[64:164]:
                task.cancel()
            server.released.set()
            await asyncio.wait(asking)
            verdicts = [task.result() for task in asking if not task.cancelled()]
            assert [(each.allowed, each.sure) for each in verdicts] == [(False, True)] * 200
            assert len(server.requests) == 200
            assert counters.errors == 0
            await controller.aclose()

    run(main())


def test_a_cancelled_question_closes_its_connection(run: Run) -> None:
    async def main() -> None:
        async with serving([STALL]) as server:
            controller = AdmissionURL(server.url, AdmissionCounters())
            asking = asyncio.get_running_loop().create_task(controller.ask(applicant()))
            await server.wait_for_requests(1)
            asking.cancel()
            with pytest.raises(asyncio.CancelledError):
                await asking
            await controller.aclose()
            server.released.set()

    run(main())


def test_queries_and_failures_are_counted(run: Run) -> None:
    async def main() -> None:
        counters = AdmissionCounters()
        async with serving([CLOSE]) as server:
            for fail_open in (True, False):
                controller = AdmissionURL(server.url, counters, fail_open=fail_open)
                await controller.ask(applicant())
                await controller.aclose()
        assert counters == AdmissionCounters(queries=2, errors=2, failed_open=1)

    run(main())


def test_a_password_is_sent_and_never_shown(run: Run, caplog: pytest.LogCaptureFixture) -> None:
    async def main() -> None:
        async with serving([ALLOW]) as server:
            url = server.url.replace("http://", "http://user:s3cret@")
            assert await ask(url) == Verdict(True)
            assert server.requests[0].headers["Authorization"] == "Basic dXNlcjpzM2NyZXQ="
        verdict = await ask(url, fail_open=False)
        assert not verdict.allowed
        assert "s3cret" not in verdict.reason

    run(main())
    assert "unreachable" in caplog.text
    assert "s3cret" not in caplog.text


def test_what_the_server_says_stays_in_one_short_line(run: Run) -> None:
    async def main() -> None:
        async with serving([response(b"", "500 " + "\x1b[31m" + "x" * 500)]) as server:
            verdict = await ask(server.url)
        assert verdict.reason.isprintable()
        assert len(verdict.reason) < 250

    run(main())


@pytest.mark.parametrize(
    "url", ["", "http://", "https:///x", "ftp://host/", "http://host:99999/", "http://[::1/"]
)
def test_a_url_that_cannot_be_asked(url: str) -> None:
    with pytest.raises(ConfigError, match="admission URL"):
        AdmissionURL(url, AdmissionCounters())


def test_the_environments_proxy_is_not_for_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("http_proxy", "http://192.0.2.1:8080")
    monkeypatch.setenv("no_proxy", "direct.example")
    assert _proxy_for("http://controller.example/") == "http://192.0.2.1:8080"
    assert _proxy_for("http://direct.example/") is None
    for host in ("localhost", "127.0.0.1", "[::1]"):
        assert _proxy_for(f"http://{host}:8080/") is None
    monkeypatch.setenv("https_proxy", "192.0.2.1:8080")
    assert _proxy_for("https://controller.example/") == "http://192.0.2.1:8080"


def test_a_proxy_that_cannot_be_used_is_an_error_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("https_proxy", "socks5://user:s3cret@192.0.2.1:1080")
    with pytest.raises(
        ConfigError, match=r"proxy for https:// .* controller.example in NO_PROXY"
    ) as e:
        AdmissionURL("https://controller.example/", AdmissionCounters())
    assert "s3cret" not in str(e.value)
    AdmissionURL("https://127.0.0.1/", AdmissionCounters())


def test_a_proxy_is_asked_for_the_whole_url(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        async with serving([ALLOW]) as proxy:
            monkeypatch.setenv("http_proxy", proxy.url.partition("/admit")[0])
            assert await ask("http://controller.example/admit") == Verdict(True)
            assert proxy.requests[0].line == b"POST http://controller.example/admit HTTP/1.1"

    run(main())


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
def test_no_whole_object(data: bytes) -> None:
    with pytest.raises(Undecided):
        allows_untrusted(data)


@pytest.mark.parametrize("data", [b"1", b"[true]", b"null", b'"Allow"', b"true"])
def test_other_values_than_objects_allow_nobody(data: bytes) -> None:
    assert allows_untrusted(data) is False


@given(st.binary())
def test_any_bytes_are_an_answer_or_none(data: bytes) -> None:
    try:
        allowed = allows_untrusted(data)
    except (Undecided, ValueError):
        return
    assert not allowed or b"true" in data
