"""Other parts of a client: names, regions, functions and streams of a program, watches."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import socket
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from functools import partial
from typing import Any, Final, TypeAlias

import pytest

from pyderp import (
    Client,
    ClientConfig,
    DerpError,
    DERPNode,
    DERPRegion,
    NetworkSettings,
    blocking,
    dial_region_tls,
    watch_mesh,
)
from pyderp.addresses import IPAddress, parse_ip
from pyderp.net.dial import dial_node
from pyderp.net.dns import DNSCache
from pyderp.tasks import cancel_and_wait
from pyderp.wire.frames import pack_server_key
from tests.leftovers import none_left, none_left_now

from . import peer as peers
from .peer import WAYS, Identities, Peer
from .test_client_ends import BOUND, DST, SHORT, TRUST, receive

Ending: TypeAlias = Callable[[], Awaitable[None]]
PLAIN: Final = WAYS[0]
TLS: Final = WAYS[1]


class UnexpectedError(Exception):
    """An error that a program's own function may raise."""


@functools.cache
def identities() -> Identities:
    return Identities()


@contextlib.asynccontextmanager
async def peer_at(
    stage: str, act: Callable[[Peer], None] = peers.stay, way: peers.Way = PLAIN
) -> AsyncIterator[Peer]:
    peer = Peer(way, stage, act, contexts=identities(), reached=lambda: None)
    try:
        yield peer
    finally:
        peer.stop()
        while not peer.over:  # noqa: ASYNC110 (a thread has no event)
            await asyncio.sleep(0.001)


async def fails(call: Awaitable[object]) -> None:
    """The call ends with an error, which is not kept."""
    with contextlib.suppress(DerpError, OSError, UnexpectedError):
        await call


async def cancelled(call: Awaitable[Any]) -> None:
    """The call begins, and is cancelled."""
    task = asyncio.ensure_future(call)
    for _ in range(5):
        await asyncio.sleep(0)
    await cancel_and_wait([task])


# Names

Names: TypeAlias = Callable[[str, socket.AddressFamily], Awaitable[Sequence[IPAddress]]]


async def no_name(_: str, __: socket.AddressFamily) -> list[IPAddress]:
    raise socket.gaierror(8, "no such name")


async def no_addresses(_: str, __: socket.AddressFamily) -> list[IPAddress]:
    return []


async def no_answer(_: str, __: socket.AddressFamily) -> list[IPAddress]:
    await asyncio.get_running_loop().create_future()
    raise AssertionError


async def bad_names(_: str, __: socket.AddressFamily) -> list[IPAddress]:
    raise UnexpectedError("a bug in the resolver")


async def closed_ports(_: str, __: socket.AddressFamily) -> list[IPAddress]:
    found = [parse_ip(text) for text in ("127.0.0.1", "::1", "127.0.0.2")]
    return [ip for ip in found if ip is not None]


RESOLVERS: Final = (no_name, no_addresses, no_answer, bad_names, closed_ports)


def unreachable(**settings: Any) -> Client:
    settings.setdefault("connect_timeout", SHORT)
    return Client.for_url(
        "http://relay.test:1/derp", config=ClientConfig(network=NetworkSettings(), **settings)
    )


def by_names(resolver: Names) -> Ending:
    async def end() -> None:
        async with unreachable(dns_cache=DNSCache(resolver=resolver)) as client:
            await fails(client.connect())
            await cancelled(client.connect())
            await asyncio.gather(*(fails(client.connect()) for _ in range(3)))

    return end


def by_a_node(resolver: Names) -> Ending:
    async def end() -> None:
        node = DERPNode(name="1a", region_id=1, host_name="relay.test")
        for call in (fails, cancelled):
            await call(dial_node(node, 1, settings=NetworkSettings(), resolver=resolver))

    return end


async def by_the_system() -> None:
    async with Client.for_url(
        "http://localhost:1/derp", config=ClientConfig(network=NetworkSettings())
    ) as client:
        await fails(client.connect())
        await cancelled(client.connect())


# Regions


def region(*ports: int) -> DERPRegion:
    nodes = [
        DERPNode(
            name=f"1{n}",
            region_id=1,
            host_name="127.0.0.1",
            ipv4="127.0.0.1",
            ipv6="none",
            derp_port=port,
        )
        for n, port in enumerate(ports)
    ]
    return DERPRegion(region_id=1, region_code="test", region_name="Test", nodes=tuple(nodes))


def for_region(get_region: Any, **settings: Any) -> Client:
    settings.setdefault("connect_timeout", BOUND)
    config = ClientConfig(tls=TRUST, network=NetworkSettings(), **settings)
    return Client.for_region(get_region, config=config)


