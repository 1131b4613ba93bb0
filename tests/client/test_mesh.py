"""Watching which clients are on a relay."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Any

import pytest

from pyderp import (
    Client,
    ClientConfig,
    ConnectError,
    ConnectionClosed,
    MeshKey,
    NodePrivate,
    NodePublic,
    PeerGone,
    PeerGoneReason,
    PeerPresent,
    Relay,
    RelayConfig,
    watch_mesh,
)
from pyderp.client import mesh as module
from pyderp.keys import KEY_LEN
from pyderp.wire.frames import FrameType, pack_frame, pack_peer_gone, pack_peer_present, pack_ping
from tests.waiting import until

from .fakes import DIRECT, RELAY, Links, Log, LoginLink, bounded, packet_frame

MESH = MeshKey(bytes(range(32)))
A, B, C = (NodePrivate.generate().public for _ in range(3))
BROKE = PeerGoneReason.MESH_CONN_BROKE


def present(peer: NodePublic) -> bytes:
    return pack_peer_present(peer, bytes(16), 0, 1)


def gone(peer: NodePublic, reason: int = 0) -> bytes:
    return pack_peer_gone(peer, reason)


class Seen:
    """Arguments of the callbacks."""

    def __init__(self) -> None:
        self.events: list[tuple[str, NodePublic, int]] = []
        self.errors: list[Exception] = []

    def add(self, peer: PeerPresent) -> None:
        self.events.append(("add", peer.peer, 0))

    def remove(self, peer: PeerGone) -> None:
        self.events.append(("remove", peer.peer, peer.reason))

    @property
    def here(self) -> set[NodePublic]:
        found: set[NodePublic] = set()
        for what, peer, _ in self.events:
            (found.add if what == "add" else found.discard)(peer)
        return found


class Watched:
    """A watch over links in memory."""

    def __init__(self, **options: Any) -> None:
        self.links = Links()
        self.client = self.links.client()
        self.seen = Seen()
        self.lines: list[str] = []
        self.task = asyncio.create_task(
            watch_mesh(
                self.client,
                add=self.seen.add,
                remove=self.seen.remove,
                notify_error=self.seen.errors.append,
                **options,
            )
        )

    async def generation(self, number: int) -> LoginLink:
        """Wait for a connection on which the watch receives."""
        await until(
            lambda: (
                self.client.generation == number
                and self.client.connected
                and self.client._life.connection is not None
                and self.client._life.connection._receiver is not None
            )
        )
        return self.links.last

    async def feed(self, *frames: bytes) -> None:
        self.links.last.feed(*frames)
        for _ in range(3):
            await asyncio.sleep(0)


@contextlib.asynccontextmanager
async def watched(**options: Any) -> AsyncIterator[Watched]:
    options.setdefault("retry", 0.01)
    with Log("pyderp.mesh") as log:
        watch = Watched(**options)
        watch.lines = log.lines
        async with bounded():
            try:
                yield watch
            finally:
                watch.task.cancel()
                await asyncio.gather(watch.task, return_exceptions=True)
                closing = asyncio.create_task(watch.client.aclose())
                await asyncio.sleep(0)
                watch.links.finish()
                await closing


async def test_add_and_remove() -> None:
    """Each connection is an `add`, duplicates too; each departure a `remove`."""
    async with watched() as watch:
        link = await watch.generation(1)
        assert (FrameType.WATCH_CONNS, b"") in link.words()
        await watch.feed(present(A), present(B), present(A))
        await watch.feed(gone(A), gone(B, 1))
        assert watch.seen.events == [
            ("add", A, 0),
            ("add", B, 0),
            ("add", A, 0),
            ("remove", A, 0),
            ("remove", B, 1),
        ]
        assert not watch.seen.errors
        # Only unusual messages are logged.
        assert [line for line in watch.lines if "gone" in line] == [
            f"peer {B.short()} gone, reason 0x1"
        ]


async def test_other_messages_are_ignored() -> None:
    """Pings are not answered."""
    async with watched() as watch:
        link = await watch.generation(1)
        link.words()
        await watch.feed(pack_ping(bytes(8)), packet_frame(b"x"), pack_frame(0x06))
        await watch.feed(present(A))
        assert watch.seen.events == [("add", A, 0)]
        assert link.words() == []


async def test_a_break_removes_each_peer_once() -> None:
    """With a reason of the client's own; then the peers are added anew."""
    async with watched() as watch:
        link = await watch.generation(1)
        await watch.feed(present(A), present(B), gone(B))
        watch.seen.events.clear()
        link.lose()
        await watch.generation(2)
        assert watch.seen.events == [("remove", A, BROKE)]
        (error,) = watch.seen.errors
        assert isinstance(error, ConnectionClosed)
        assert str(error) == "derp.Recv: EOF"
        await watch.feed(present(C))
        assert watch.seen.here == {C}
        assert "reconnected; clearing 1 forwarding mapping" in watch.lines
        assert "Recv: derp.Recv: EOF" in watch.lines


