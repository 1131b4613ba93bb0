"""The client: lazy, one connection at a time, a new one when the next call needs it."""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from types import TracebackType
from typing import Final, Literal, TypeAlias

from pyderp.client.config import ClientConfig
from pyderp.client.connect import (
    Connected,
    Progress,
    RegionRoute,
    Route,
    StreamRoute,
    UrlRoute,
)
from pyderp.client.connection import Connection, check_packet
from pyderp.client.iterate import messages
from pyderp.client.login import Login
from pyderp.client.sealed import SealedPeer
from pyderp.client.stats import ClientStats
from pyderp.client.target import GetRegion, parse_url
from pyderp.defaults import PING_TIMEOUT
from pyderp.derpmap import DERPNode, DERPRegion
from pyderp.errors import (
    ClientClosed,
    ConnectError,
    ConnectionClosed,
    DerpError,
    LocalProtocolError,
    NotConnected,
)
from pyderp.keys import NodePrivate, NodePublic
from pyderp.net.streams import Stream, describe
from pyderp.net.tls import TlsLink, TLSState
from pyderp.wire.frames import (
    PROTOCOL_VERSION,
    pack_close_peer,
    pack_note_preferred,
    pack_ping,
    pack_pong,
    pack_watch_conns,
)
from pyderp.wire.info import ClientInfo
from pyderp.wire.messages import Message

__all__ = ["Client", "ConnectionState"]

ConnectionState: TypeAlias = Literal["not connected", "connecting", "connected", "closed"]

_CLOSED: Final = "derphttp.Client closed"
_NOT_CONNECTED: Final = "client not connected"
_SEALED_PEERS: Final = 10_000


