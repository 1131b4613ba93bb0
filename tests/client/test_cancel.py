"""A call of the client that is cancelled at any await leaves no socket, task or timer."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Awaitable, Callable, Coroutine, Generator
from dataclasses import dataclass, field, replace
from typing import Any

import pytest

from pyderp import (
    Client,
    ClientClosed,
    ClientConfig,
    DERPNode,
    DERPRegion,
    ManualTLS,
    MeshKey,
    NetworkSettings,
    PeerPresent,
    Relay,
    RelayConfig,
    TLSConfig,
    dial_region_tls,
    watch_mesh,
)
from tests.net.ways_out import Sockets
from tests.server.dial import until_gone
from tests.server.ways import NAME

from .fakes import PEER, bounded

MESH = MeshKey(bytes(range(32)))
WAYS = ["url", "region", "websocket", "tls", "tls region", "tls websocket"]

Work = Callable[[Client], Coroutine[Any, Any, object]]


@dataclass
class Turns:
    """Awaits an awaitable and cancels it at its n-th await, counted from 0.

    Args:
        late: cancel when the awaited result has just come, instead of while it is awaited.
    """

    work: Coroutine[Any, Any, object]
    at: int
    late: bool
    count: int = 0

    def __await__(self) -> Generator[Any, Any, None]:
        task = asyncio.current_task()
        assert task is not None
        error: BaseException | None = None
        while True:
            try:
                waits_for = self.work.throw(error) if error is not None else self.work.send(None)
            except StopIteration:
                return
            error = None
            ours = self.count == self.at
            self.count += 1
            if ours and not self.late:
                task.cancel()
            try:
                yield waits_for
            except BaseException as e:
                error = e
            if ours and self.late:
                error = asyncio.CancelledError()


@dataclass
class World:
    """A relay, and clients of it whose sockets are watched."""

    relay: Relay
    way: str
    tls: ManualTLS
    sockets: Sockets = field(default_factory=Sockets)

    def client(self, **settings: Any) -> Client:
        own = (self.tls.certdir / f"{NAME}.crt",)
        config = ClientConfig(
            network=self.sockets.watch(NetworkSettings(use_derp_http="tls" not in self.way)),
            tls=TLSConfig(system_roots=False, builtin_roots=False, extra_roots=own),
            websocket="websocket" in self.way,
            **settings,
        )
        if "region" in self.way:
            return Client.for_region(self.region, config=config)
        if "tls" in self.way:
            # The name is not in DNS, so that the connection needs the dialer.
            config = replace(config, dialer=self.dial)
            return Client.for_url(f"https://{NAME}:{self.relay.address[1]}/derp", config=config)
        return Client.for_url(self.relay.url, config=config)

    async def dial(self, host: str, port: int) -> Any:
        assert host == NAME
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        self.sockets.all.append(writer.get_extra_info("socket"))
        return reader, writer

    @property
    def region(self) -> DERPRegion:
        node = DERPNode(
            name="900a",
            region_id=900,
            host_name=NAME,
            ipv4="127.0.0.1",
            ipv6="none",
            derp_port=self.relay.address[1],
        )
        return DERPRegion(region_id=900, nodes=(node,))

    def timers(self) -> int:
        """Running timers of the client; none on uvloop, which does not list them."""
        handles = getattr(asyncio.get_running_loop(), "_scheduled", ())
        names = [str(handle._callback) for handle in handles if not handle.cancelled()]
        ours = ("Connection._check_receive_timeout", "Timeout")
        return sum(any(part in name for part in ours) for name in names)

    async def nothing_left(self, tasks: set[asyncio.Task[Any]], timers: int) -> None:
        await self.sockets.closed()
        await until_gone(self.relay)
        async with bounded():
            while asyncio.all_tasks() != tasks:  # noqa: ASYNC110 (there is no event)
                await asyncio.sleep(0)
        assert self.timers() == timers


async def cancel_at_each_await(
    world: World,
    work: Callable[[Client], Coroutine[Any, Any, Any]],
    *,
    before: Work | None = None,
    works_after: bool = True,
    **settings: Any,
) -> int:
    """Cancel `work` at each of its awaits, early and late; returns how many awaits there were."""
    awaits = 0
    for mode in ("waiting", "late", "turn"):
        for at in itertools.count():
            tasks, timers = asyncio.all_tasks(), world.timers()
            client = world.client(**settings)
            if before is not None:
                await before(client)
            if mode == "turn":
                task = asyncio.create_task(work(client))
                done = await _cancel_in_turn(task, at)
            else:
                turns = Turns(work(client), at, late=mode == "late")
                task = asyncio.create_task(_run(turns))
                async with bounded():
                    await asyncio.wait([task])
                done = turns.count <= at
                awaits = max(awaits, turns.count)
            if not task.cancelled():
                task.result()
            # Only what the client knows of is open.
            async with bounded():
                while _open(world) > client.connected:  # noqa: ASYNC110 (there is no event)
                    await asyncio.sleep(0)
            if works_after:
                async with bounded():
                    await client.connect()
                    assert await client.ping() > 0
                    assert client.stats.connects == client.generation
            await client.aclose()
            await world.nothing_left(tasks, timers)
            if done:
                break
    return awaits


async def _cancel_in_turn(task: asyncio.Task[Any], turn: int) -> bool:
    """Cancel a task after some turns of the loop; returns whether it was done before."""
    for _ in range(turn):
        await asyncio.sleep(0)
    if task.done():
        return True
    task.cancel()
    async with bounded():
        await asyncio.wait([task])
    return False


def _open(world: World) -> int:
    return sum(sock.fileno() != -1 for sock in world.sockets.all)


async def _run(turns: Awaitable[None]) -> None:
    await turns


def in_world(tls: ManualTLS, way: str, test: Callable[[World], Awaitable[None]]) -> Any:
    """A coroutine that runs a test in a new world."""

    async def main() -> None:
        config = RelayConfig(mesh_key=MESH, tls=tls if "tls" in way else None)
        async with Relay(config) as relay:
            await test(World(relay, way, tls))

    return main()


async def send(client: Client) -> None:
    await client.send(PEER, b"x")


async def connect(client: Client) -> None:
    await client.connect()


async def receive_all(client: Client) -> None:
    await client.receive_many()


async def iterate(client: Client) -> None:
    async for _ in client:
        break


async def ping(client: Client) -> None:
    assert await client.ping() > 0


async def aclose(client: Client) -> None:
    await client.aclose()


@pytest.mark.parametrize("way", WAYS)
async def test_a_cancelled_connect_leaves_nothing_open(tls: ManualTLS, way: str) -> None:
    async def test(world: World) -> None:
        assert await cancel_at_each_await(world, connect) >= 2

    await in_world(tls, way, test)


@pytest.mark.parametrize("way", ["url", "tls"])
@pytest.mark.parametrize("work", [send, Client.recv, receive_all, iterate])
async def test_a_cancelled_call_that_connects_first_leaves_nothing_open(
    tls: ManualTLS, way: str, work: Work
) -> None:
    async def test(world: World) -> None:
        assert await cancel_at_each_await(world, work) >= 2

    await in_world(tls, way, test)


@pytest.mark.parametrize("way", ["url", "tls websocket"])
async def test_a_cancelled_ping_leaves_nothing_open(tls: ManualTLS, way: str) -> None:
    """The next ping is answered as well."""

    async def test(world: World) -> None:
        assert await cancel_at_each_await(world, ping, before=connect) >= 1

    await in_world(tls, way, test)


@pytest.mark.parametrize("way", WAYS)
async def test_a_cancelled_close_closes(tls: ManualTLS, way: str) -> None:
    async def test(world: World) -> None:
        turns = await cancel_at_each_await(world, aclose, before=send, works_after=False)
        assert turns >= 1

    await in_world(tls, way, test)


@pytest.mark.parametrize("way", ["url", "tls"])
async def test_a_cancelled_watch_leaves_nothing_open(tls: ManualTLS, way: str) -> None:
    class SawItself(Exception):
        pass

    def add(peer: PeerPresent) -> None:
        raise SawItself

    async def work(client: Client) -> None:
        with pytest.raises(SawItself):
            await watch_mesh(client, add=add, remove=lambda _: None)

    async def test(world: World) -> None:
        assert await cancel_at_each_await(world, work, mesh_key=MESH) >= 2

    await in_world(tls, way, test)


async def test_a_cancelled_dial_to_measure_leaves_nothing_open(tls: ManualTLS) -> None:
    """A connection that the dial has returned is the caller's."""

    async def test(world: World) -> None:
        async def work(client: Client) -> None:
            link, node = await dial_region_tls(world.region, config=client._life._config)
            assert node == world.region.nodes[0]
            link.abort()

        assert await cancel_at_each_await(world, work, works_after=False) >= 2

    await in_world(tls, "tls region", test)


