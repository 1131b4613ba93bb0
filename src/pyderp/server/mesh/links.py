"""The mesh: a loop for each other relay watches its clients and forwards packets to them.

The loop logs in to the other relay as a client with the mesh key. For each client there, the link
becomes a forwarder in the router. Forwarded packets are written in batches.
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
"""Share of RETRY that is added at random, so that relays do not reconnect all at once."""
_ASK_AGAIN: Final = 60.0
"""Seconds between two requests for all keys of the other relay (WatchConns)."""
_KEYS_A_TURN: Final = 2_000
"""Keys of a broken link that are removed in one turn of the loop, in about 4 ms."""
_GONE_FRAMES_A_TURN: Final = 2_000
"""PeerGone frames to clients here that one link may cause in one turn of the loop."""
_LONGEST_ERROR: Final = 500
_NOT_YET: Final = "not connected yet"
_KEYS_DIFFER: Final = (
    "it accepted the login and closed the connection at WatchConns, so its mesh key probably "
    "differs from ours: give both relays the same mesh key"
)
_LOGIN_REFUSED: Final = (
    "it closed the connection during the login; if it verifies its clients, its mesh key probably "
    "differs from ours: give both relays the same mesh key"
)


@dataclass(frozen=True, slots=True)
class MeshStatus:
    """The state of one link."""

    host: str
    """The host as the operator wrote it, without a password."""

    connected: bool
    """Presence updates arrive and packets can be forwarded."""

    peers: int
    """Clients of the other relay."""

    since: datetime
    """When `connected` last changed, or when the loop began; UTC."""

    error: str
    """The last error; empty while connected."""

    is_self: bool
    """The host is this relay itself, so there is no link."""


class Mesh:
    """The links of a relay to the other relays of its mesh; used on one event loop.

    Args:
        private_key: the relay's key.
        mesh_key: the same for all relays of the mesh.
        schedule_flush: called when the router may have frames to write.
        client_config: trust, proxies and timeouts; the mesh key is added.
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
        self._loops: dict[tuple[str, str], tuple[_OtherRelay, asyncio.Task[None]]] = {}
        self._stopping: set[asyncio.Task[None]] = set()

    def set_hosts(self, hosts: Sequence[str]) -> None:
        """Have links to these relays and no others; existing links to them stay.

        The list may contain this relay itself, to which there is no link.

        Raises:
            ConfigError: an entry or the environment's proxies cannot be used; nothing changes.
        """
        if hosts and self._own.config.network is None:
            # Each attempt reads it again; here the caller gets the error.
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

    def _begin(self, host: MeshHost) -> tuple[_OtherRelay, asyncio.Task[None]]:
        other = _OtherRelay(host, self._own)
        name = f"pyderp mesh with {host.label}"
        return other, asyncio.create_task(other.run(), name=name)

    async def aclose(self) -> None:
        """End all links; takes at most a second."""
        self.set_hosts(())
        while self._stopping:
            await asyncio.wait(self._stopping)

    def status(self) -> list[MeshStatus]:
        """Return the state of each link, in the order of the list."""
        return [other.status() for other, _ in self._loops.values()]


@dataclass(frozen=True, slots=True)
class _Own:
    """What all links share."""

    router: Router
    private_key: NodePrivate
    config: ClientConfig
    schedule_flush: Callable[[], None]
    retry: float