class Client:
    """A client of a DERP relay (`derphttp.Client`).

    Make one with `for_url`, `for_region`, `for_latency` or `over_stream`; none of them does
    I/O. The first call that needs a connection makes one. When a connection ends, the call
    that notices raises `ConnectionClosed`, and the next call that needs one connects again.
    `async for message in client` does that by itself.

    A relay's operator can read and forge what is sent: use `sealed` for what is private.

    Any number of tasks may send; one task at a time may receive. All belong to one event loop.
    """

    def __init__(self, route: Route, private_key: NodePrivate | None, config: ClientConfig) -> None:
        self._route = route
        self._private = private_key or NodePrivate.generate()
        self._config = config
        self._stats = ClientStats()
        self._lock = asyncio.Lock()
        self._connection: Connection | None = None
        self._generation = 0
        self._attempt: asyncio.Timeout | None = None
        self._closed = False
        self.closing = asyncio.Event()
        """Set when the client is closed."""
        self._receiving: Connection | None = None
        self._unsent: Connection | None = None
        self._server_key: NodePublic | None = None
        self._preferred = False
        self._can_ack_pings = config.can_ack_pings
        self._watch = config.watch_connection_changes
        self._latency_only = False
        self._sealed: dict[NodePublic, SealedPeer] = {}

    # Making one

    @classmethod
    def for_url(
        cls,
        url: str,
        *,
        private_key: NodePrivate | None = None,
        config: ClientConfig | None = None,
    ) -> Client:
        """A client of one relay (`derphttp.NewClient`).

        Args:
            url: `https://host[:port]/derp`, or `http://`; nothing is added to its path.
            private_key: who we are; by default a new key.

        Raises:
            ConfigError: the URL cannot be used.
        """
        config = config or ClientConfig()
        return cls(UrlRoute(parse_url(url), config), private_key, config)

    @classmethod
    def for_region(
        cls,
        region: DERPRegion | GetRegion,
        *,
        private_key: NodePrivate | None = None,
        config: ClientConfig | None = None,
    ) -> Client:
        """A client of a region's relays, tried in order (`derphttp.NewRegionClient`).

        Args:
            region: a region, or a function that is asked at every attempt and may return
                `None` while there is none.
        """
        config = config or ClientConfig()
        get_region = region if callable(region) else lambda: region
        return cls(RegionRoute(get_region, config), private_key, config)

    @classmethod
    def for_latency(cls, *, config: ClientConfig | None = None) -> Client:
        """A client for `dial_region_tls` only (`derphttp.NewNetcheckClient`)."""
        client = cls.for_region(lambda: None, config=config)
        client._latency_only = True  # noqa: SLF001 (one of our own)
        return client

    @classmethod
    def over_stream(
        cls,
        stream: Stream | Callable[[], Awaitable[Stream]],
        *,
        private_key: NodePrivate | None = None,
        config: ClientConfig | None = None,
    ) -> Client:
        """A DERP session over a stream that exists already (`derp.NewClient`); no HTTP.

        Args:
            stream: the relay's greeting is the next thing it brings. It belongs to the
                client then. Or a function that opens one, asked at every attempt.
        """
        return cls(StreamRoute(stream), private_key, config or ClientConfig())

    async def __aenter__(self) -> Client:
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.aclose()

    def __aiter__(self) -> AsyncIterator[Message]:
        return self.messages()

    def __str__(self) -> str:
        """Our short key and where it connects to, without passwords."""
        return f"<pyderp.Client {self.self_public_key.short()} url={self._route.label}>"

    __repr__ = __str__

    # Connecting and closing

    async def connect(self) -> None:
        """Connect, if not connected; sends and receives do it by themselves.

        Raises:
            ConnectError: it failed; `attempts` says how.
            ClientClosed: the client was closed.
        """
        await self._connect("derphttp.Client.Connect")

    async def _connect(self, label: str) -> Connection:
        async with self._lock:
            connection = self._connection
            if connection is not None:
                if not connection.ended:
                    return connection
                self._forget(connection, sending=False)
            return await self._attempt_connect(label)

    async def _ready(self, what: str) -> Connection:
        """The connection to use for a call; made if there is none.

        It may have ended: then the call that gets it reports that.
        """
        if self._closed:
            raise ClientClosed(_CLOSED)
        if self._connection is not None:
            return self._connection
        label = f"derphttp.Client.{what}"
        try:
            async with contextlib.AsyncExitStack() as stack:
                if self._config.connect_scope is not None:
                    await stack.enter_async_context(self._config.connect_scope())
                return await self._connect(label)
        except TimeoutError as e:
            # The scope's: ours has become a ConnectError on its way.
            raise ConnectError(
                f"{label} connect to {self._route.label}: the time of connect_scope is up",
                attempts=[e],
            ) from e

    async def _attempt_connect(self, label: str) -> Connection:
        if self._closed:
            raise ClientClosed(_CLOSED)
        if self._latency_only:
            raise LocalProtocolError("a client made by for_latency can only dial_region_tls")
        info = ClientInfo(
            mesh_key=self._config.mesh_key,
            version=PROTOCOL_VERSION,
            can_ack_pings=self._can_ack_pings,
            is_prober=self._config.is_prober,
            app_name=self._config.app_name,
        )
        progress = Progress()
        login = Login(self._private, info, preferred=self._preferred, watch=self._watch)
        try:
            async with asyncio.timeout(self._config.connect_timeout) as self._attempt:
                made = await self._route.connect(login, progress)
        except (DerpError, OSError) as e:
            if self._closed:
                raise ClientClosed(_CLOSED) from None
            self._stats.failed_connects += 1
            if isinstance(e, ConnectError):
                raise
            error = self._connect_error(label, e, progress)
            raise error from ExceptionGroup("attempts to connect", error.attempts)
        finally:
            self._attempt = None
        return self._connected(made, login)

    def _connected(self, made: Connected, login: Login) -> Connection:
        if self._closed:
            made.login.link.abort()
            raise ClientClosed(_CLOSED)
        self._generation += 1
        self._stats.connects += 1
        connection = self._connection = Connection(
            made.login.link,
            made.login.session,
            made.login.messages,
            generation=self._generation,
            stats=self._stats,
            tls=made.tls,
            receive_timeout=self._config.receive_timeout,
        )
        self._server_key = connection.server_key
        # What changed during the attempt.
        if self._preferred != login.preferred and not connection.ended:
            connection.send_frame(pack_note_preferred(self._preferred))
        if self._watch and not login.watch and not connection.ended:
            connection.send_frame(pack_watch_conns())
        return connection

    def _connect_error(self, label: str, error: Exception, progress: Progress) -> ConnectError:
        attempts = progress.attempts
        if error not in attempts:
            attempts = [*attempts, self._explained(error, progress)]
        detail = describe(attempts[0])
        if len(attempts) > 1:
            detail += f" (the first of {len(attempts)} nodes that failed)"
        return ConnectError(f"{label} connect to {self._route.label}: {detail}", attempts=attempts)

    def _explained(self, error: Exception, progress: Progress) -> Exception:
        """The same error, but a time-out that has words."""
        if not isinstance(error, TimeoutError) or str(error):
            return error
        timeout = self._config.connect_timeout
        return TimeoutError(f"no answer within {timeout:g} s, {progress.step}")

    def _forget(self, connection: Connection, *, sending: bool) -> None:
        """Close for reconnect: only if it is still the current one.

        So a sender and a receiver that fail together cannot close each other's new one.
        """
        connection.end(None, "error")
        if self._connection is connection:
            self._connection = None
            self._unsent = connection if connection.write_failed else None
        # What a receiver was told is still news for the next sender.
        if sending and self._unsent is connection:
            self._unsent = None

    async def aclose(self) -> None:
        """Close for good, at once but for what was sent before; cancels a connect. Idempotent.

        Calls that wait raise `ClientClosed`.
        """
        self._closed = True
        self.closing.set()
        if self._attempt is not None:
            # It may be over, and just not have come to say so.
            with contextlib.suppress(RuntimeError):
                self._attempt.reschedule(asyncio.get_running_loop().time())
        connection, self._connection = self._connection, None
        if connection is not None:
            await connection.aclose(ClientClosed(_CLOSED))

    # Receiving

    async def recv(self) -> Message:
        """The next message; connects first if need be. One task at a time.

        Raises:
            ConnectionClosed: the connection ended; said once, after all that had come.
            ConnectError: there was none and none could be made.
        """
        return (await self.recv_detail())[0]

    async def recv_detail(self) -> tuple[Message, int]:
        """As `recv`, and the generation of the connection that brought it, from 1."""
        connection = await self._messages_wait()
        message = connection.messages.popleft()
        if not connection.messages:
            connection.taken()
        return message, connection.generation

    async def receive_many(self) -> list[Message]:
        """All messages that are there, at least one; for programs that move data."""
        connection = await self._messages_wait()
        found = list(connection.messages)
        connection.messages.clear()
        connection.taken()
        return found

    async def _messages_wait(self) -> Connection:
        # A receiver stays with a connection until it has had all that came and the error,
        # also when a sender has connected anew meanwhile.
        connection = self._receiving
        if connection is None:
            connection = self._receiving = await self._ready("Recv")
        if not connection.messages:
            try:
                await connection.wait()
            except ConnectionClosed:
                self._receiving = None
                self._forget(connection, sending=False)
                raise
        return connection

    def messages(self, *, reconnect: bool = True) -> AsyncIterator[Message]:
        """All messages from now on; ends when the client is closed.

        Args:
            reconnect: connect again by itself, after a while that grows with each failure
                and that the relay may set (Restarting). Before the first success, what
                looks permanent is raised all the same (`is_transient`).
        """
        return messages(self, reconnect=reconnect)

    # Sending

    async def send(self, dst: NodePublic, data: bytes) -> None:
        """Send a packet of at most 64 KiB; waits while more than 64 KiB wait to leave.

        DERP never confirms delivery. What the relay's token bucket does not allow is
        dropped in silence and counted in `stats`.

        Raises:
            LocalProtocolError: too big; nothing happened.
            ConnectionClosed: the connection ended; what was sent last may be lost.
            ConnectError: there was none and none could be made.
        """
        check_packet(data)
        connection = self._connection
        if connection is None or self._unsent is not None:
            connection = await self._sender("Send")
        try:
            connection.send_packets(dst, (data,))
            if connection.backed_up:
                await connection.drain()
        except ConnectionClosed:
            self._forget(connection, sending=True)
            raise

    async def send_many(self, dst: NodePublic, packets: Iterable[bytes]) -> None:
        """Send several packets to one peer; as `send` for each, and cheaper."""
        packets = list(packets)
        for packet in packets:
            check_packet(packet)
        connection = self._connection
        if connection is None or self._unsent is not None:
            connection = await self._sender("Send")
        try:
            done = 0
            while done < len(packets):
                done = connection.send_packets(dst, packets, done)
                if connection.backed_up:
                    await connection.drain()
        except ConnectionClosed:
            self._forget(connection, sending=True)
            raise

    async def forward_packet(self, src: NodePublic, dst: NodePublic, data: bytes) -> None:
        """Send a packet on behalf of `src`; needs the mesh key, or the relay hangs up.

        Raises:
            as `send`; also `ConnectionClosed` when it cannot leave within five seconds.
        """
        check_packet(data)
        connection = await self._sender("ForwardPacket")
        try:
            if connection.forward_packet(src, dst, data):
                await connection.drain_forward()
        except ConnectionClosed:
            self._forget(connection, sending=True)
            raise

    async def close_peer(self, peer: NodePublic) -> None:
        """Ask the relay to close all connections of `peer`; needs the mesh key."""
        connection = await self._sender("ClosePeer")
        self._command(connection, pack_close_peer(peer))

    async def watch_connection_changes(self) -> None:
        """Be told of all who come and go, now and on each later connect; needs the mesh key."""
        if self._watch and self._connection is not None:
            return
        self._watch = True
        if self._connection is None:
            await self._connect("derphttp.Client.WatchConnectionChanges")
        else:
            self._command(self._connection, pack_watch_conns())

    async def _sender(self, what: str) -> Connection:
        unsent, self._unsent = self._unsent, None
        if unsent is not None and not self._closed:
            raise unsent.error("derp.Send")
        return self._connection or await self._ready(what)

    def _command(self, connection: Connection, frame: bytes) -> None:
        try:
            connection.send_frame(frame)
        except ConnectionClosed:
            self._forget(connection, sending=True)
            raise

    async def note_preferred(self, preferred: bool) -> None:
        """Tell the relay whether it is our home, now if connected and on each later connect."""
        if preferred == self._preferred:
            return
        self._preferred = preferred
        connection = self._connection
        if connection is not None:
            with contextlib.suppress(ConnectionClosed):
                self._command(connection, pack_note_preferred(preferred))

    def set_can_ack_pings(self, value: bool) -> None:
        """Whether later connects tell the relay that its pings will be answered."""
        self._can_ack_pings = value

    # Pings

    async def ping(self) -> float:
        """The round trip to the relay, in seconds; does not connect. May run side by side.

        Nobody need receive meanwhile, as long as no megabyte waits to be received.

        Raises:
            NotConnected: no connection.
            TimeoutError: no answer within five seconds; sooner with `asyncio.timeout`.
            ConnectionClosed: the connection ended meanwhile.
        """
        connection = self._current()
        data = os.urandom(8)
        try:
            async with asyncio.timeout(PING_TIMEOUT):
                return await connection.pong(data, pack_ping(data))
        except TimeoutError as e:
            raise TimeoutError(f"no pong within {PING_TIMEOUT:g} s") from e

    async def send_ping(self, data: bytes) -> None:
        """Send a Ping of eight bytes; its Pong is received as a message. Does not connect."""
        self._current().send_frame(pack_ping(data))

    async def send_pong(self, data: bytes) -> None:
        """Answer a Ping with its eight bytes. Does not connect."""
        self._current().send_frame(pack_pong(data))

    def _current(self) -> Connection:
        if self._closed:
            raise ClientClosed(_CLOSED)
        if self._connection is None or self._connection.ended:
            raise NotConnected(_NOT_CONNECTED)
        return self._connection

    # Others

    async def dial_region_tls(self, region: DERPRegion) -> tuple[TlsLink, DERPNode]:
        """Connect to a region by TCP and TLS only; to measure (`DialRegionTLS`).

        Returns:
            the stream, which belongs to the caller (`abort` it), and the node it leads to.

        Raises:
            DialError: no node could be reached.
            TLSError: no node that was reached passed the handshake.
            TimeoutError: it took more than `connect_timeout`.
        """
        route = RegionRoute(lambda: region, self._config)
        progress = Progress()
        try:
            async with asyncio.timeout(self._config.connect_timeout):
                return await route.connect_tls(region, progress)
        except TimeoutError as e:
            raise self._explained(e, progress) from e

    def sealed(self, peer: NodePublic) -> SealedPeer:
        """Private packets to and from `peer`, which the relay cannot read, forge or repeat.

        The same object for the same peer. It knows which packets it has seen; so keep to one
        client a key.
        """
        found = self._sealed.get(peer)
        if found is None:
            if len(self._sealed) >= _SEALED_PEERS:
                # A new one refuses what was sealed more than 5 s before it was made.
                del self._sealed[next(iter(self._sealed))]
            found = self._sealed[peer] = SealedPeer(self._private, peer, send=self.send)
        return found

    @property
    def self_public_key(self) -> NodePublic:
        """Our key."""
        return self._private.public

    @property
    def server_public_key(self) -> NodePublic | None:
        """The key of the relay of the last successful connect; `None` before the first."""
        return self._server_key

    @property
    def connected(self) -> bool:
        """Whether there is a connection that is not known to be broken."""
        return self._connection is not None and not self._connection.ended

    @property
    def connection_state(self) -> ConnectionState:
        """What the client is doing about its connection."""
        if self._closed:
            return "closed"
        if self._attempt is not None:
            return "connecting"
        return "connected" if self.connected else "not connected"

    @property
    def generation(self) -> int:
        """How many connections there have been."""
        return self._generation

    @property
    def tls_state(self) -> TLSState | None:
        """TLS of the current connection; `None` without one, or without TLS."""
        return self._connection.tls if self._connection is not None and self.connected else None

    @property
    def local_address(self) -> tuple[str, int] | None:
        """Our IP address and port; `None` over a stream without.

        Raises:
            NotConnected: no connection.
        """
        return self._current().link.local_address

    @property
    def stats(self) -> ClientStats:
        """Counts over all connections; the object is live."""
        return self._stats