async def test_a_break_before_the_first_message_removes_nothing() -> None:
    """No line is logged."""
    async with watched() as watch:
        (await watch.generation(1)).lose()
        await watch.generation(2)
        assert not watch.seen.events
        assert not any("clearing" in line for line in watch.lines)


async def test_a_connection_made_by_another_task_is_watched() -> None:
    """Its first message removes the peers of the old one."""
    async with watched(retry=0.0001) as watch:
        link = await watch.generation(1)
        await watch.feed(present(A))
        link.lose()
        with contextlib.suppress(ConnectionClosed):
            await watch.client.forward_packet(A, B, b"x")
        await watch.client.forward_packet(A, B, b"x")
        link = await watch.generation(2)
        words = [kind for kind, _ in link.words()]
        assert words[:2] == [FrameType.CLIENT_INFO, FrameType.WATCH_CONNS]
        await watch.feed(present(B))
        assert watch.seen.events == [("add", A, 0), ("remove", A, BROKE), ("add", B, 0)]


async def test_failed_connects_are_reported_and_tried_again() -> None:
    """After the same time each (with a twin of TestNotifyError)."""
    links = Links()
    links.error = ConnectionRefusedError("refused")
    seen = Seen()
    client = links.client()
    with Log("pyderp.mesh") as log:
        task = asyncio.create_task(
            watch_mesh(
                client,
                add=seen.add,
                remove=seen.remove,
                notify_error=seen.errors.append,
                retry=0.02,
            )
        )
        await until(lambda: len(seen.errors) == 3)
        links.error = None
        await until(lambda: client.connected)
    assert all(isinstance(error, ConnectError) for error in seen.errors)
    assert any(line.startswith("mesh connect: ") and "refused" in line for line in log.lines)
    assert not seen.events
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    links.finish()
    await client.aclose()


def test_a_retry_waits_five_seconds_as_in_go() -> None:
    assert module.RETRY == 5.0


@pytest.mark.parametrize("ignore", ["own", "zero", "another", "none"])
async def test_a_relay_with_the_ignored_key_ends_the_watch(ignore: str) -> None:
    """The connection stays open."""
    key = {
        "own": RELAY.public,
        "zero": NodePublic(bytes(KEY_LEN)),
        "another": A,
        "none": None,
    }[ignore]

    async with watched(ignore_server_key=key) as watch:
        if ignore == "own":
            await watch.task
            assert "detected self-connect; ignoring host" in watch.lines
            assert watch.client.connected
        else:
            await watch.generation(1)
            await watch.feed(present(A))
            assert watch.seen.here == {A}
            assert not watch.task.done()