class _OtherRelay:
    """The link to one other relay."""

    def __init__(self, host: MeshHost, own: _Own) -> None:
        self._host = host
        self._own = own
        self._log = MeshLog(host.label, asyncio.get_running_loop().time)
        self._work = asyncio.Event()
        self._link = MeshLink(self._work.set)
        self._present: set[bytes] = set()
        self._logged_in = False
        self._sent_keys = False
        """The other relay has sent a key on this connection."""
        self._is_full = False
        """Too many keys on this connection were logged."""
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
        """Connect and reconnect until cancelled, or until the other relay is this one."""
        while not self._is_self:
            try:
                await self._connect()
            except Exception as e:  # the relay goes on without this link, whatever the error
                self._failed(e)
                if _is_cancelled():
                    # Something in the task turned a cancellation into another error.
                    raise asyncio.CancelledError from without_frames(e)
                await asyncio.sleep(self._own.retry * (1 + _JITTER * random.random()))

    async def _connect(self) -> None:
        config = self._own.config
        if config.websocket is None:
            # No fallback to a websocket: the operator named the relay, and should see a refusal.
            network = config.network or NetworkSettings.from_environment()
            config = replace(config, websocket=network.websocket)
        dialer = self._host.dialer(config.network)
        if dialer is not None:
            config = replace(config, dialer=dialer)
        # A new client for each connection, so that it never reconnects by itself.
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
            gone_before = counters.peer_gone_disconnected
            for message in messages:
                self._handle(message)
                if counters.peer_gone_disconnected - gone_before > _GONE_FRAMES_A_TURN:
                    # Thousands of keys may leave at once, and each may cause thousands of frames.
                    self._own.schedule_flush()
                    await asyncio.sleep(0)
                    gone_before = counters.peer_gone_disconnected
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
                # This relay's own login there is not a client.
                if peer != self._own.private_key.public:
                    self._on_present(peer.raw)
            case PeerGone(peer, reason):
                self._on_gone(peer.raw, reason)
            case ServerInfo():
                self._logged_in = True

    def _on_present(self, key: bytes) -> None:
        # Bounded, because the other relay may announce any number of keys.
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

    def _on_gone(self, key: bytes, reason: int) -> None:
        if key not in self._present:
            return
        self._present.discard(key)
        self._own.router.remove_forwarder(key, self._link)
        # Go's relay sends its answers to packets and its presence updates in no fixed order. A
        # client that reconnects there at the wrong moment may be present in spite of this frame.
        if reason == PeerGoneReason.NOT_HERE:
            self._doubt = True

    # To the other relay

    async def _pump(self, client: Client) -> None:
        try:
            while True:
                await self._work.wait()
                self._work.clear()
                # As much as the client buffers before `forward_frames` waits.
                while batch := self._link.batch(CLIENT_WRITE_BUFFER):
                    await client.forward_frames(batch)
                    # Only now: frames on a link that breaks meanwhile count as dropped.
                    self._link.written(len(batch))
                    self._own.router.counters.packets_forwarded_out += len(batch)
        except (ConnectionClosed, NotConnected):
            pass  # `_receive` raises the same, with the reason

    # Changes

    def _connected(self) -> None:
        """Mark the link as up: the first key arrived, so the other relay took the mesh key."""
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

        Until a key is removed, packets for it are dropped as `mesh_link_down`. The task that
        connects runs this, so the link is not used again before the last slice.
        """
        router, present = self._own.router, self._present
        cancelled: asyncio.CancelledError | None = None
        counters = router.counters
        while present:
            gone_before = counters.peer_gone_disconnected
            for _ in range(min(len(present), _KEYS_A_TURN)):
                router.remove_forwarder(present.pop(), self._link)
                if counters.peer_gone_disconnected - gone_before > _GONE_FRAMES_A_TURN:
                    break
            self._own.schedule_flush()
            try:
                await asyncio.sleep(0)
            except asyncio.CancelledError as e:
                cancelled = e  # remove all keys first: the link never returns
        if cancelled is not None:
            raise cancelled

    def _failed(self, error: Exception) -> None:
        text = describe(error)
        if isinstance(error, ConnectionClosed):
            if not self._sent_keys and _hung_up(error):
                text = f"{_KEYS_DIFFER if self._logged_in else _LOGIN_REFUSED} ({text})"
            else:
                text = f"connection lost: {text}"
        self._error = printable(text, _LONGEST_ERROR)
        self._log.failed(self._error, None if isinstance(error, (DerpError, OSError)) else error)


def _is_cancelled() -> bool:
    # A function of its own: a local in the task's frames would make a reference cycle.
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0


def _hung_up(error: ConnectionClosed) -> bool:
    """Whether the other relay closed the connection without announcing a restart."""
    cause = error.__cause__
    by_them = cause is None or (isinstance(cause, OSError) and not isinstance(cause, TimeoutError))
    return by_them and error.restarting is None
