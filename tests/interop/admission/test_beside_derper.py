"""The same servers decide about the same clients for Go's ``derper`` and for pyderp, alike."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path

import pytest

from pyderp import NodePrivate
from pyderp.admission import AdmissionCounters, Cause, ClientIdentity
from pyderp.admission.tailscaled import Tailscaled
from pyderp.admission.url import AdmissionURL
from tests.admission import test_tailscaled, test_url
from tests.admission.fakes import CLOSE, STALL, FakeServer, Reply, Request, response, serving
from tests.interop.relays import DERPERS, Kind, Relay, running
from tests.server.dial import connect

pytestmark = pytest.mark.timeout(60)

ADDRESS = "127.0.0.1"
OPEN_FOR_DERPER = (
    "close",
    "close in the head",
    "no HTTP",
    "garbage status line",
    "bad length",
    "redirect loop",
    "redirect to FTP",
    "redirect to no URL",
    "redirect to nowhere",
)
"""Connections without a valid answer, after which pyderp admits no client."""


async def completes_login(derper: Relay, private: NodePrivate) -> bool:
    """Connect to the relay; return whether it completes the login."""
    try:
        client = await connect((ADDRESS, derper.port), private=private)
    except (EOFError, OSError):
        return False
    await client.aclose()
    return True


async def start(kind: Kind, directory: Path, *options: str) -> tuple[Relay, asyncio.Event]:
    """Run a ``derper`` in a thread until the event is set."""
    loop = asyncio.get_running_loop()
    started: asyncio.Future[Relay] = loop.create_future()
    stop = asyncio.Event()

    def work() -> None:
        with running(kind, "plain", directory, options=options) as derper:
            loop.call_soon_threadsafe(started.set_result, derper)
            asyncio.run_coroutine_threadsafe(stop.wait(), loop).result()

    task = asyncio.ensure_future(asyncio.to_thread(work))
    await asyncio.wait((task, started), return_when=asyncio.FIRST_COMPLETED)
    if task.done():
        task.result()
    return await started, stop


def shape(request: Request) -> tuple[bytes, bytes, dict[str, str]]:
    """All of a request except the name of the program."""
    headers = {name: text for name, text in request.headers.items() if name != "User-Agent"}
    return request.line, request.body, headers


def always(reply: Reply) -> Callable[[Request], Reply]:
    return lambda _: reply


async def compare_urls(server: FakeServer, derper: Relay, controller: AdmissionURL) -> None:
    answers: dict[str, Reply] = {name: [reply] for name, (reply, _) in test_url.ANSWERS.items()}
    answers |= {name: test_url.NO_ANSWERS[name][0] for name in OPEN_FOR_DERPER}
    answers["last of two"] = [response(b'{"Allow":false,"ALLOW":true}')]
    answers["null after true"] = [response(b'{"Allow":true,"Allow":null}')]
    answers["bad UTF-8"] = [response(b'{"x":"\xff","Allow":true}')]
    answers["byte order mark"] = [response(b'\xef\xbb\xbf{"Allow":true}')]
    answers["more to come"] = [
        b'HTTP/1.1 200 OK\r\nContent-Length: 99\r\n\r\n{"Allow":true}',
        STALL,
    ]
    for name, reply in answers.items():
        server.reply = always(reply)
        server.requests.clear()
        private = NodePrivate.generate()
        theirs = await completes_login(derper, private)
        asked = len(server.requests)
        verdict = await controller.ask(ClientIdentity(private.public, ADDRESS))
        assert theirs is (verdict.allowed or name in OPEN_FOR_DERPER), name
        assert shape(server.requests[0]) == shape(server.requests[asked]), name


@pytest.mark.parametrize("kind", DERPERS)
def test_an_admission_url_is_asked_alike(kind: Kind, tmp_path: Path) -> None:
    """Requests are equal except for User-Agent, and so is the effect of every kind of answer."""

    async def main() -> None:
        async with serving([]) as server:
            derper, stop = await start(kind, tmp_path, f"-verify-client-url={server.url}")
            controller = AdmissionURL(server.url, AdmissionCounters())
            try:
                await compare_urls(server, derper, controller)
                # Five seconds of silence, for both at once.
                server.reply = always([STALL])
                private = NodePrivate.generate()
                theirs, ours = await asyncio.gather(
                    completes_login(derper, private),
                    controller.ask(ClientIdentity(private.public, ADDRESS)),
                )
                # derper takes the controller for unreachable, and admits the client.
                assert theirs
                assert (ours.allowed, ours.cause) == (False, Cause.TIMED_OUT)
            finally:
                await controller.aclose()
                stop.set()

    asyncio.run(main())


@pytest.mark.parametrize("kind", DERPERS)
def test_an_admission_url_that_fails_closed(kind: Kind, tmp_path: Path) -> None:
    """Without a response no client is admitted."""

    async def main() -> None:
        async with serving([CLOSE]) as server:
            option = "-verify-client-url-fail-open=false"
            derper, stop = await start(kind, tmp_path, f"-verify-client-url={server.url}", option)
            controller = AdmissionURL(server.url, AdmissionCounters(), fail_open=False)
            try:
                private = NodePrivate.generate()
                assert not await completes_login(derper, private)
                verdict = await controller.ask(ClientIdentity(private.public, ADDRESS))
                assert not verdict.allowed
            finally:
                await controller.aclose()
                stop.set()

    asyncio.run(main())


@pytest.mark.parametrize("kind", DERPERS)
def test_a_local_tailscaled_is_asked_alike(kind: Kind, tmp_path: Path) -> None:
    """Requests are equal, and so is the effect of every kind of answer."""
    path = tmp_path / "d.sock"

    async def main() -> None:
        async with serving([], path=path) as server:
            derper, stop = await start(kind, tmp_path, "-verify-clients", f"-socket={path}")
            daemon = Tailscaled(path, AdmissionCounters())
            try:
                for name, (reply, _) in test_tailscaled.ANSWERS.items():
                    server.reply = always([reply, CLOSE])
                    server.requests.clear()
                    private = NodePrivate.generate()
                    theirs = await completes_login(derper, private)
                    verdict = await daemon.ask(ClientIdentity(private.public, ADDRESS))
                    assert verdict.allowed is theirs, name
                    asked, again = (server.requests[n] for n in (0, -1))
                    assert asked.line == again.line or name == "moved"
                    assert asked.headers["Host"] == again.headers["Host"]
                    assert "Tailscale-Cap" in asked.headers
            finally:
                await daemon.aclose()
                stop.set()

    asyncio.run(main())