async def test_a_cancelled_session_over_a_stream_leaves_nothing_open(tls: ManualTLS) -> None:
    async def test(world: World) -> None:
        # A relay speaks DERP only after an upgrade, so the function does one.
        async def upgraded() -> Any:
            reader, writer = await world.dial(NAME, world.relay.address[1])
            try:
                writer.write(
                    b"GET /derp HTTP/1.1\r\nHost: x\r\nUpgrade: DERP\r\nConnection: Upgrade\r\n\r\n"
                )
                await reader.readuntil(b"\r\n\r\n")
            except BaseException:
                writer.transport.abort()
                raise
            return reader, writer

        world.client = lambda **_: Client.over_stream(upgraded)  # type: ignore[method-assign]  # of this object only
        assert await cancel_at_each_await(world, connect) >= 2
        assert await cancel_at_each_await(world, aclose, before=send, works_after=False) >= 1

    await in_world(tls, "url", test)


@pytest.mark.parametrize("way", WAYS)
async def test_a_close_cancels_a_connect_at_any_await(tls: ManualTLS, way: str) -> None:
    """All calls that wait for the connect end, and nothing stays open."""

    async def test(world: World) -> None:
        for turn in itertools.count():
            tasks, timers = asyncio.all_tasks(), world.timers()
            client = world.client()
            waiting = [
                asyncio.create_task(client.connect()),
                asyncio.create_task(send(client)),
                asyncio.create_task(client.recv()),
            ]
            for _ in range(turn):
                await asyncio.sleep(0)
            was_connected = client.connected
            async with asyncio.timeout(5):
                await client.aclose()
                results = await asyncio.gather(*waiting, return_exceptions=True)
            assert client.connection_state == "closed"
            assert not client.connected
            if not was_connected:
                assert all(isinstance(result, ClientClosed) for result in results)
            with pytest.raises(ClientClosed, match=r"^derphttp\.Client closed$"):
                await client.connect()
            await world.nothing_left(tasks, timers)
            if was_connected:
                break

    await in_world(tls, way, test)