async def all_nodes_fail() -> None:
    async with for_region(region(1, 2, 3)) as client:
        await fails(client.connect())
        await fails(client.recv())


async def first_nodes_are_silent() -> None:
    async with peer_at("http", way=TLS) as silent, peer_at("tls", peers.alert, TLS) as no:
        ports = (silent.port, no.port, 1)
        async with for_region(region(*ports), connect_timeout=3 * SHORT) as client:
            await fails(client.connect())


async def last_node_works() -> None:
    async with peer_at("idle", way=TLS) as good, for_region(region(1, good.port)) as client:
        await client.connect()


async def no_region() -> None:
    async with for_region(lambda: None) as client:
        await fails(client.connect())


async def get_region_raises() -> None:
    def get_region() -> DERPRegion:
        raise UnexpectedError("a bug in the program")

    async with for_region(get_region) as client:
        await fails(client.connect())


async def only_tls() -> None:
    async with peer_at("http", way=TLS) as good, for_region(lambda: None) as client:
        dial = partial(dial_region_tls, config=client._life._config)
        link, _ = await dial(region(1, good.port))
        link.abort()
        del link
        await fails(dial(region(1, 2)))
        await cancelled(dial(region(good.port)))


# A program's own functions and streams


async def dialer_raises() -> None:
    async def dialer(_: str, __: int) -> socket.socket:
        raise UnexpectedError("a bug in the program")

    async with unreachable(dialer=dialer) as client:
        await fails(client.connect())


async def dialer_gives_nonsense() -> None:
    async def dialer(_: str, __: int) -> Any:
        return 7

    async with unreachable(dialer=dialer) as client:
        await fails(client.connect())


async def scope_ends_it() -> None:
    async with (
        peer_at("http") as silent,
        Client.for_url(
            f"http://127.0.0.1:{silent.port}/derp",
            config=ClientConfig(
                network=NetworkSettings(), connect_scope=lambda: asyncio.timeout(SHORT)
            ),
        ) as client,
    ):
        await fails(client.send(DST, b"x"))


async def scope_raises() -> None:
    @contextlib.asynccontextmanager
    async def scope() -> AsyncIterator[None]:
        yield
        raise UnexpectedError("a bug in the program")

    # Without the system's resolver, whose thread may take longer than the client waits for it.
    cache = DNSCache(resolver=no_name)
    async with unreachable(connect_scope=scope, dns_cache=cache) as client:
        await fails(client.send(DST, b"x"))


class OwnStream:
    """A byte stream of the program that fails in one of its methods."""

    def __init__(self, fails_in: str, inner: socket.socket) -> None:
        self._fails_in = fails_in
        self._inner = inner

    def _maybe(self, where: str) -> None:
        if where == self._fails_in:
            raise UnexpectedError(f"a bug in {where}")

    async def receive(self, max_bytes: int = 65536, /) -> bytes:
        data = await asyncio.get_running_loop().sock_recv(self._inner, max_bytes)
        if not data:
            self._maybe("the end")
            self._maybe("receive")
        return data

    async def send(self, item: bytes, /) -> None:
        self._maybe("send")
        await asyncio.get_running_loop().sock_sendall(self._inner, item)

    async def aclose(self) -> None:
        self._inner.close()
        self._maybe("close")


def own_stream(fails_in: str) -> Ending:
    async def end() -> None:
        ours, theirs = socket.socketpair()
        ours.setblocking(False)
        with theirs:
            theirs.sendall(pack_server_key(peers.RELAY.public))
            async with Client.over_stream(OwnStream(fails_in, ours)) as client:
                await fails(client.connect())
                task = asyncio.create_task(fails(receive(client, asyncio.Event())))
                await asyncio.sleep(0)
                await fails(client.send(DST, b"x"))
                theirs.shutdown(socket.SHUT_WR)
                if fails_in in ("receive", "the end", "send"):
                    await task
                await cancel_and_wait([task])

    return end


def given(kind: str) -> Ending:
    async def end() -> None:
        # As soon as it exists: on such a stream the client speaks no HTTP.
        async with peer_at("tcp", peers.hang_up) as peer:
            stream: Any = socket.create_connection(("127.0.0.1", peer.port))
            if kind == "streams":
                stream = await asyncio.open_connection(sock=stream)
            async with Client.over_stream(stream) as client:
                del stream
                await fails(client.connect())

    return end


# Over a client's life


async def reconnects() -> None:
    async with peer_at("idle", peers.hang_up) as peer:
        client = Client.for_url(
            f"http://127.0.0.1:{peer.port}/derp", config=ClientConfig(network=NetworkSettings())
        )
        # The client keeps the relay's key, and the last refusal.
        kept = ("pyderp.keys.NodePublic", "pyderp.errors.LoginRefused")
        async with client, none_left(but=kept):
            for _ in range(3):
                await fails(receive(client, asyncio.Event()))
                await fails(client.send(DST, b"x"))
            # Closed here, otherwise the last connection would be left.
            await fails(receive(client, asyncio.Event()))


