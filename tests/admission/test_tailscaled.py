from __future__ import annotations

import asyncio
import logging
from pathlib import Path

import pytest

from pyderp import NodePublic
from pyderp.admission.tailscaled import Tailscaled, default_socket
from pyderp.admission.verdict import AdmissionCounters, Verdict

from .fakes import CLOSE, STALL, Reply, identity, key, response, serving

KNOWN = response(b'{"Node":{"ID":1},"UserProfile":{}}')
TOO_OLD = response(b"invalid 'addr' parameter\n", "400 Bad Request")


async def ask(path: Path, *, budget: float = 20) -> Verdict:
    daemon = Tailscaled(path, AdmissionCounters(), timeout=budget)
    try:
        return await daemon.ask(identity())
    finally:
        await daemon.aclose()


async def own_key(path: Path, *, budget: float = 20) -> NodePublic | str:
    daemon = Tailscaled(path, AdmissionCounters(), timeout=budget)
    try:
        return await daemon.own_key()
    finally:
        await daemon.aclose()


async def test_the_request_is_that_of_tailscales_own_client(tmp_path: Path) -> None:
    path = tmp_path / "d.sock"
    async with serving([KNOWN], path=path) as server:
        assert await ask(path) == Verdict(True)
    (request,) = server.requests
    digits = "0" * 63 + "1"
    assert request.line == (f"GET /localapi/v0/whois?addr=nodekey%3A{digits} HTTP/1.1".encode())
    assert request.headers["Host"] == "local-tailscaled.sock"
    assert int(request.headers["Tailscale-Cap"]) > 100


