"""The link to one other relay: how it starts, breaks, reconnects and ends."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from pyderp import ClientConfig, ConfigError, ManualTLS, NetworkSettings, NodePrivate, TLSConfig
from pyderp.client import connection as client_connection
from pyderp.keys import MeshKey
from pyderp.relay.connection import EndReason, How
from pyderp.relay.counters import DropReason
from pyderp.relay.delivery import MeshLink
from pyderp.relay.registry import Forwarder
from pyderp.server.mesh import links as module
from pyderp.server.mesh.hosts import MeshLog
from pyderp.wire.frames import FrameType, pack_peer_gone, pack_peer_present, pack_restarting
from tests.client.fakes import FakeRelay, Peer, fake_relay
from tests.server.certificates import write_pair
from tests.server.dial import passes
from tests.server.meshed import (
    CLIENT,
    DISCONNECTED,
    NOT_HERE,
    RETRY,
    Node,
    client_of,
    config,
    expect_gone,
    linked,
    meshed,
    messages_so_far,
    node,
)
from tests.waiting import until

A, B = (NodePrivate.generate().public for _ in range(2))
OTHER_KEY = MeshKey(bytes(32)[:-1] + b"\1")


def present(*keys: object) -> bytes:
    return b"".join(pack_peer_present(key, bytes(16), 0, 1) for key in keys)  # type: ignore[arg-type]


@contextlib.asynccontextmanager
async def linked_to_fake(retry: float = RETRY) -> AsyncIterator[tuple[Node, FakeRelay, Peer]]:
    """Start a relay linked to a fake one, which has announced the relay's own login."""
    async with fake_relay() as fake, node(hosts=[fake.url], retry=retry) as ours:
        peer = await fake.serve()
        assert peer.key == ours.relay.public_key
        await peer.expect(FrameType.WATCH_CONNS)
        peer.say(present(peer.key))
        await linked(ours)
        yield ours, fake, peer
        await ours.mesh.aclose()


def lines(caplog: pytest.LogCaptureFixture) -> list[str]:
    """Return what the mesh logged."""
    return [r.getMessage() for r in caplog.records if r.name == "pyderp.mesh"]


def test_retry_is_five_seconds() -> None:
    assert module.RETRY == 5.0


class TestSelf:
    """A relay in its own list; has a twin of TestRunWatchConnectionLoopServeConnect."""

    async def test_a_relay_recognises_itself_and_ends_the_link(
        self, caplog: pytest.LogCaptureFixture
    ) -> None:
        """The link and its connection end for good."""
        caplog.set_level(logging.INFO)

        async with node() as ours:
            url = ours.relay.url
            ours.mesh.set_hosts([url])
            await until(lambda: ours.status(url).is_self)
            await until(lambda: ours.relay.clients == 0)
            ((_, task),) = ours.mesh._loops.values()
            await until(task.done)
            status = ours.status(url)
            assert (status.connected, status.error, status.peers) == (False, "", 0)
            assert ours.counters.accepts == 1
            ours.mesh.set_hosts([url])
            ((_, same),) = ours.mesh._loops.values()
            assert same is task, "it is done for good"
        assert lines(caplog) == [f"mesh with {url}: that is this relay itself; left alone"]

    async def test_there_is_no_forwarder_to_the_relay_itself(self) -> None:
        """The other relay announces our own login, which is not a client to forward to."""
        async with linked_to_fake() as (ours, fake, peer):
            peer.say(present(A))
            await until(lambda: ours.way(A))
            assert ours.way(ours.relay.public_key) is None
            assert ours.status(fake.url).peers == 1