@pytest.mark.parametrize("how", ["cancel", "close"])
@pytest.mark.parametrize("when", ["receiving", "waiting", "connecting"])
async def test_a_cancel_or_a_close_stops_the_watch_at_once(how: str, when: str) -> None:
    """In any state; no peer stays present."""
    async with watched(retry=100) as watch:
        if when == "connecting":
            watch.links.silent = True
            await until(lambda: watch.client.connection_state == "connecting")
        else:
            link = await watch.generation(1)
            await watch.feed(present(A), present(B))
            if when == "waiting":
                link.lose()
                await until(lambda: watch.seen.errors)
        async with asyncio.timeout(10):
            if how == "cancel":
                watch.task.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await watch.task
            else:
                closing = asyncio.create_task(watch.client.aclose())
                await watch.task
                watch.links.finish()
                await closing
        assert watch.seen.here == set()
        if when == "receiving":
            removed = [event for event in watch.seen.events if event[0] == "remove"]
            assert sorted(removed) == sorted([("remove", A, BROKE), ("remove", B, BROKE)])


@pytest.mark.parametrize("which", ["add", "remove", "notify_error"])
async def test_an_error_of_a_callback_ends_the_watch(which: str) -> None:
    """Its timer is stopped."""

    class Oops(Exception):
        pass

    def fail(_: object) -> None:
        raise Oops

    links = Links()
    client = links.client()
    callbacks: dict[str, Any] = {"add": lambda _: None, "remove": lambda _: None}
    callbacks[which] = fail
    task = asyncio.create_task(watch_mesh(client, retry=0.01, **callbacks))
    await until(lambda: client.connected)
    links.last.feed(present(A), gone(A))
    links.last.lose()
    async with bounded():
        with pytest.raises(Oops):
            await task
    handles = getattr(asyncio.get_running_loop(), "_scheduled", ())
    assert not [h for h in handles if "_Watch" in str(h) and not h.cancelled()]
    await client.aclose()


async def test_a_callback_that_raises_leaves_no_peer() -> None:
    """Every added peer is removed, also the one whose adding failed."""
    links = Links()
    client = links.client()
    removed: list[PeerGone] = []

    def add(message: PeerPresent) -> None:
        if message.peer == B:
            raise ZeroDivisionError

    task = asyncio.create_task(watch_mesh(client, add=add, remove=removed.append))
    await until(lambda: client.connected)
    links.last.feed(present(A), present(B))
    async with bounded():
        with pytest.raises(ZeroDivisionError):
            await task
    broke = PeerGoneReason.MESH_CONN_BROKE
    assert sorted((m.peer, m.reason) for m in removed) == sorted([(A, broke), (B, broke)])
    links.finish()
    await client.aclose()


