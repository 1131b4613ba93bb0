"""Other services of a relay: each starts, works or fails, and is stopped."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any, Final, TypeAlias

import pytest

from pyderp import AdmissionConfig, BootstrapDNSConfig, ClientConfig, NetworkSettings, NodePrivate
from pyderp.admission.gate import Gate
from pyderp.certs.network import Refused
from pyderp.errors import DialError
from pyderp.keys import MeshKey
from pyderp.relay.router import Router
from pyderp.server.mesh.links import Mesh
from pyderp.server.services.bootstrap import BootstrapDNS
from pyderp.server.services.stun import StunServer, stun_sockets
from pyderp.tasks import cancel_and_wait
from pyderp.wire.stun import pack_request
from tests.admission.fakes import CLOSE, STALL, identity, response
from tests.certs.authority import FakeAuthority
from tests.certs.test_acme import source_of
from tests.leftovers import none_left
from tests.waiting import until

from . import peer as peers
from .controller import Controller
from .test_client_calls import RESOLVERS, peer_at
from .test_client_ends import SHORT

Ending: TypeAlias = Callable[[], Awaitable[None]]


# STUN


async def stun_answers() -> None:
    server = StunServer(stun_sockets("127.0.0.1", 0))
    server.start()
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
        client.setblocking(False)
        client.connect(server.addresses[0])
        client.send(b"no STUN")
        client.send(pack_request(bytes(12)))
        await asyncio.get_running_loop().sock_recv(client, 100)
    await server.aclose()


async def stun_fails_to_read() -> None:
    server = StunServer(stun_sockets("127.0.0.1", 0))
    server.start()
    server._on_read_error(server._sockets[0], OSError(5, "a test"))
    await server.aclose()


async def stun_never_started() -> None:
    await StunServer(stun_sockets("127.0.0.1", 0)).aclose()


# Admission


@contextlib.asynccontextmanager
async def gate(**settings: Any) -> AsyncIterator[Gate]:
    made = Gate(
        AdmissionConfig(**{"recheck": 0.01, "remember": 0, **settings}),
        live=lambda: [identity(n) for n in range(3)],
        revoke=lambda *_: None,
        timeout=SHORT,
    )
    await made.start()
    try:
        yield made
    finally:
        await made.aclose()


async def ask(made: Gate, expected: int) -> None:
    """All ends of a question, while rechecks go on."""
    await asyncio.gather(*(made.ask(identity(n % 2)) for n in range(4)))
    task = asyncio.create_task(made.ask(identity(7)))
    await asyncio.sleep(0)
    await cancel_and_wait([task])
    await until(lambda: made.counters.queries >= expected)
    left = asyncio.create_task(made.ask(identity(8)))  # until the gate closes
    await asyncio.sleep(0)
    await made.aclose()
    await left


def by_url(*reply: Any) -> Ending:
    async def end() -> None:
        with Controller(reply) as server:
            async with gate(url=server.url) as made:
                await ask(made, 6)
        await until(lambda: server.over)

    return end


async def by_no_url() -> None:
    async with gate(url="http://127.0.0.1:1/") as made:
        await ask(made, 6)


def by_tailscaled(*reply: Any) -> Ending:
    async def end() -> None:
        with tempfile.TemporaryDirectory() as directory:
            path = Path(directory) / "socket"
            with Controller(reply, path) as server:
                async with gate(tailscaled=True, tailscaled_socket=path) as made:
                    await made.check_self()
                    await ask(made, 6)
            await until(lambda: server.over)

    return end


def by_function(decide: Any) -> Ending:
    async def end() -> None:
        async with gate(decide=decide) as made:
            await ask(made, 6)

    return end


def refuses_key(*_: object) -> bool:
    return False


def raises(*_: object) -> bool:
    raise ValueError("a bug in the program")


async def raises_later(*_: object) -> bool:
    await asyncio.sleep(0)
    raise ValueError("a bug in the program")


async def never_answers(*_: object) -> bool:
    await asyncio.get_running_loop().create_future()
    return True


REPLIES: Final[dict[str, tuple[Any, ...]]] = {
    "yes": (response(b'{"Allow": true}'),),
    "no": (response(b'{"Allow": false}'),),
    "nonsense": (response(b"nonsense"),),
    "no HTTP": (b"SSH-2.0-x\r\n\r\n", CLOSE),
    "500": (response(b"", "500 Oh"),),
    "nothing": (CLOSE,),
    "silence": (STALL,),
    "half": (response(b'{"Allow": true}')[:-3], STALL),
}

# Bootstrap DNS


def by_bootstrap(resolver: Any) -> Ending:
    async def end() -> None:
        dns = BootstrapDNS(
            BootstrapDNSConfig(published=("a.test", "b.test"), unpublished=("c.test/t.test",)),
            resolver=resolver,
            txt=no_texts,
        )
        dns.start()
        for _ in range(20):
            await asyncio.sleep(0)
        await dns.aclose()

    return end


async def no_texts(_: str) -> list[str]:
    raise DialError("no TXT")


# The mesh


def by_mesh(stage: str, act: Callable[[peers.Peer], None], attempts: int) -> Ending:
    async def end() -> None:
        errors: list[int] = []

        def counted(peer: peers.Peer) -> None:
            errors.append(1)
            act(peer)

        async with peer_at(stage, counted) as peer:
            mesh = Mesh(
                Router(bytes(32), time.monotonic),
                NodePrivate.generate(),
                MeshKey(bytes(range(32))),
                schedule_flush=lambda: None,
                client_config=ClientConfig(network=NetworkSettings()),
                retry=0.001,
            )
            mesh.set_hosts([f"http://127.0.0.1:{peer.port}/derp"])
            await until(lambda: len(errors) >= attempts)
            await mesh.aclose()

    return end


# Certificates


def by_authority(change: Callable[[FakeAuthority], None]) -> Ending:
    async def end() -> None:
        with tempfile.TemporaryDirectory() as directory:
            authority = FakeAuthority()
            change(authority)
            source = source_of(Path(directory), authority)
            await source.start()
            await until(lambda: len(authority.asked) >= 2 or authority.advice_asked)
            await source.aclose()

    return end


def refuses(authority: FakeAuthority) -> None:
    def refuse() -> None:
        raise Refused("no")

    authority.before = refuse


def is_broken(authority: FakeAuthority) -> None:
    def fail() -> None:
        raise OSError("no network")

    authority.before = fail


def gives_no_advice(authority: FakeAuthority) -> None:
    def fail() -> None:
        raise ValueError("no advice")

    authority.before_advice = fail


def works(_: FakeAuthority) -> None:
    pass


ENDINGS: Final[dict[str, Ending]] = {
    **{f.__name__: f for f in (stun_answers, stun_fails_to_read, stun_never_started)},
    **{f"URL: {name}": by_url(*reply) for name, reply in REPLIES.items()},
    "URL: unreachable": by_no_url,
    **{f"tailscaled: {name}": by_tailscaled(*reply) for name, reply in REPLIES.items()},
    **{
        f"function: {decide.__name__}": by_function(decide)
        for decide in (refuses_key, raises, raises_later, never_answers)
    },
    **{f"bootstrap: {r.__name__}": by_bootstrap(r) for r in RESOLVERS},
    **{
        f"mesh: {stage}, {act.__name__}": by_mesh(stage, act, attempts)
        for stage, act, attempts in (
            ("http", peers.hang_up, 3),
            ("http", peers.refuse, 3),
            ("login", peers.reset, 3),
            ("idle", peers.hang_up, 3),
            ("idle", peers.refuse, 3),
            ("idle", peers.packets, 3),
            ("idle", peers.stay, 1),
            ("http", peers.stay, 1),
        )
    },
    **{
        f"certificates: {f.__name__}": by_authority(f)
        for f in (works, refuses, is_broken, gives_no_advice)
    },
}


@pytest.mark.parametrize("name", ENDINGS)
async def test_a_service_leaves_nothing(name: str) -> None:
    await ENDINGS[name]()
    # aiohttp leaves a cycle for each connection that the server closed, and json for each text
    # that it indents.
    libraries = ("aiohttp",) if name.startswith(("URL", "tailscaled")) else ()
    if name.startswith(("bootstrap", "certificates")):
        libraries = ("json",)
    async with none_left(libraries=libraries):
        await ENDINGS[name]()
