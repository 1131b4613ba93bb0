"""The client: lazy, one connection at a time, a new one when the next call needs it."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Sequence

from pyderp.client.arguments import as_config, as_get_region, as_private_key, check_peer
from pyderp.client.config import ClientConfig, ClientStats, GetRegion, parse_url, pin_name
from pyderp.client.connect import RegionRoute, Route, UrlRoute
from pyderp.client.connection import ClientConnection
from pyderp.client.forwarding import forward_frames, forward_packet
from pyderp.client.lifecycle import ConnectionState, Lifecycle
from pyderp.client.reconnect import MessageIterator, send_again
from pyderp.client.sealed import SealedPeer, SealedPeers
from pyderp.client.streamroute import StreamRoute
from pyderp.defaults import PING_TIMEOUT
from pyderp.errors import ClientClosed, ConnectionClosed, without_frames
from pyderp.keys import NodePrivate, NodePublic
from pyderp.maps.region import DERPRegion
from pyderp.net.streams import Stream
from pyderp.net.tls import TLSState
from pyderp.wire.frames import (
    as_packet,
    pack_close_peer,
    pack_note_preferred,
    pack_ping,
    pack_pong,
    pack_watch_conns,
)
from pyderp.wire.messages import Message

__all__ = ["Client"]


class Client:
    """A client of a DERP relay (`derphttp.Client`).

    Make one with `for_url`, `for_region` or `over_stream`; none of them does I/O. The first
    call that needs a connection makes one. When a connection ends, the call that notices
    raises `ConnectionClosed`, and the next call that needs one connects again.
    `async for message in client` does that by itself.

    A relay's operator can read and forge what is sent: use `sealed` for what is private.

    Any number of tasks may send; one task at a time may receive. All belong to one event loop.
    """

    def __init__(self, route: Route, private_key: NodePrivate | None, config: ClientConfig) -> None:
        self._life = Lifecycle(route, as_private_key(private_key), config)
        self._receiving: ClientConnection | None = None
        # Not our own `send`: then we and what has sealed packets to send would hold each other.
        self._sealed = SealedPeers(self._life.private, send=self._life.send_one)

    # Making one

    @classmethod
    def for_url(
        cls,
        url: str,
        *,
        private_key: NodePrivate | None = None,
        config: ClientConfig | None = None,
        pin: str | None = None,
    ) -> Client:
        """A client of one relay (`derphttp.NewClient`).

        Args:
            url: `https://host[:port]/derp`, or `http://`; nothing is added to its path.
            private_key: our key; by default a new key.
            pin: SHA-256 of the relay's certificate in hex, as its log has it: that one and no
                other, which needs no authority. It must also be for the URL's name, if that is
                no IP address, and valid today.

        Raises:
            ConfigError: the URL or the pin cannot be used, or there would be no TLS to pin.
        """
        config = as_config(config)
        cert_name = "" if pin is None else pin_name(pin)
        return cls(UrlRoute(parse_url(url), config, cert_name), private_key, config)

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
            region: or a function, asked at every attempt; `None` of it: there is none now.

        Raises:
            ConfigError: no region, such as the `None` of a map that lacks it.
        """
        config = as_config(config)
        get_region = region if callable(region) else as_get_region(region)
        return cls(RegionRoute(get_region, config), private_key, config)

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
        return cls(StreamRoute(stream), private_key, as_config(config))

    async def __aenter__(self) -> Client:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()

    def __aiter__(self) -> AsyncIterator[Message]:
        return self.messages()

    def __str__(self) -> str:
        """The relay's short key, empty before a connect, and where it is, as Go's `String`."""
        relay = self._life.server_key
        short = "" if relay is None else relay.short()
        return f"<pyderp.Client {short} url={self._life.route.label}>"

    def __repr__(self) -> str:
        """Our own short key and where it connects to, without passwords."""
        return self._life.name

    # Connecting and closing

    async def connect(self) -> None:
        """Connect, if not connected; sends and receives do it by themselves.

        Raises:
            ConnectError: it failed; `attempts` says how.
            ClientClosed: the client was closed.
        """
        await self._life.connect("derphttp.Client.Connect")

    async def aclose(self) -> None:
        """Close for good, at once but for what was sent before; cancels a connect. Idempotent.

        Calls that wait raise `ClientClosed`. Once the client's loop is closed, any may call.
        """
        await self._life.aclose()

    async def wait_closed(self) -> None:
        """Wait until `aclose` is called."""
        self._life.check_same_loop()
        await self._life.closing.wait()

    # Receiving

    async def recv(self) -> Message:
        """The next message; connects first if need be. One task at a time.

        Raises:
            ConnectionClosed: the connection ended; said once, after all that had come.
            ConnectError: there was none and none could be made.
        """
        return (await self.recv_with_generation())[0]

    async def recv_with_generation(self) -> tuple[Message, int]:
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

    async def _messages_wait(self) -> ClientConnection:
        # A receiver has all that came and the error first, also if a sender has connected anew.
        while True:
            connection = self._receiving
            if connection is None:
                connection = self._receiving = await self._life.for_receive("Recv")
            if connection.messages:
                return connection
            self._life.check_loop()
            try:
                await connection.wait()
            except ConnectionClosed as e:
                self._receiving = None
                closed = isinstance(e, ClientClosed)
                if not self._life.goes_on(connection, "Recv", sending=False, closed=closed):
                    raise

    def messages(self, *, reconnect: bool = True) -> MessageIterator:
        """All messages from now on; ends when the client is closed.

        Args:
            reconnect: connect again by itself, after a while that grows with each failure
                and that the relay may set (Restarting). Before the first success, what
                looks permanent is raised all the same (`is_transient`).
        """
        return MessageIterator(self.recv_with_generation, self._life, reconnect=reconnect)

    # Sending

    async def send(
        self, dst: NodePublic, data: bytes, *, reconnect: bool = False, within: float = 30.0
    ) -> None:
        """Send a packet of at most 64 KiB; waits while more than 64 KiB wait to leave.

        DERP never confirms delivery. What the relay's token bucket does not allow is
        dropped in silence and counted in `stats`.

        Args:
            reconnect: when the connection ends, send again by the next one, made here or by
                another task; the packet may arrive twice. What looks permanent is raised, such
                as a second `LoginRefused` in a row of a relay that has never taken us in.
            within: seconds for all of that; then the last error is raised, or `TimeoutError`.

        Raises:
            LocalProtocolError: too big; nothing happened.
            ConnectionClosed: the connection ended; what was sent last may be lost.
            ConnectError: there was none and none could be made.
        """
        if reconnect:
            await send_again(self._life, dst, as_packet(data), within)
        else:
            await self._life.send(dst, (as_packet(data),))

    async def send_many(self, dst: NodePublic, packets: Iterable[bytes]) -> None:
        """Send several packets to one peer; as `send` for each, and cheaper."""
        await self._life.send(dst, [as_packet(packet) for packet in packets])

    async def forward_packet(self, src: NodePublic, dst: NodePublic, data: bytes) -> None:
        """Send a packet on behalf of `src`; needs the mesh key, or the relay hangs up.

        Raises:
            as `send`; also `ConnectionClosed` when it cannot leave within five seconds.
        """
        await forward_packet(self._life, src, dst, as_packet(data))

    async def forward_frames(self, frames: Sequence[bytes]) -> None:
        """Send ForwardPacket frames in one write; for relays, which have them ready made.

        Does not connect. Waits while more than 64 KiB wait to leave.

        Raises:
            NotConnected: no connection.
            ConnectionClosed: it ended, or the frames cannot leave within five seconds.
        """
        await forward_frames(self._life, frames)

    async def close_peer(self, peer: NodePublic) -> None:
        """Ask the relay to close all connections of `peer`; needs the mesh key."""
        connection = await self._life.for_send("ClosePeer")
        await self._life.send_command(connection, pack_close_peer(peer))

    async def watch_connection_changes(self, *, again: bool = False) -> None:
        """Have the relay report all clients that come and go, now and on each later connect.

        Needs the mesh key.

        Args:
            again: have it report once more all that are there, if we watch already.
        """
        life = self._life
        connection = life.connection
        if life.watch and connection is not None and not again:
            return
        life.watch = True
        if connection is None:
            await life.connect("derphttp.Client.WatchConnectionChanges")
        else:
            await life.send_command(connection, pack_watch_conns())

    async def note_preferred(self, preferred: bool) -> None:
        """Tell the relay whether it is our home, now if connected and on each later connect."""
        self._life.check_same_loop()
        if preferred == self._life.preferred:
            return
        self._life.preferred = preferred
        connection = self._life.connection
        if connection is not None:
            with contextlib.suppress(ConnectionClosed):
                await self._life.send_command(connection, pack_note_preferred(preferred))

    def set_can_ack_pings(self, value: bool) -> None:
        """Whether later connects tell the relay that its pings will be answered."""
        self._life.can_ack_pings = value

    # Pings

    async def ping(self) -> float:
        """The round trip to the relay, in seconds; does not connect. May run side by side.

        Works also if no task receives meanwhile, as long as less than 1 MiB waits to be received.

        Raises:
            NotConnected: no connection.
            TimeoutError: no answer within five seconds; sooner with `asyncio.timeout`.
            ConnectionClosed: the connection ended meanwhile.
        """
        connection = await self._life.standing("Ping")
        try:
            async with asyncio.timeout(PING_TIMEOUT):
                try:
                    return await connection.ping()
                except ConnectionClosed:
                    if connection.http_answer is None:
                        raise
                return await (await self._life.standing("Ping")).ping()
        except TimeoutError as e:
            raise TimeoutError(f"no pong within {PING_TIMEOUT:g} s") from without_frames(e)

    async def send_ping(self, data: bytes) -> None:
        """Send a Ping of eight bytes; its Pong is received as a message. Does not connect."""
        await self._life.send_on_current(pack_ping(data))

    async def send_pong(self, data: bytes) -> None:
        """Answer a Ping with its eight bytes. Does not connect."""
        await self._life.send_on_current(pack_pong(data))

    # Others

    def sealed(self, peer: NodePublic) -> SealedPeer:
        """Private packets to and from `peer`, which the relay cannot read, forge or repeat.

        Takes any key: the source of a packet may be any 32 bytes. A packet that was opened by
        way of this client is not opened again, however many peers there are (`SealedPeers`).
        Another client does not know of it; so keep to one client a key.
        """
        check_peer(peer, "the peer")
        return self._sealed.get(peer)

    @property
    def self_public_key(self) -> NodePublic:
        """Our key."""
        return self._life.private.public

    @property
    def server_public_key(self) -> NodePublic | None:
        """The key of the relay of the last successful connect; `None` before the first."""
        return self._life.server_key

    @property
    def connected(self) -> bool:
        """Whether there is a connection that is not known to be broken."""
        return self._life.connected

    @property
    def connection_state(self) -> ConnectionState:
        """What the client is doing about its connection."""
        return self._life.state

    @property
    def generation(self) -> int:
        """How many connections there have been."""
        return self._life.generation

    @property
    def tls_state(self) -> TLSState | None:
        """TLS of the current connection; `None` without one, or without TLS."""
        connection = self._life.connection
        return None if connection is None or connection.ended else connection.tls

    @property
    def local_address(self) -> tuple[str, int] | None:
        """Our IP address and port; `None` over a stream without.

        Raises:
            NotConnected: no connection.
        """
        return self._life.require().link.local_address

    @property
    def stats(self) -> ClientStats:
        """Counts over all connections; the object is live."""
        return self._life.stats