class TestStatus:
    """Log lines with the number of peers."""

    async def test_a_line_without_peers(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Some time after the start, once, even without a message or a connection."""
        monkeypatch.setattr(module, "_FIRST_STATUS", 0.02)

        async with watched() as watch:
            link = await watch.generation(1)
            await until(lambda: "connected; 0 peers" in watch.lines)
            link.lose()
            await watch.generation(2)
            await watch.feed(present(A), gone(A))
            assert [line for line in watch.lines if "connected; " in line] == ["connected; 0 peers"]

    async def test_a_line_after_the_last_of_the_first_peers(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(module, "_SETTLED", 60.0)

        async with watched() as watch:
            await watch.generation(1)
            await watch.feed(present(A))
            assert not any("connected; " in line for line in watch.lines)
            monkeypatch.setattr(module, "_SETTLED", 0.05)
            await watch.feed(present(B))
            await until(lambda: "connected; 2 peers" in watch.lines)
            monkeypatch.setattr(module, "_SETTLED", 0.0)
            await watch.feed(present(C))
            # A timer of no time would fire before this one.
            await asyncio.sleep(0.001)
            assert sum("connected; " in line for line in watch.lines) == 1

    async def test_at_the_first_departure(self) -> None:
        """At once; the peer that leaves still counts."""
        async with watched() as watch:
            await watch.generation(1)
            await watch.feed(present(A), present(B), gone(A))
            assert "connected; 2 peers" in watch.lines

    async def test_an_old_line_is_renewed_with_the_next_message(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        assert module.STATUS == 10.0
        monkeypatch.setattr(module, "_SETTLED", 60.0)  # which would be a line as well

        async with watched() as watch:
            await watch.generation(1)
            await watch.feed(present(A))
            assert "1 peer" not in watch.lines
            monkeypatch.setattr(module, "STATUS", 0.2)
            await asyncio.sleep(0.21)
            assert "1 peer" not in watch.lines
            await watch.feed(pack_ping(bytes(8)))
            assert "1 peer" not in watch.lines
            await watch.feed(present(B), present(C))
            found = [line for line in watch.lines if line.endswith(" peers")]
            assert found == ["2 peers"]


def of(relay: Relay, private: NodePrivate | None = None) -> Client:
    config = ClientConfig(network=DIRECT, mesh_key=MESH)
    return Client.for_url(relay.url, private_key=private, config=config)


class TestRelay:
    """With a relay of this project."""

    @pytest.mark.parametrize("where", ["receiving", "in add"])
    async def test_break_again_and_again(self, where: str) -> None:
        """Twins of TestBreakWatcherConnRecv and TestBreakWatcherConn: ten times the connection
        breaks, and ForwardPacket makes a new one; each time the watcher sees itself again."""
        seen = Seen()
        breaks = 0
        async with Relay(RelayConfig(mesh_key=MESH)) as relay, of(relay) as client:

            def break_connection() -> None:
                nonlocal breaks
                breaks += 1
                assert client._life.connection is not None
                client._life.connection.link.abort()

            def add(peer: PeerPresent) -> None:
                seen.add(peer)
                if where == "in add" and breaks < 10:
                    break_connection()

            task = asyncio.create_task(
                watch_mesh(
                    client,
                    add=add,
                    remove=seen.remove,
                    notify_error=seen.errors.append,
                    retry=0.01,
                )
            )
            if where == "receiving":
                for _ in range(10):
                    await until(lambda: seen.here == {client.self_public_key})
                    generation = client.generation
                    break_connection()
                    await until(lambda: not client.connected)
                    with contextlib.suppress(ConnectionClosed):
                        await client.forward_packet(A, B, b"bogus")
                    await client.forward_packet(A, B, b"bogus")
                    await until(lambda: client.generation > generation and seen.errors)  # noqa: B023
            await until(lambda: breaks == 10 and len(seen.errors) == 10)
            await until(lambda: seen.here == {client.self_public_key})
            assert {str(error) for error in seen.errors} == {"derp.Recv: EOF"}
            adds = [event for event in seen.events if event[0] == "add"]
            removes = [event for event in seen.events if event[0] == "remove"]
            assert len(adds) == len(removes) + 1 == 11
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    async def test_peers_that_come_and_go_are_added_and_removed(self) -> None:
        async with Relay(RelayConfig(mesh_key=MESH)) as relay, of(relay) as client:
            seen = Seen()
            task = asyncio.create_task(watch_mesh(client, add=seen.add, remove=seen.remove))
            own = client.self_public_key
            await until(lambda: seen.here == {own})
            async with of(relay) as other:
                await other.connect()
                await until(lambda: seen.here == {own, other.self_public_key})
            await until(lambda: seen.here == {own})
            assert seen.events[-1] == ("remove", other.self_public_key, 0)
            await client.aclose()
            async with bounded():
                await task

    @pytest.mark.parametrize("ignore", [True, False])
    async def test_self_connect(self, ignore: bool) -> None:
        """Twin of TestRunWatchConnectionLoopServeConnect: a relay that watches itself."""
        async with Relay(RelayConfig(mesh_key=MESH)) as relay:
            client = of(relay, relay.private_key)
            key = relay.public_key if ignore else NodePublic(bytes(KEY_LEN))
            seen = Seen()
            async with client:
                task = asyncio.create_task(
                    watch_mesh(client, add=seen.add, remove=seen.remove, ignore_server_key=key)
                )
                if ignore:
                    async with bounded():
                        await task
                    assert not seen.events
                else:
                    # The relay sends no message about itself, but the watch goes on.
                    await until(lambda: client.connected)
                    assert await client.ping() > 0
                    assert not task.done()
                    task.cancel()
                    await asyncio.gather(task, return_exceptions=True)
