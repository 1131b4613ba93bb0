"""The mesh: one loop for each other relay, that watches its clients and forwards to them.

A loop logs in to the other relay as an ordinary client with the mesh key. Each client there
becomes a forwarder in the router; what the router forwards is written in batches.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Final

from pyderp.client.client import Client
from pyderp.client.config import ClientConfig
from pyderp.defaults import CLIENT_WRITE_BUFFER, MAX_MESH_KEYS
from pyderp.errors import ConnectionClosed, DerpError, NotConnected, without_frames
from pyderp.keys import MeshKey, NodePrivate
from pyderp.net.settings import NetworkSettings
from pyderp.net.streams import describe
from pyderp.relay.delivery import MeshLink
from pyderp.relay.router import Router
from pyderp.server.mesh.hosts import MeshHost, MeshLog, parse_mesh_host
from pyderp.tasks import run_together
from pyderp.text import printable
from pyderp.wire.frames import PeerGoneReason
from pyderp.wire.messages import Message, PeerGone, PeerPresent, ServerInfo

__all__ = ["Mesh", "MeshHost", "MeshStatus", "parse_mesh_host"]

log = logging.getLogger("pyderp.mesh")

RETRY: Final = 5.0
"""Seconds between a failure and the next attempt."""
_JITTER: Final = 0.2
"""Part of it that is added at random, so that a mesh does not reconnect in step."""
_ASK_AGAIN: Final = 60.0
"""Seconds between two questions for the whole picture."""
_KEYS_A_TURN: Final = 2_000
"""Keys of a broken link that are removed in one turn of the loop, in about 4 ms."""
_TOLD_A_TURN: Final = 2_000
"""PeerGone frames to clients here that the news of one link may cause in one turn of the loop."""
_LONGEST_ERROR: Final = 500
_NOT_YET: Final = "not connected yet"
_KEYS_DIFFER: Final = (
    "it took the login and hung up when asked who is there, so its mesh key probably differs "
    "from ours: give both relays the same mesh key"
)
_NOT_LET_IN: Final = (
    "it hung up during the login; if it verifies its clients, its mesh key probably differs "
    "from ours: give both relays the same mesh key"
)


@dataclass(frozen=True, slots=True)
class MeshStatus:
    """How one host of the list is doing."""

    host: str
    """As it was given, without a password."""

    connected: bool
    """Presence updates arrive and packets can be forwarded."""

    peers: int
    """Keys that it has."""

    since: datetime
    """When `connected` last changed, or the loop began; in UTC."""

    error: str
    """What went wrong last; empty while connected."""

    is_self: bool
    """The host is this very relay: there is no connection, and there will be none."""


class Mesh:
    """The links of a relay to the others of its mesh. It belongs to the running event loop.

    Args:
        private_key: the relay's own.
        mesh_key: the same on all relays of the mesh.
        schedule_flush: called after changes of the router that may have left something to write.
        client_config: trust, proxies and time limits; the mesh key is put in.
        retry: seconds between a failure and the next attempt.
    """

    def __init__(
        self,
        router: Router,
        private_key: NodePrivate,
        mesh_key: MeshKey,
        *,
        schedule_flush: Callable[[], None],
        client_config: ClientConfig | None = None,
        retry: float = RETRY,
    ) -> None:
        config = client_config or ClientConfig()
        self._own = _Own(
            router,
            private_key,
            replace(config, mesh_key=mesh_key, watch_connection_changes=True),
            schedule_flush,
            retry,
        )
        self._loops: dict[tuple[str, str], tuple[_Neighbour, asyncio.Task[None]]] = {}
        self._stopping: set[asyncio.Task[None]] = set()

    def set_hosts(self, hosts: Sequence[str]) -> None:
        """Be linked to these relays and no others; links that stay are not disturbed.

        This relay itself may be among them: it is found out, and left alone.

        Raises:
            ConfigError: an entry or the environment's proxies cannot be used; nothing changed.
        """
        if hosts and self._own.config.network is None:
            # As each attempt does, but here the caller gets the error.
            NetworkSettings.from_environment()
        wanted = {(host.url, host.dial): host for host in map(parse_mesh_host, hosts)}
        loops = {
            key: self._loops.pop(key) if key in self._loops else self._begin(host)
            for key, host in wanted.items()
        }
        for _, task in self._loops.values():
            task.cancel()
            self._stopping.add(task)
            task.add_done_callback(self._stopping.discard)
        self._loops = loops

    def _begin(self, host: MeshHost) -> tuple[_Neighbour, asyncio.Task[None]]:
        neighbour = _Neighbour(host, self._own)
        name = f"pyderp mesh with {host.label}"
        return neighbour, asyncio.create_task(neighbour.run(), name=name)

    async def aclose(self) -> None:
        """End all links, which takes a second at most."""
        self.set_hosts(())
        while self._stopping:
            await asyncio.wait(self._stopping)

    def status(self) -> list[MeshStatus]:
        """How each host is doing, in the order of the list."""
        return [neighbour.status() for neighbour, _ in self._loops.values()]


@dataclass(frozen=True, slots=True)
class _Own:
    """What all links of a relay share."""

    router: Router
    private_key: NodePrivate
    config: ClientConfig
    schedule_flush: Callable[[], None]
    retry: float


class _Neighbour:
    """The loop for one other relay."""

    def __init__(self, host: MeshHost, own: _Own) -> None:
        self._host = host
        self._own = own
        self._log = MeshLog(host.label, asyncio.get_running_loop().time)
        self._work = asyncio.Event()
        self._link = MeshLink(self._work.set)
        self._present: set[bytes] = set()
        self._logged_in = False
        self._sent_keys = False
        """The other relay sent a key on this connection."""
        self._is_full = False
        """The log says already that this connection brought too many keys."""
        self._doubt = False
        self._asked_at = -_ASK_AGAIN
        self._since = datetime.now(UTC)
        self._error = _NOT_YET
        self._is_self = False

    def status(self) -> MeshStatus:
        return MeshStatus(
            host=self._host.label,
            connected=self._link.connected,
            peers=len(self._present),
            since=self._since,
            error=self._error,
            is_self=self._is_self,
        )

    async def run(self) -> None:
        """Be connected, again and again, until cancelled or the other relay is this one."""
        while not self._is_self:
            try:
                await self._connect()
            except Exception as e:  # whatever it is, the relay goes on without
                self._failed(e)
                if _is_cancelled():
                    # Whatever ended with an error and forgot a cancel that came meanwhile.
                    raise asyncio.CancelledError from without_frames(e)
                await asyncio.sleep(self._own.retry * (1 + _JITTER * random.random()))

    async def _connect(self) -> None:
        config = self._own.config
        if config.websocket is None:
            # A relay is told where the others are: a refusal is for its operator to see.
            network = config.network or NetworkSettings.from_environment()
            config = replace(config, websocket=network.websocket)
        dialer = self._host.dialer(config.network)
        if dialer is not None:
            config = replace(config, dialer=dialer)
        # A client for each connection: it cannot connect anew behind our back.
        async with Client.for_url(
            self._host.url, private_key=self._own.private_key, config=config
        ) as client:
            self._logged_in = self._sent_keys = self._is_full = False
            await client.connect()
            if client.server_public_key == self._own.private_key.public:
                self._is_self = True
                self._error = ""
                log.info("mesh with %s: that is this relay itself; left alone", self._host.label)
                return
            await self._use(client)

    async def _use(self, client: Client) -> None:
        try:
            await run_together(
                asyncio.create_task(self._receive(client)),
                asyncio.create_task(self._pump(client), name=f"pyderp mesh to {self._host.label}"),
            )
        finally:
            self._disconnected()
            await self._forget_keys()

    # From the other relay

    async def _receive(self, client: Client) -> None:
        loop = asyncio.get_running_loop()
        counters = self._own.router.counters
        while True:
            messages = await client.receive_many()
            told = counters.peer_gone_disconnected
            for message in messages:
                self._handle(message)
                if counters.peer_gone_disconnected - told > _TOLD_A_TURN:
                    # Thousands of keys may leave at once, each known to thousands of clients.
                    self._own.schedule_flush()
                    await asyncio.sleep(0)
                    told = counters.peer_gone_disconnected
            self._own.schedule_flush()
            if self._doubt and loop.time() - self._asked_at >= _ASK_AGAIN:
                self._doubt = False
                self._asked_at = loop.time()
                await client.watch_connection_changes(again=True)

    def _handle(self, message: Message) -> None:
        match message:
            case PeerPresent(peer):
                if not self._link.connected:
                    self._connected()
                # Our own login there: nothing leads to ourselves by way of others.
                if peer != self._own.private_key.public:
                    self._came(peer.raw)
            case PeerGone(peer, reason):
                self._gone(peer.raw, reason)
            case ServerInfo():
                self._logged_in = True

    def _came(self, key: bytes) -> None:
        # Each key costs memory here, and the other relay may name any number.
        if len(self._present) >= MAX_MESH_KEYS and key not in self._present:
            self._own.router.counters.mesh_keys_not_noted += 1
            if not self._is_full:
                self._is_full = True
                log.warning(
                    "mesh with %s: it has more than %d keys; packets to the others are dropped",
                    self._host.label,
                    MAX_MESH_KEYS,
                )
            return
        self._present.add(key)
        self._own.router.add_forwarder(key, self._link)

    def _gone(self, key: bytes, reason: int) -> None:
        if key not in self._present:
            return
        self._present.discard(key)
        self._own.router.remove_forwarder(key, self._link)
        # Go's relay sends its answers to packets and its news of who comes and goes in no
        # fixed order: who reconnects there at the wrong moment may be present all the same.
        if reason == PeerGoneReason.NOT_HERE:
            self._doubt = True

    # To the other relay

    async def _pump(self, client: Client) -> None:
        try:
            while True:
                await self._work.wait()
                self._work.clear()
                # No more than may wait for the kernel before a write waits.
                while batch := self._link.batch(CLIENT_WRITE_BUFFER):
                    await client.forward_frames(batch)
                    # Only now: what a broken link takes with it is dropped, not forwarded.
                    self._link.written(len(batch))
                    self._own.router.counters.packets_forwarded_out += len(batch)
        except (ConnectionClosed, NotConnected):
            pass  # the receiver hears of it, too, and says why

    # Changes

    def _connected(self) -> None:
        """It sent the first key (our own, at least), so it lets us watch."""
        self._link.connected = self._sent_keys = True
        self._since = datetime.now(UTC)
        self._error = ""
        self._log.connected()

    def _disconnected(self) -> None:
        if self._link.connected:
            self._since = datetime.now(UTC)
        self._own.router.disconnect_link(self._link)
        self._doubt = False

    async def _forget_keys(self) -> None:
        """Remove all keys of the broken link, a slice in each turn of the loop.

        Until its turn comes, packets for a key are dropped as `mesh_link_down`. The link is
        not used again before the last slice, as this runs in the task that connects.
        """
        router, present = self._own.router, self._present
        cancelled: asyncio.CancelledError | None = None
        counters = router.counters
        while present:
            told = counters.peer_gone_disconnected
            for _ in range(min(len(present), _KEYS_A_TURN)):
                router.remove_forwarder(present.pop(), self._link)
                if counters.peer_gone_disconnected - told > _TOLD_A_TURN:
                    break
            self._own.schedule_flush()
            try:
                await asyncio.sleep(0)
            except asyncio.CancelledError as e:
                cancelled = e  # keys that stayed would lead to a link that never returns
        if cancelled is not None:
            raise cancelled

    def _failed(self, error: Exception) -> None:
        text = describe(error)
        if isinstance(error, ConnectionClosed):
            if not self._sent_keys and _hung_up(error):
                text = f"{_KEYS_DIFFER if self._logged_in else _NOT_LET_IN} ({text})"
            else:
                text = f"connection lost: {text}"
        self._error = printable(text, _LONGEST_ERROR)
        self._log.failed(self._error, None if isinstance(error, (DerpError, OSError)) else error)


def _is_cancelled() -> bool:
    # Not a local of what runs in the task: cancelled, the task holds its frames.
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0


def _hung_up(error: ConnectionClosed) -> bool:
    """The other side closed the connection, and did not say that it restarts."""
    cause = error.__cause__
    by_them = cause is None or (isinstance(cause, OSError) and not isinstance(cause, TimeoutError))
    return by_them and error.restarting is None
