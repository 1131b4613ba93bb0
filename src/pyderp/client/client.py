"""The client: one connection at a time, made when a call needs one."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Sequence
from functools import partial

from pyderp.client.arguments import as_config, as_get_region, as_private_key, check_peer
from pyderp.client.config import ClientConfig, ClientStats, GetRegion, parse_url, pin_name
from pyderp.client.connect import RegionRoute, UrlRoute
from pyderp.client.forwarding import forward_frames, forward_packet
from pyderp.client.lifecycle import ConnectionState, Lifecycle
from pyderp.client.receiving import MessageReceiver
from pyderp.client.reconnect import MessageIterator, send_again
from pyderp.client.route import Route
from pyderp.client.sealed import SealedPeer, SealedPeers
from pyderp.client.sending import send_command, send_on_current, send_one, send_packets
from pyderp.client.streamroute import StreamRoute
from pyderp.defaults import PING_TIMEOUT
from pyderp.errors import ConnectionClosed, without_frames
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
    `async for message in client` connects again by itself.

    A relay's operator can read and forge packets: use `sealed` for private ones.

    Any number of tasks may send; one task at a time may receive. All belong to one event loop.
    """

    def __init__(self, route: Route, private_key: NodePrivate | None, config: ClientConfig) -> None:
        self._life = Lifecycle(route, as_private_key(private_key), config)
        self._receiver = MessageReceiver(self._life)
        # Not `self.send`: then this client and its `SealedPeers` would hold each other.
        self._sealed = SealedPeers(self._life.private, send=partial(send_one, self._life))

    # Constructors

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
            private_key: the client's key; by default a new one.
            config: mesh key, TLS, proxies and timeouts; by default `ClientConfig()`.
            pin: SHA-256 of the relay's certificate in hex, as the relay's log shows it. Only that
                certificate is accepted, and it needs no authority. It must be valid today, and
                for the URL's name, unless that is an IP address.

        Raises:
            ConfigError: the URL or the pin cannot be used, or there is no TLS and a pin.
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
            region: the region, or a function that is called at every attempt; it returns `None`
                if there is none at the moment.
            private_key: the client's key; by default a new one.
            config: mesh key, TLS, proxies and timeouts; by default `ClientConfig()`.

        Raises:
            ConfigError: not a region, such as the `None` of a map that lacks it.
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
            stream: a stream whose next bytes are the relay's greeting, which belongs to the
                client from then on; or a function that opens one, called at every attempt.
            private_key: the client's key; by default a new one.
            config: mesh key, TLS, proxies and timeouts; by default `ClientConfig()`.
        """
        return cls(StreamRoute(stream), private_key, as_config(config))

    async def __aenter__(self) -> Client:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()

    def __aiter__(self) -> AsyncIterator[Message]:
        return self.messages()

    def __str__(self) -> str:
        """Returns the relay's short key, empty before a connect, and its URL, as Go's `String`."""
        relay = self._life.server_key
        short = "" if relay is None else relay.short()
        return f"<pyderp.Client {short} url={self._life.route.label}>"

    def __repr__(self) -> str:
        """Returns the client's short key and where it connects to, without passwords."""
        return self._life.name

    # Connecting and closing

    async def connect(self) -> None:
        """Connect, if not connected; sends and receives do that by themselves.

        Raises:
            ConnectError: it failed; `attempts` has the errors.
            ClientClosed: the client was closed.
        """
        await self._life.connect("derphttp.Client.Connect")

    async def aclose(self) -> None:
        """Close for good. Cancels a connect that is under way. May be called again.

        Packets that were sent before get a second to leave. Calls that wait raise `ClientClosed`.
        Once the client's event loop is closed, this may be called on any loop.
        """
        await self._life.aclose()

    async def wait_closed(self) -> None:
        """Wait until `aclose` is called."""
        self._life.check_same_loop()
        await self._life.closing.wait()

    # Receiving

    async def recv(self) -> Message:
        """Returns the next message; connects first if need be. One task at a time.

        Raises:
            ConnectionClosed: the connection ended; raised once, after all messages that came.
            ConnectError: there was no connection and none could be made.
        """
        return (await self.recv_with_generation())[0]

    async def recv_with_generation(self) -> tuple[Message, int]:
        """As `recv`, with the number of the connection that brought the message, from 1."""
        connection = await self._receiver.wait()
        message = connection.messages.popleft()
        if not connection.messages:
            connection.taken()
        return message, connection.generation

    async def receive_many(self) -> list[Message]:
        """Returns all messages that wait, at least one; for programs that move much data."""
        connection = await self._receiver.wait()
        found = list(connection.messages)
        connection.messages.clear()
        connection.taken()
        return found

    def messages(self, *, reconnect: bool = True) -> MessageIterator:
        """Iterate over all messages from now on, until the client is closed.

        Args:
            reconnect: connect again after a failure. The wait before that grows with each
                failure, and the relay may set it (Restarting). Before the first success,
                errors that look permanent are raised all the same (`is_transient`).
        """
        return MessageIterator(self.recv_with_generation, self._life, reconnect=reconnect)

    # Sending

    async def send(
        self, dst: NodePublic, data: bytes, *, reconnect: bool = False, within: float = 30.0
    ) -> None:
        """Send a packet of at most 64 KiB; waits while more than 64 KiB wait to leave.

        DERP never confirms delivery. A packet above the rate that the relay allows is dropped
        without an error and counted in `stats`.

        Args:
            reconnect: when the connection ends, send again on the next one, made here or by
                another task; the packet may arrive twice. Errors that look permanent are
                raised, such as a second `LoginRefused` in a row from a relay that has never
                admitted this client.
            within: with `reconnect`, seconds for all of that; then the last error is raised, or
                `TimeoutError`.

        Raises:
            LocalProtocolError: too big; nothing happened.
            ConnectionClosed: the connection ended; packets that were sent last may be lost.
            ConnectError: there was no connection and none could be made.
        """
        if reconnect:
            await send_again(self._life, dst, as_packet(data), within)
        else:
            await send_packets(self._life, dst, (as_packet(data),))

    async def send_many(self, dst: NodePublic, packets: Iterable[bytes]) -> None:
        """Send several packets to one peer; as `send` for each, but cheaper."""
        await send_packets(self._life, dst, [as_packet(packet) for packet in packets])

    async def forward_packet(self, src: NodePublic, dst: NodePublic, data: bytes) -> None:
        """Send a packet on behalf of `src`; without the mesh key the relay closes the connection.

        Raises:
            as `send`; also `ConnectionClosed` if the packet cannot leave within five seconds.
        """
        await forward_packet(self._life, src, dst, as_packet(data))

    async def forward_frames(self, frames: Sequence[bytes]) -> None:
        """Send ForwardPacket frames in one write; for relays, whose queue holds such frames.

        Does not connect. Waits while more than 64 KiB wait to leave.

        Raises:
            NotConnected: no connection.
            ConnectionClosed: it ended, or the frames cannot leave within five seconds.
        """
        await forward_frames(self._life, frames)

    async def close_peer(self, peer: NodePublic) -> None:
        """Ask the relay to close all connections of `peer`; needs the mesh key."""
        connection = await self._life.for_send("ClosePeer")
        await send_command(self._life, connection, pack_close_peer(peer))

    async def watch_connection_changes(self, *, again: bool = False) -> None:
        """Ask the relay to report its clients, and those that come and go; needs the mesh key.

        Holds for this connection and all later ones.

        Args:
            again: if the client watches already, ask for a report of all clients again.
        """
        life = self._life
        connection = life.connection
        if life.watch and connection is not None and not again:
            return
        life.watch = True
        if connection is None:
            await life.connect("derphttp.Client.WatchConnectionChanges")
        else:
            await send_command(life, connection, pack_watch_conns())

    async def note_preferred(self, preferred: bool) -> None:
        """Tell the relay whether it is this client's home, now and on each later connect."""
        self._life.check_same_loop()
        if preferred == self._life.preferred:
            return
        self._life.preferred = preferred
        connection = self._life.connection
        if connection is not None:
            with contextlib.suppress(ConnectionClosed):
                await send_command(self._life, connection, pack_note_preferred(preferred))

    def set_can_ack_pings(self, value: bool) -> None:
        """Whether later connects tell the relay that its pings will be answered."""
        self._life.can_ack_pings = value

    # Pings

    async def ping(self) -> float:
        """Returns the round trip to the relay, in seconds; does not connect.

        Several tasks may ping at the same time. No task needs to receive meanwhile, as long as
        less than 1 MiB waits to be received.

        Raises:
            NotConnected: no connection.
            TimeoutError: no answer within five seconds; sooner with `asyncio.timeout`.
            ConnectionClosed: the connection ended meanwhile.
        """
        connection = await self._life.require_or_retry("Ping")
        try:
            async with asyncio.timeout(PING_TIMEOUT):
                try:
                    return await connection.ping()
                except ConnectionClosed:
                    if connection.http_answer is None:
                        raise
                return await (await self._life.require_or_retry("Ping")).ping()
        except TimeoutError as e:
            raise TimeoutError(f"no pong within {PING_TIMEOUT:g} s") from without_frames(e)

    async def send_ping(self, data: bytes) -> None:
        """Send a Ping of eight bytes; its Pong is received as a message. Does not connect."""
        await send_on_current(self._life, pack_ping(data))

    async def send_pong(self, data: bytes) -> None:
        """Answer a Ping with its eight bytes. Does not connect."""
        await send_on_current(self._life, pack_pong(data))

    # Sealed packets

    def sealed(self, peer: NodePublic) -> SealedPeer:
        """Returns an object for packets of `peer` that the relay cannot read, forge or replay.

        Takes any key: the source of a packet may be any 32 bytes. A packet that one object of
        this client opened is not opened again, however many peers there are (`SealedPeers`).
        Other clients do not share that memory; so use one client per key.
        """
        check_peer(peer, "the peer")
        return self._sealed.get(peer)

    @property
    def self_public_key(self) -> NodePublic:
        """The client's public key."""
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
        """Whether the client is not connected, connecting, connected or closed."""
        return self._life.state

    @property
    def generation(self) -> int:
        """Number of connections so far."""
        return self._life.generation

    @property
    def tls_state(self) -> TLSState | None:
        """TLS of the current connection; `None` without a connection, or without TLS."""
        connection = self._life.connection
        return None if connection is None or connection.ended else connection.tls

    @property
    def local_address(self) -> tuple[str, int] | None:
        """The client's IP address and port; `None` over a stream that has none.

        Raises:
            NotConnected: no connection.
        """
        return self._life.require().link.local_address

    @property
    def stats(self) -> ClientStats:
        """Counts over all connections; the object is live."""
        return self._life.stats
