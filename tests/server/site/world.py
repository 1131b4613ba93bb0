"""Relay views for tests, and their parts in their simplest form."""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Coroutine, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from pyderp.admission.verdict import AdmissionCounters
from pyderp.certs.credential import CertificateInfo
from pyderp.config import DebugAccess, ManualTLS, RelayConfig
from pyderp.keys import MeshKey, NodePrivate, NodePublic
from pyderp.relay.bootstrap import BootstrapCounters
from pyderp.relay.connection import Connection, EndReason, How
from pyderp.relay.limits import RateConfig, RateLimit
from pyderp.relay.router import Router
from pyderp.server.services.stun import StunCounters
from pyderp.server.site.pages import DebugSite
from pyderp.server.site.view import Access, RelayView
from pyderp.wire.http import Answer, Request, Response, StreamedResponse

LOOPBACK = "127.0.0.1"
OUTSIDER = "8.8.8.8"
NOON = datetime(2030, 1, 1, 12, 0, tzinfo=UTC)


def ask(
    target: str,
    method: str = "GET",
    *,
    remote: str = LOOPBACK,
    forwarded: bool = False,
    headers: Sequence[tuple[bytes, bytes]] = (),
) -> Request:
    request = Request(method, target, "1.1", list(headers))
    request.remote = remote
    request.forwarded = forwarded
    return request


class NullSink:
    """A sink that discards frames."""

    def send(self, chunks: list[bytes]) -> bool:
        return True

    def unsent_size(self) -> int:
        return 0

    def end(self, reason: EndReason, how: How, detail: str = "") -> None:
        pass


def client(number: int = 1, *, key: NodePublic | None = None, **more: Any) -> Connection:
    """Return a logged-in connection, to be added to a router."""
    key = key or NodePrivate.generate().public
    return Connection(key.raw, NullSink(), number=number, **more)


@dataclass(eq=False)
class FakeServed:
    """An accepted connection."""

    connection: Connection | None = None
    transport: asyncio.Transport | None = None
    is_websocket: bool = False
    tls_version: str = ""


class FakeAdmission:
    def __init__(self, trouble: str | None = None, labels: dict[NodePublic, str] | None = None):
        self.counters = AdmissionCounters(allowed=5, denied=4, cache_hits=3, failed_open=1)
        self.trouble = trouble
        self.failing = ""
        self.labels = labels or {}

    sources = ("allow file", "local tailscaled")

    def troubles(self) -> list[str]:
        return [self.failing] if self.failing else []

    def label(self, key: NodePublic) -> str:
        return self.labels.get(key, "")

    async def check_self(self) -> str | None:
        await asyncio.sleep(0)
        return self.trouble


@dataclass
class FakeLink:
    host: str
    connected: bool = True
    peers: int = 0
    since: datetime = NOON
    error: str = ""
    is_self: bool = False


class FakeMesh:
    def __init__(self, *links: FakeLink) -> None:
        self.links = links

    def status(self) -> Sequence[FakeLink]:
        return self.links


@dataclass
class FakeLimits:
    config: RateConfig = field(default_factory=lambda: RateConfig(RateLimit(1000, 70_000)))
    waited: int = 7
    waiting: Collection[object] = (1, 2)
    trouble: str = ""

    def label(self, key: NodePublic) -> str:
        return self.config.labels.get(key.raw, "")


@dataclass
class FakeAccepts:
    accepted: int = 0
    rejected: int = 0
    shed: int = 0


def router() -> Router:
    return Router(NodePrivate.generate().public.raw, lambda: 1000.0)


def bare(*served: FakeServed, **more: Any) -> RelayView:
    """Return the view of a relay with nothing but connections."""
    view: dict[str, Any] = {
        "router": router(),
        "access": Access(DebugAccess()),
        "version": "1.2.3",
        "protocols": served,
        "config": RelayConfig(),
        "accepts": FakeAccepts(),
        "bootstrap": BootstrapCounters(),
        "tls_requests": {},
        "wall": NOON.timestamp,
    }
    return RelayView(**{**view, **more})


def full(*served: FakeServed, **more: Any) -> RelayView:
    """Return the view of a relay with everything enabled."""
    parts: dict[str, Any] = {
        "config": RelayConfig(
            mesh_key=MeshKey(bytes(range(32))),
            tls=ManualTLS(certdir=Path("unused"), hostname="derp.example.com"),
        ),
        "limits": FakeLimits(),
        "stun": StunCounters(success=3, ipv4=2, ipv6=1, no_local_addr=4),
        "bootstrap": BootstrapCounters(requests=9, queried_domains=2),
        "admission": FakeAdmission(),
        "mesh": FakeMesh(
            FakeLink("relay-b.example.com", peers=12),
            FakeLink("relay-c.example.com", connected=False, error="no route"),
            FakeLink("relay-a.example.com", connected=False, is_self=True),
        ),
        "certificates": lambda: [
            CertificateInfo(
                ("derp.example.com", "www.example.com"), NOON, NOON + timedelta(days=90)
            ),
        ],
        "tls_requests": {"1.3": 8, "1.2": 1},
        "accepts": FakeAccepts(30, 20, 10),
    }
    return bare(*served, **{**parts, **more})


def site(view: RelayView) -> DebugSite:
    return DebugSite(view)


def settle(answer: Answer) -> Response:
    """Return the complete response, whatever the kind of answer."""
    if isinstance(answer, Response):
        return answer
    if isinstance(answer, StreamedResponse):
        return Response(answer.status, answer.headers, asyncio.run(_joined(answer)))
    return asyncio.run(_awaited(answer))


async def _awaited(answer: Coroutine[Any, Any, Response]) -> Response:
    return await answer


async def _joined(answer: StreamedResponse) -> bytes:
    return b"".join([chunk async for chunk in answer.chunks])


def get(view: RelayView, target: str, **more: Any) -> Response:
    """Return the answer of a relay's `/debug/`."""
    return settle(site(view).answer(ask(target, **more)))