ANSWERS = {
    "known": (KNOWN, ""),
    "large": (response(b'{"Padding":"' + b"x" * 500_000 + b'"}'), ""),
    "known with odd words": (response(b'{"Name":"invalid \'addr\' parameter"}'), ""),
    "unknown": (
        response(b"no match for IP:port\n", "404 Not Found"),
        f"peer {key(1)} not authorized (not found in local tailscaled)",
    ),
    "too old": (TOO_OLD, "tailscaled version is too old (out of sync with derper binary)"),
    "denied": (response(b"whois access denied\n", "403 Forbidden"), "HTTP 403: access denied"),
    "broken": (response(b"oops", "500 Oops"), "HTTP 500: oops"),
    "no content": (response(b"", "204 No Content"), "HTTP 204"),
    "moved": (response(b"", "302 Found", "Location: /\r\n"), "HTTP 302"),
    "no JSON": (response(b"hello"), "the answer is not JSON"),
    "no object": (response(b"[]"), "not a JSON object"),
    "deep": (response(b"[" * 100_000), "the answer is not JSON"),
    "half": (b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n{}", "failed to query"),
    "no HTTP": (b"hello\r\n\r\n", "failed to query"),
}
"""A response, and a part of the reason if the client is refused."""


async def test_each_answer_of_the_daemon(tmp_path: Path) -> None:
    for name, (answer, reason) in ANSWERS.items():
        path = tmp_path / "d.sock"
        async with serving([answer, CLOSE], path=path):
            verdict = await ask(path)
        path.unlink(missing_ok=True)  # from 3.13 on the server does it
        assert verdict.allowed is not bool(reason), name
        assert reason in verdict.reason, name
        # Only "known" and "not found" are decisions that may disconnect other connections.
        assert verdict.definitive is (not reason or name == "unknown"), name
        if not verdict.definitive and name != "too old":
            start = f"failed to query local tailscaled status for {key(1)}: "
            assert verdict.reason.startswith(start), name


@pytest.mark.parametrize(
    "reply", [[STALL], [b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n{", STALL]]
)
async def test_a_daemon_that_hangs_allows_no_client(tmp_path: Path, reply: Reply) -> None:
    path = tmp_path / "d.sock"
    async with serving(reply, path=path):
        verdict = await ask(path, budget=0.1)
    assert (verdict.allowed, verdict.definitive) == (False, False)
    assert "no answer within 0.1 s" in verdict.reason


async def test_a_missing_socket_allows_no_client(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async def main() -> None:
        path = tmp_path / "missing.sock"
        verdict = await ask(path)
        assert (verdict.allowed, verdict.definitive) == (False, False)
        assert f"cannot connect to {path}: No such file or directory" in verdict.reason
        path.write_text("")
        verdict = await ask(path)
        assert not verdict.allowed
        assert f"cannot connect to {path}" in verdict.reason

    with caplog.at_level(logging.WARNING, "pyderp.admission"):
        await main()
    assert "local tailscaled: failed to query" in caplog.text


async def test_a_daemon_that_returns_is_asked_again(tmp_path: Path) -> None:
    path = tmp_path / "d.sock"
    counters = AdmissionCounters()
    daemon = Tailscaled(path, counters)
    for _ in range(2):
        async with serving([KNOWN], path=path) as server:
            for _ in range(3):
                assert (await daemon.ask(identity())).allowed
            assert server.connections == 1
        path.unlink(missing_ok=True)
        assert not (await daemon.ask(identity())).allowed
    assert counters == AdmissionCounters(queries=8, errors=2)
    await daemon.aclose()


@pytest.mark.parametrize("answer", [KNOWN, response(b"", "404 Not Found")])
async def test_every_decision_ends_the_trouble(
    tmp_path: Path, answer: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "pyderp.admission")

    path = tmp_path / "d.sock"
    daemon = Tailscaled(path, AdmissionCounters())
    await daemon.ask(identity())
    async with serving([answer], path=path):
        await daemon.ask(identity())
        await daemon.ask(identity())
    await daemon.aclose()
    (_, again) = (record.getMessage() for record in caplog.records)
    assert again == "local tailscaled: answers again"


async def test_a_check_can_be_cancelled(tmp_path: Path) -> None:
    path = tmp_path / "d.sock"
    async with serving([STALL], path=path) as server:
        daemon = Tailscaled(path, AdmissionCounters())
        asking = asyncio.get_running_loop().create_task(daemon.ask(identity()))
        await server.wait_for_requests(1)
        asking.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asking
        await daemon.aclose()


async def test_the_daemons_own_key_is_read(tmp_path: Path) -> None:
    path = tmp_path / "d.sock"
    body = b'{"Self":{"PublicKey":"%s"}}' % str(key(9)).encode()
    async with serving([response(body)], path=path) as server:
        assert await own_key(path) == key(9)
    assert server.requests[0].line == b"GET /localapi/v0/status?peers=false HTTP/1.1"


async def test_without_an_own_key_there_is_an_error(tmp_path: Path) -> None:
    cases = {
        b"{}": "localClient.Status: no node key in it",
        b'{"Self":null}': "localClient.Status: no node key in it",
        b'{"Self":{"PublicKey":7}}': "localClient.Status: no node key in it",
        b'{"Self":{"PublicKey":"nodekey:%s"}}' % (b"0" * 64): (
            "localClient.Status: tailscaled is not logged in"
        ),
        b"nope": "localClient.Status: the answer is not JSON",
    }

    path = tmp_path / "d.sock"
    for body, text in cases.items():
        async with serving([response(body)], path=path):
            assert await own_key(path) == text
        path.unlink(missing_ok=True)
    missing = await own_key(path)
    assert isinstance(missing, str)
    assert missing.startswith("localClient.Status: cannot connect to ")


def test_the_first_path_with_a_socket_is_the_default(tmp_path: Path) -> None:
    places = [tmp_path / "a", tmp_path / "b"]
    assert default_socket("linux", places) == places[0]
    places[1].touch()
    assert default_socket("linux", places) == places[1]
    assert default_socket("darwin", places) == Path("/var/run/tailscaled.socket")
