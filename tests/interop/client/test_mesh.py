"""Mesh rights and the watch loop, against real relays."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import pytest

from pyderp import (
    Client,
    ConnectError,
    ConnectionClosed,
    NodePublic,
    PeerGone,
    PeerGoneReason,
    PeerPresent,
    ReceivedPacket,
    watch_mesh,
)
from tests.interop.relays import KINDS, Kind, Relay
from tests.waiting import until

from .recorder import recording
from .support import MESH, GetRelay, clients, config, deliver, key, next_of, url, within

pytestmark = pytest.mark.parametrize("kind", KINDS)

BREAKS = 10
ZERO_KEY = NodePublic(bytes(32))


def client_of(relay: Relay, *, port: int | None = None, **changes: object) -> Client:
    return Client.for_url(url(relay, port=port), config=config(relay, **changes))


class Watch:
    """Reports of a watch loop."""

    def __init__(self) -> None:
        self.present: set[NodePublic] = set()
        self.gone: list[PeerGone] = []
        self.errors: list[Exception] = []
        self.left_behind = 0
        """Peers that were present when an error was reported."""
        self.on_add: Callable[[], None] = lambda: None

    def add(self, message: PeerPresent) -> None:
        self.present.add(message.peer)
        self.on_add()

    def remove(self, message: PeerGone) -> None:
        self.present.remove(message.peer)
        self.gone.append(message)

    def failed(self, error: Exception) -> None:
        self.errors.append(error)
        self.left_behind += len(self.present)

    async def until_errors(self, count: int) -> None:
        await until(lambda: len(self.errors) >= count)

    async def run(self, client: Client, ignore: NodePublic | None = None) -> None:
        await watch_mesh(
            client,
            add=self.add,
            remove=self.remove,
            ignore_server_key=ignore,
            notify_error=self.failed,
            retry=0.01,
        )


@asynccontextmanager
async def running_watch(watch: Watch, client: Client) -> AsyncIterator[None]:
    """Run the loop until the block ends; closing the client is what ends it."""
    async with asyncio.TaskGroup() as group:
        group.create_task(watch.run(client))
        yield
        await client.aclose()


@pytest.mark.parametrize("websocket", [False, True], ids=["http", "ws"])
async def test_a_forwarded_packet_has_the_given_source(
    kind: Kind, websocket: bool, relays: GetRelay
) -> None:
    """A mesh client sends in the name of another key."""
    relay = relays(kind, "plain")

    mesh = client_of(relay, mesh_key=MESH, websocket=websocket)
    target = client_of(relay)
    source = key().public
    async with clients(mesh, target):
        await mesh.forward_packet(source, target.self_public_key, b"by proxy")
        assert await next_of(target, ReceivedPacket) == ReceivedPacket(source, b"by proxy")


async def test_a_forward_without_the_mesh_key_ends_the_connection(
    kind: Kind, relays: GetRelay
) -> None:
    """The client may connect again."""
    relay = relays(kind, "plain")

    client, target = client_of(relay), client_of(relay)
    async with clients(client, target):
        await client.forward_packet(key().public, target.self_public_key, b"no right")
        with pytest.raises(ConnectionClosed, match=r"derp\.Recv: ") as caught:
            await next_of(client, PeerGone)
        assert caught.value.generation == 1
        await client.connect()
        await client.ping()
        await deliver(client, target)
        assert client.generation == 2


async def test_close_peer_ends_the_connection_of_another_client(
    kind: Kind, relays: GetRelay
) -> None:
    """That client gets an end of the stream."""
    relay = relays(kind, "plain")

    mesh, victim = client_of(relay, mesh_key=MESH), client_of(relay)
    async with clients(mesh, victim):
        await mesh.close_peer(victim.self_public_key)
        with pytest.raises(ConnectionClosed, match=r"^derp\.Recv: EOF$"):
            await next_of(victim, PeerGone)
        assert not victim.connected
        assert mesh.connected


async def test_a_watcher_gets_all_changes_in_order(kind: Kind, relays: GetRelay) -> None:
    """Itself, a second watcher, and clients that come and leave."""
    relay = relays(kind, "plain")

    first = client_of(relay, mesh_key=MESH, watch_connection_changes=True)
    second = client_of(relay, mesh_key=MESH)
    third = client_of(relay)
    async with clients(first):
        assert (await next_of(first, PeerPresent)).peer == first.self_public_key
        async with clients(second):
            assert (await next_of(first, PeerPresent)).peer == second.self_public_key
            await second.watch_connection_changes()
            present = {(await next_of(second, PeerPresent)).peer for _ in range(2)}
            assert present == {first.self_public_key, second.self_public_key}
            async with clients(third):
                for watcher in (first, second):
                    seen = await next_of(watcher, PeerPresent)
                    assert seen.peer == third.self_public_key
            for watcher in (first, second):
                assert (await next_of(watcher, PeerGone)).peer == third.self_public_key
        assert (await next_of(first, PeerGone)).peer == second.self_public_key


async def test_a_watch_loop_recovers_from_breaks_while_receiving(
    kind: Kind, relays: GetRelay
) -> None:
    """After each break of its connection the loop has the present peers again."""
    relay = relays(kind, "plain")

    watch = Watch()
    async with recording(relay.port) as recorder:
        peer = client_of(relay)
        watcher = client_of(relay, port=recorder.port, mesh_key=MESH)
        async with clients(peer), running_watch(watch, watcher):
            for broken in range(BREAKS):
                await until(lambda: peer.self_public_key in watch.present)
                await until(lambda: watcher.self_public_key in watch.present)
                recorder.cut()
                await watch.until_errors(broken + 1)
                with contextlib.suppress(ConnectionClosed):
                    await within(watcher.forward_packet(ZERO_KEY, ZERO_KEY, b"bogus"))
            await until(lambda: peer.self_public_key in watch.present)
    assert {str(e) for e in watch.errors} == {"derp.Recv: EOF"}
    assert watch.left_behind == 0
    assert all(gone.reason == PeerGoneReason.MESH_CONN_BROKE for gone in watch.gone)
    assert watcher.generation == BREAKS + 1


async def test_a_watch_loop_recovers_from_a_break_in_a_callback(
    kind: Kind, relays: GetRelay
) -> None:
    """The connection breaks while the loop is inside `add`."""
    relay = relays(kind, "plain")

    watch = Watch()
    async with recording(relay.port) as recorder:
        peer = client_of(relay)
        watcher = client_of(relay, port=recorder.port, mesh_key=MESH)

        def cut() -> None:
            if len(watch.errors) < BREAKS:
                recorder.cut(reset=True)

        watch.on_add = cut
        async with clients(peer), running_watch(watch, watcher):
            await watch.until_errors(BREAKS)
            await until(lambda: peer.self_public_key in watch.present)
    assert all(str(e).startswith("derp.Recv: ") for e in watch.errors)


async def test_a_watch_loop_ends_at_its_own_relay(kind: Kind, relays: GetRelay) -> None:
    """With the relay's own key to ignore the loop ends, connected; with another key it goes on."""
    relay = relays(kind, "plain")

    async with client_of(relay, mesh_key=MESH) as client:
        await client.connect()
        own = client.server_public_key
        watch = Watch()
        await within(watch.run(client, ignore=own))
        assert client.connected
        assert watch.present == set()
    async with client_of(relay, mesh_key=MESH) as client:
        watch = Watch()
        async with asyncio.TaskGroup() as group:
            group.create_task(watch.run(client, ignore=ZERO_KEY))
            await until(lambda: client.self_public_key in watch.present)
            await client.aclose()


async def test_a_watch_loop_reports_failed_connects(kind: Kind, relays: GetRelay) -> None:
    """A connect that fails is reported; the next one that works ends the reports."""
    relay = relays(kind, "plain")

    watch = Watch()
    up = asyncio.Event()
    async with recording(relay.port) as recorder:

        async def dial(host: str, port: int) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
            if not up.is_set():
                raise ConnectionRefusedError("not yet")
            return await asyncio.open_connection(host, port)

        watcher = client_of(relay, port=recorder.port, mesh_key=MESH, dialer=dial)
        async with running_watch(watch, watcher):
            await watch.until_errors(2)
            up.set()
            await until(lambda: watcher.self_public_key in watch.present)
    assert all(isinstance(e, ConnectError) for e in watch.errors)
    assert "not yet" in str(watch.errors[0])
