"""Logins that overload the admission controller admit no client."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import itertools
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

import pyderp
from pyderp import RelayConfig
from pyderp.admission.gate import Gate
from pyderp.admission.verdict import AdmissionCounters
from pyderp.config import AdmissionConfig
from pyderp.keys import NodePrivate, NodePublic
from tests.admission.fakes import Reply, Request, response, serving
from tests.server.dial import Via, connect

ALLOW = response(b'{"Allow":true}')
DENY = response(b'{"Allow":false}')
BUDGET = 0.4
"""Seconds instead of five."""
ONE_BY_ONE = 0.02
"""Seconds that the controller needs for a question; it answers one after another."""

pytestmark = pytest.mark.timeout(60)


@pytest.fixture(autouse=True)
def short_budget(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pyderp.admission.gate.Gate", functools.partial(Gate, timeout=BUDGET))


class Controller:
    """Denies all keys but members, slowly."""

    def __init__(self) -> None:
        self.members: set[NodePublic] = set()
        self.answered = 0
        self._busy = asyncio.Lock()

    def admits(self, request: Request) -> bool:
        return any(str(member).encode() in request.body for member in self.members)

    @contextlib.asynccontextmanager
    async def at_url(self) -> AsyncIterator[str]:
        async with serving([]) as server:
            server.reply = self._reply
            server.before_reply = self._work
            yield server.url

    @contextlib.asynccontextmanager
    async def at_socket(self, path: Path) -> AsyncIterator[None]:
        async with serving([], path=path) as server:
            server.reply = self._whois
            server.before_reply = self._work
            yield

    async def decide(self, key: NodePublic, address: str) -> bool:
        await self._work()
        return key in self.members

    async def _work(self) -> None:
        async with self._busy:
            await asyncio.sleep(ONE_BY_ONE)
        self.answered += 1

    def _reply(self, request: Request) -> Reply:
        return [ALLOW if self.admits(request) else DENY]

    def _whois(self, request: Request) -> Reply:
        known = any(member.untyped_hex().encode() in request.line for member in self.members)
        return [response(b"{}") if known else response(b"", "404 Not Found")]


async def is_admitted(relay: pyderp.Relay, source: str) -> bool:
    """Log in with a fresh key."""
    try:
        client = await connect(relay.address, via=Via(source=source))
    except (EOFError, OSError):
        return False
    await client.aclose()
    return True


def counters(relay: pyderp.Relay) -> AdmissionCounters:
    assert relay._parts is not None
    gate = relay._parts.admission
    assert gate is not None
    return gate.counters


@contextlib.asynccontextmanager
async def guarded(controller: Controller, kind: str, path: Path) -> AsyncIterator[pyderp.Relay]:
    """A relay that asks the controller in one of three ways, and rechecks twice a second."""
    async with contextlib.AsyncExitStack() as stack:
        if kind == "url":
            url = await stack.enter_async_context(controller.at_url())
            config = AdmissionConfig(url=url, recheck=0.5)
        elif kind == "tailscaled":
            await stack.enter_async_context(controller.at_socket(path))
            config = AdmissionConfig(tailscaled=True, tailscaled_socket=path, recheck=0.5)
        else:
            config = AdmissionConfig(decide=controller.decide, recheck=0.5)
        yield await stack.enter_async_context(pyderp.Relay(RelayConfig(admission=config)))


KINDS = ["url", "tailscaled", "function"]
SOURCES = {
    "one-address": ["127.0.0.1"],
    "many-addresses": [f"127.0.0.{n}" for n in range(2, 42)],
}


@pytest.mark.parametrize("sources", SOURCES)
async def test_parallel_logins_admit_no_client(sources: str, tmp_path: Path) -> None:
    controller = Controller()
    async with guarded(controller, "url", tmp_path / "d.sock") as relay:
        took_turns = itertools.cycle(SOURCES[sources])
        flood = [is_admitted(relay, next(took_turns)) for _ in range(70)]
        assert sum(await asyncio.gather(*flood)) == 0
        assert counters(relay).allowed == counters(relay).failed_open == 0
        # The controller was overloaded.
        assert controller.answered < 70


@pytest.mark.parametrize("sources", SOURCES)
@pytest.mark.parametrize("kind", KINDS)
async def test_a_lasting_flood_does_not_keep_rechecks_from_closing(
    kind: str, sources: str, tmp_path: Path
) -> None:
    """A member would be admitted again: other clients get their turn."""
    controller = Controller()
    gone, faithful = NodePrivate.generate(), NodePrivate.generate()
    controller.members |= {gone.public, faithful.public}
    stop = asyncio.Event()

    async def loop(source: str) -> int:
        entered = 0
        while not stop.is_set():
            entered += await is_admitted(relay, source)
        return entered

    async with guarded(controller, kind, tmp_path / "d.sock") as relay:
        via = Via(source="127.0.0.200")
        removed = await connect(relay.address, private=gone, via=via)
        stays = await connect(relay.address, private=faithful, via=via)
        took_turns = itertools.cycle(SOURCES[sources])
        flood = [asyncio.ensure_future(loop(next(took_turns))) for _ in range(80)]
        while counters(relay).crowded < 80:  # noqa: ASYNC110 # there is no event
            await asyncio.sleep(0.01)
        controller.members.discard(gone.public)
        async with asyncio.timeout(50):
            while await removed.reader.read(1 << 16):
                pass
        stop.set()
        assert sum(await asyncio.gather(*flood)) == 0
        await stays.ping()
        assert counters(relay).revoked == 1
        assert counters(relay).failed_open == 0
        await removed.aclose()
        await stays.aclose()