class TestPresence:
    """PeerPresent and PeerGone from the other relay."""

    @pytest.mark.parametrize("reason", [0, 1])
    async def test_forwarders_follow_peer_present_and_peer_gone(self, reason: int) -> None:
        """Whatever the reason of PeerGone; a repeated one changes nothing."""
        async with linked_to_fake() as (ours, fake, peer):
            peer.say(present(A, A, B))
            await until(lambda: ours.status(fake.url).peers == 2)
            assert ours.way(A)
            peer.say(pack_peer_gone(A, reason) + pack_peer_gone(A, reason))
            await until(lambda: ours.status(fake.url).peers == 1)
            assert ours.way(A) is None
            assert ours.way(B)
            assert ours.counters.forwarder_delete_other_value == 0

    @pytest.mark.parametrize("closed", [False, True], ids=["broken", "closed meanwhile"])
    async def test_keys_of_a_broken_link_are_removed_in_slices(
        self, monkeypatch: pytest.MonkeyPatch, closed: bool
    ) -> None:
        """Packets to keys not yet removed are dropped.

        A key that another relay has by then keeps that forwarder.
        """
        monkeypatch.setattr(module, "_KEYS_A_TURN", 2)
        keys = [NodePrivate.generate().public for _ in range(11)]

        async with linked_to_fake(retry=100) as (ours, fake, peer):
            peer.say(present(*keys))
            await until(lambda: ours.status(fake.url).peers == 11)
            loop, router, other = (
                asyncio.get_running_loop(),
                ours.router,
                MeshLink(lambda: None),
            )
            remove, turn = router.remove_forwarder, 0
            turns: list[int] = []
            claimed: list[bytes] = []

            def tick() -> None:
                nonlocal turn
                turn += 1
                if len(turns) < 11:
                    loop.call_soon(tick)

            def removed(key: bytes, forwarder: Forwarder) -> None:
                remove(key, forwarder)
                turns.append(turn)
                if claimed:
                    return
                claimed.extend(k.raw for k in keys if k.raw in router.forwarders)
                way = router.forwarders.get(claimed[0])
                assert way is not None
                assert way.forward(A.raw, claimed[0], b"x") is DropReason.MESH_LINK_DOWN
                router.add_forwarder(claimed[0], other)
                if closed:
                    ours.mesh.set_hosts([])

            monkeypatch.setattr(router, "remove_forwarder", removed)
            loop.call_soon(tick)
            peer.cut()
            await until(lambda: len(turns) == 11)
            assert max(map(turns.count, turns)) == 2
            assert router.forwarders.get(claimed[0]) is other
            assert len(router.forwarders) == 1

    async def test_many_departures_are_sent_over_several_turns(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Each of thousands of keys may be known to thousands of clients."""
        monkeypatch.setattr(module, "_GONE_FRAMES_A_TURN", 2)
        keys = [NodePrivate.generate().public for _ in range(12)]
        flushed: list[int] = []

        async with linked_to_fake() as (ours, fake, peer), client_of(ours) as client:
            peer.say(present(*keys))
            await until(lambda: ours.status(fake.url).peers == len(keys))
            registry = ours.router.registry
            for key in keys:
                registry.remember(key.raw, registry.active[client.key.raw])
            flush = ours.router.flush

            def note() -> None:
                flushed.append(ours.counters.peer_gone_disconnected)
                flush()

            monkeypatch.setattr(ours.router, "flush", note)
            peer.say(b"".join(pack_peer_gone(key, DISCONNECTED) for key in keys))
            for key in keys:
                await expect_gone(client, key, DISCONNECTED)
        assert [count for count in flushed if 0 < count < len(keys)], "all sent in one turn"

    async def test_keys_beyond_the_limit_are_ignored(
        self, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        """They are counted and logged once; a key that leaves makes room."""
        monkeypatch.setattr(module, "MAX_MESH_KEYS", 3)
        keys = [NodePrivate.generate().public for _ in range(10)]

        async with linked_to_fake() as (ours, fake, peer):
            peer.say(present(*keys), present(keys[0]))
            await until(lambda: ours.counters.mesh_keys_not_noted == 7)
            assert [key for key in keys if ours.way(key)] == keys[:3]
            assert ours.status(fake.url).peers == 3
            peer.say(pack_peer_gone(keys[0], DISCONNECTED), present(keys[9]))
            await until(lambda: ours.way(keys[9]))
            assert len(ours.router.forwarders) == 3
        assert sum("more than 3 keys" in line for line in lines(caplog)) == 1

    async def test_after_not_here_the_present_keys_are_requested_again(self) -> None:
        """Go's relays send "not here" and "present" in no fixed order, so the list is requested
        again, but not for each such message."""
        async with linked_to_fake() as (ours, _, peer):
            peer.say(present(A, B), pack_peer_gone(A, NOT_HERE))
            await peer.expect(FrameType.WATCH_CONNS)
            await until(lambda: not ours.way(A))
            peer.say(present(A))
            await until(lambda: ours.way(A))
            peer.say(pack_peer_gone(A, NOT_HERE), pack_peer_gone(B, NOT_HERE))
            await until(lambda: not ours.way(B))
            assert peer.reader.at_eof() is False
            ours.mesh.set_hosts([])
            assert await peer.gone() == b""

    async def test_a_later_not_here_is_followed_up_at_the_next_message(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Once `_ASK_AGAIN` has passed, any message triggers the request; one comes each minute."""
        async with linked_to_fake() as (ours, _, peer):
            peer.say(present(A), pack_peer_gone(A, NOT_HERE))
            await peer.expect(FrameType.WATCH_CONNS)
            peer.say(present(A), pack_peer_gone(A, NOT_HERE), present(B))
            await until(lambda: ours.way(B))
            assert not ours.way(A)
            monkeypatch.setattr(module, "_ASK_AGAIN", 0.0)
            peer.say(pack_peer_gone(B, DISCONNECTED))
            await peer.expect(FrameType.WATCH_CONNS)

    async def test_a_client_gets_peer_gone_at_once(self) -> None:
        """Without waiting for a tick; also when the link breaks."""
        async with linked_to_fake(retry=100) as (ours, fake, peer), client_of(ours) as c:
            ours.relay._running().stop()  # no tick that would flush
            peer.say(present(A, B))
            await until(lambda: ours.way(B))
            registry = ours.router.registry
            for key in (A, B):
                registry.remember(key.raw, registry.active[c.key.raw])
            peer.say(pack_peer_gone(A, DISCONNECTED))
            await expect_gone(c, A, DISCONNECTED)
            peer.cut()
            await expect_gone(c, B, DISCONNECTED)
            status = ours.status(fake.url)
            assert (status.connected, status.peers) == (False, 0)
            assert status.error.startswith("connection lost: ")
            assert await messages_so_far(c) == []


class TestBreak:
    """Connections that break."""

    async def test_after_each_of_ten_breaks_the_link_is_restored(self) -> None:
        """The twin of TestBreakWatcherConn."""
        async with meshed() as (left, right), client_of(right) as b, client_of(left) as a:
            await left.learns(b)
            url = right.relay.url
            for _ in range(10):
                since = left.status(url).since
                (connection,) = right.router.registry.connections_of(left.relay.public_key.raw)
                connection.sink.end(EndReason.MESH_PEER, How.NOW, "for a test")
                await until(lambda: left.status(url).since > since)  # noqa: B023
                await linked(left)
                await left.learns(b)
                assert left.status(url).peers == 1
                await passes(a, b)
            assert left.counters.forwarder_delete_other_value == 0
            assert len(left.router.forwarders) == 1

    async def test_a_relay_that_does_not_read_is_disconnected(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A write that waits too long ends the connection.

        Queued packets are counted as dropped.
        """
        assert client_connection.FORWARD_TIMEOUT == 5.0
        monkeypatch.setattr(client_connection, "FORWARD_TIMEOUT", 0.1)

        async with linked_to_fake(retry=100) as (ours, fake, peer), client_of(ours) as c:
            peer.writer.transport.pause_reading()  # type: ignore[attr-defined]
            peer.say(present(A))
            await until(lambda: ours.way(A))
            sent = 0
            while ours.way(A):
                for _ in range(50):
                    c.session.send_packet(A, bytes(60_000))
                sent += 50
                c.write()
                await c.ping()
            # The forwarder is removed a moment before the loop of the link gets the error.
            await until(lambda: ours.status(fake.url).error != "")
            status = ours.status(fake.url)
            assert not status.connected
            assert "the relay took no packet for 0.1 s" in status.error
            counters = ours.counters
            out, down = ours.forwarded[0], counters.dropped(DropReason.MESH_LINK_DOWN)
            full = counters.dropped(DropReason.MESH_LINK_FULL)
            unknown = counters.dropped(DropReason.UNKNOWN_DEST)
            # Packets that were queued but never written do not count as forwarded.
            assert sent == out + down + full + unknown
            assert down > 0

    async def test_a_different_mesh_key_is_reported_as_the_probable_cause(
        self, caplog: pytest.LogCaptureFixture
    ) -> None:
        """The error says what to do, and is logged once."""
        caplog.set_level(logging.INFO)

        async with node(config(mesh_key=OTHER_KEY)) as far, node() as ours:
            url = far.relay.url
            ours.mesh.set_hosts([url])
            await until(lambda: far.counters.accepts >= 3)
            status = ours.status(url)
            assert not status.connected
            for text in (status.error, *lines(caplog)):
                assert "its mesh key probably differs from ours" in text
                assert "the same mesh key" in text
            (line,) = lines(caplog)
            assert line.startswith(f"mesh with {url}: ")
            assert far.relay.clients <= 1
            await ours.mesh.aclose()

    @pytest.mark.parametrize("how", ["no login", "restarting", "refused", "nonsense"])
    async def test_each_failure_has_its_own_error(self, how: str) -> None:
        """The mesh key is named only if it may be the cause."""
        async with fake_relay() as fake, node(hosts=[fake.url], retry=100) as ours:
            if how == "refused":
                peer = await fake.accept()
                await peer.head()
                peer.say(b"HTTP/1.1 404 Not Found\r\nContent-Length: 4\r\n\r\nn\x1bpe")
                expected = "404"
            elif how == "nonsense":
                peer = await fake.accept()
                await peer.head()
                peer.say(b"SSH-2.0-OpenSSH_9.6\r\n\r\n")
                expected = "derphttp.Client"
            elif how == "no login":
                peer = await fake.serve()
                peer.hang_up()
                expected = "its mesh key probably differs"
            else:
                peer = await fake.serve()
                peer.say(pack_restarting(0.0, 1.0))
                peer.hang_up()
                expected = "EOF"
            await until(lambda: ours.status(fake.url).error not in ("", module._NOT_YET))
            error = ours.status(fake.url).error
            assert expected in error
            assert error.isprintable()
            assert ("mesh key" in error) == (how == "no login")
            await ours.mesh.aclose()

    async def test_a_host_that_does_not_listen_yet_is_retried(
        self, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """The link is tried again and again (a twin of TestNotifyError), logged once, and works."""
        caplog.set_level(logging.INFO)
        failures: list[str] = []
        failed = MeshLog.failed

        def counted(log: MeshLog, text: str, bug: Exception | None) -> None:
            failures.append(text)
            failed(log, text, bug)

        monkeypatch.setattr(MeshLog, "failed", counted)

        async with node() as gone:
            address, url = "{}:{}".format(*gone.relay.address), gone.relay.url
        failures.clear()
        async with node(hosts=[url]) as ours:
            await until(lambda: len(failures) == 3)
            assert "refused" in ours.status(url).error
            assert len(lines(caplog)) == 1
            async with node(config(address=address)):
                await linked(ours)
                assert ours.status(url).error == ""
                assert lines(caplog)[1:] == [f"mesh with {url}: connected again"]
                await ours.mesh.aclose()

    async def test_a_bug_does_not_end_the_link(
        self, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """It is logged with its traceback, and the relay connects again."""
        async with node() as far, node() as ours, client_of(far) as b:
            add, failures = ours.router.add_forwarder, iter([1])

            def fails_once(*args: object) -> None:
                for _ in failures:
                    raise ZeroDivisionError
                add(*args)  # type: ignore[arg-type]

            monkeypatch.setattr(ours.router, "add_forwarder", fails_once)
            ours.mesh.set_hosts([far.relay.url])
            await ours.learns(b)
            (record,) = [r for r in caplog.records if r.name == "pyderp.mesh"]
            assert record.exc_info is not None
            await ours.mesh.aclose()


class TestHosts:
    """Changes of the list of hosts."""

    async def test_the_list_can_change_while_the_relay_runs(self) -> None:
        """New links are made, removed ones end with all their keys, the others stay connected."""
        async with node() as ours, node() as one, node() as two, node() as three:
            urls = [each.relay.url for each in (one, two, three)]
            ours.mesh.set_hosts(urls[:2])
            await linked(ours)
            async with client_of(one) as c1, client_of(two) as c2, client_of(three) as c3:
                await ours.learns(c1, c2)
                key = ours.relay.public_key.raw
                kept = two.router.registry.connections_of(key)
                ours.mesh.set_hosts([urls[2], f" {urls[1]}", urls[2]])
                await ours.learns(c2, c3)
                await until(lambda: not one.router.registry.connections_of(key))
                assert ours.way(c1) is None
                assert two.router.registry.connections_of(key) == kept
                assert [s.host for s in ours.mesh.status()] == [urls[2], urls[1]]
                assert two.counters.accepts == three.counters.accepts == 2
            await ours.mesh.aclose()
            assert ours.mesh.status() == []

    @pytest.mark.parametrize("bad", ["a/b/c", "", "ftp://x/derp"])
    async def test_a_list_with_a_bad_entry_changes_nothing(self, bad: str) -> None:
        async with meshed() as (left, right):
            before = left.mesh.status()
            with pytest.raises(ConfigError):
                left.mesh.set_hosts(["http://127.0.0.1:1/derp", bad])
            assert left.mesh.status() == before
            assert left.status(right.relay.url).connected

    async def test_a_bad_proxy_setting_is_an_error_at_once(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("TS_DEBUG_DERP_WS_CLIENT", "perhaps")

        async with node(client_config=ClientConfig()) as ours:
            with pytest.raises(ConfigError, match="TS_DEBUG_DERP_WS_CLIENT"):
                ours.mesh.set_hosts(["a"])
            assert ours.mesh.status() == []

    async def test_a_dial_host_is_dialed_and_the_host_is_verified(self, tmp_path: Path) -> None:
        """TCP goes to the dial host, on the port before the slash; certificate and SNI are the
        host's. A relay without a trusted certificate gets no login."""
        name = "derp.example.com"
        write_pair(tmp_path, name)
        tls = ManualTLS(certdir=tmp_path, hostname=name)
        trusting = ClientConfig(
            network=NetworkSettings(), tls=TLSConfig(extra_roots=[tmp_path / f"{name}.crt"])
        )

        async with node(config(tls=tls)) as far:
            port = far.relay.address[1]
            host = f"{name}:{port}/127.0.0.1"
            async with node(hosts=[host], client_config=trusting) as ours:
                await linked(ours)
                await ours.mesh.aclose()
            async with node(hosts=[host], client_config=CLIENT) as ours:
                await until(lambda: "self-signed" in ours.status(host).error)
                await ours.mesh.aclose()


class TestEnd:
    """`aclose`, in whatever state the links are."""

    @pytest.mark.parametrize("when", ["connecting", "waiting", "connected"])
    async def test_closing_leaves_no_task_connection_or_forwarder(self, when: str) -> None:
        async with fake_relay() as fake, node(retry=100) as ours:
            tasks = asyncio.all_tasks()
            ours.mesh.set_hosts([fake.url])
            peer = await fake.accept()
            if when == "waiting":
                peer.cut()
                await until(lambda: "not connected" not in ours.status(fake.url).error)
            elif when != "connecting":
                await peer.serve()
                assert peer.key is not None
                peer.say(present(peer.key, A))
                await until(lambda: ours.way(A))
            async with asyncio.timeout(5):
                await ours.mesh.aclose()
                await ours.mesh.aclose()
            assert asyncio.all_tasks() == tasks
            assert len(ours.router.forwarders) == 0
            await peer.gone()

    @pytest.mark.parametrize("turns", range(12))
    async def test_closing_while_the_connection_breaks_ends(self, turns: int) -> None:
        """The cancellation is not lost while the old connection is being closed."""
        async with linked_to_fake(retry=100) as (ours, _, peer):
            peer.cut()
            for _ in range(turns):
                await asyncio.sleep(0)
            async with asyncio.timeout(5):
                await ours.mesh.aclose()

    async def test_packets_queued_at_the_end_are_counted_as_dropped(self) -> None:
        """Also those that are being written."""
        async with linked_to_fake(retry=100) as (ours, _, peer):
            peer.writer.transport.pause_reading()  # type: ignore[attr-defined]
            peer.say(present(A))
            await until(lambda: ours.way(A))
            way = ours.way(A)
            assert isinstance(way, MeshLink)
            # Until packets stay queued because the kernel accepts no more.
            while len(way._frames) < 30:
                for _ in range(30):
                    way.forward(B.raw, A.raw, bytes(60_000))
                await asyncio.sleep(0.01)
            waiting = len(way._frames)
            await ours.mesh.aclose()
            assert ours.counters.dropped(DropReason.MESH_LINK_DOWN) == waiting