async def iterates() -> None:
    async with peer_at("idle", peers.restart) as peer:
        client = Client.for_url(
            f"http://127.0.0.1:{peer.port}/derp", config=ClientConfig(network=NetworkSettings())
        )
        seen = 0
        async with client:
            async for _ in client:
                seen += 1
                if seen == 3:
                    break


async def watches() -> None:
    errors: list[str] = []
    async with peer_at("idle", peers.hang_up) as peer:
        client = Client.for_url(
            f"http://127.0.0.1:{peer.port}/derp", config=ClientConfig(network=NetworkSettings())
        )
        task = asyncio.create_task(
            watch_mesh(
                client,
                add=lambda _: None,
                remove=lambda _: None,
                notify_error=lambda e: errors.append(str(e)),
                retry=0.001,
            )
        )
        while len(errors) < 3:  # noqa: ASYNC110 (there is no event)
            await asyncio.sleep(0.001)
        await client.aclose()
        await task


async def watch_is_cancelled() -> None:
    async with peer_at("idle") as peer:
        client = Client.for_url(
            f"http://127.0.0.1:{peer.port}/derp", config=ClientConfig(network=NetworkSettings())
        )
        async with client:
            watching = watch_mesh(client, add=lambda _: None, remove=lambda _: None)
            await cancelled(watching)


async def seals() -> None:
    async with Client.for_url("http://127.0.0.1:1/derp") as client:
        sealed = client.sealed(DST)
        await fails(sealed.send(b"x"))
        with contextlib.suppress(DerpError):
            sealed.open_untrusted(b"PDS\x01" + bytes(100))
        del client
        with contextlib.suppress(DerpError):
            sealed.open_untrusted(sealed.seal(b"x"))


async def blocks() -> None:
    async with peer_at("idle", peers.restart) as peer:

        def use(port: int) -> None:
            config = ClientConfig(network=NetworkSettings())
            with blocking.Client.for_url(f"http://127.0.0.1:{port}/derp", config=config) as client:
                with contextlib.suppress(DerpError):
                    while True:
                        client.recv()
                client.sealed(DST).seal(b"x")
            with contextlib.suppress(DerpError):
                client.recv()
            with (
                contextlib.suppress(DerpError),
                blocking.Client.for_url("http://127.0.0.1:1/derp", config=config) as client,
            ):
                client.connect()

        await asyncio.to_thread(use, peer.port)


ENDINGS: Final[dict[str, Ending]] = {
    **{f"names: {r.__name__}": by_names(r) for r in RESOLVERS},
    **{f"node: {r.__name__}": by_a_node(r) for r in RESOLVERS},
    **{f"own stream: {name}": own_stream(name) for name in ("receive", "send", "close", "none")},
    **{f"given: {kind}": given(kind) for kind in ("socket", "streams")},
    **{
        f.__name__: f
        for f in (
            by_the_system,
            all_nodes_fail,
            first_nodes_are_silent,
            last_node_works,
            no_region,
            get_region_raises,
            only_tls,
            dialer_raises,
            dialer_gives_nonsense,
            scope_ends_it,
            scope_raises,
            reconnects,
            iterates,
            watches,
            watch_is_cancelled,
            seals,
            blocks,
        )
    },
}


@pytest.mark.parametrize("name", ENDINGS)
async def test_a_call_leaves_nothing(name: str) -> None:
    await ENDINGS[name]()
    async with none_left():
        await ENDINGS[name]()


def test_nothing_is_left_of_a_loop_that_ends_in_the_middle() -> None:
    """`asyncio.run` cancels all tasks."""

    async def abandon(port: int) -> None:
        client = Client.for_url(
            f"http://127.0.0.1:{port}/derp", config=ClientConfig(network=NetworkSettings())
        )
        await client.connect()
        receiving = asyncio.create_task(receive(client, asyncio.Event()))
        await asyncio.sleep(0)
        del receiving

        async def close() -> None:
            try:
                await asyncio.get_running_loop().create_future()
            finally:
                await client.aclose()

        closing = asyncio.create_task(close())
        await asyncio.sleep(0)
        del closing

    peer = Peer(PLAIN, "idle", peers.stay, contexts=identities(), reached=lambda: None)
    try:
        asyncio.run(abandon(peer.port))
        with none_left_now():
            asyncio.run(abandon(peer.port))
            gone = peer.sock
            while gone is peer.sock and gone.fileno() >= 0:
                time.sleep(0.001)  # until its thread has dropped the connection
            del gone
    finally:
        peer.stop()
