"""The blocking client: each call runs a call of the asynchronous client in a background thread."""

from __future__ import annotations

import asyncio
import functools
import threading
import warnings
from collections import deque
from collections.abc import Awaitable, Callable, Iterable, Iterator
from typing import Concatenate, Final, ParamSpec, TypeVar

from pyderp.arguments import check_seconds
from pyderp.blocking.outbox import Outbox
from pyderp.blocking.thread import LoopThread, shared
from pyderp.client import client as asynchronous
from pyderp.client import sealed
from pyderp.client.config import ClientConfig, ClientStats, GetRegion
from pyderp.client.lifecycle import ConnectionState
from pyderp.errors import LocalProtocolError, without_frames
from pyderp.keys import NodePrivate, NodePublic
from pyderp.maps.region import DERPRegion
from pyderp.net.tls import TLSState
from pyderp.wire.frames import as_packet
from pyderp.wire.messages import Message

__all__ = ["Client", "SealedPeer"]

P = ParamSpec("P")
T = TypeVar("T")


def _waiting(
    method: Callable[Concatenate[asynchronous.Client, P], Awaitable[T]],
) -> Callable[Concatenate[Client, P], T]:
    """Returns a method that waits for one of the asynchronous client, with the same docstring."""

    @functools.wraps(method)
    def call(client: Client, /, *args: P.args, **kwargs: P.kwargs) -> T:
        return client._call(lambda: method(client._client, *args, **kwargs))  # noqa: SLF001

    return call


class Client:
    """A client of a DERP relay whose calls wait.

    Calls, limits and errors are those of `pyderp.Client`, which documents them.

    Threads may share it. Each message goes to one of the threads that receive.

    Ctrl-C ends the call that waits, and the client stays usable: a message that came at that
    moment is the next one received. Functions in the configuration, such as `dialer`, run in
    the background thread. After a fork only new clients work in the child.

    Make one with `for_url` or `for_region`, and close it, or use it as a context manager.
    """

    def __init__(self, client: asynchronous.Client) -> None:
        self._client = client
        self._thread: LoopThread | None = None
        self._receiving = asyncio.Lock()
        self._unclaimed: deque[Message] = deque()
        self._sealing = threading.Lock()
        self._closed = False
        self._outbox = Outbox(client._life)  # noqa: SLF001

    @classmethod
    def for_url(
        cls,
        url: str,
        *,
        private_key: NodePrivate | None = None,
        config: ClientConfig | None = None,
        pin: str | None = None,
    ) -> Client:
        """A client of one relay: `https://host[:port]/derp`, or `http://`."""
        return cls(
            asynchronous.Client.for_url(url, private_key=private_key, config=config, pin=pin)
        )

    @classmethod
    def for_region(
        cls,
        region: DERPRegion | GetRegion,
        *,
        private_key: NodePrivate | None = None,
        config: ClientConfig | None = None,
    ) -> Client:
        """A client of a region's relays, tried in order."""
        return cls(asynchronous.Client.for_region(region, private_key=private_key, config=config))

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __del__(self) -> None:
        thread = getattr(self, "_thread", None)
        if thread is None or self._closed or not shared.has(thread):
            return
        thread.close_later(self._client)
        warnings.warn(f"unclosed {self!r}", ResourceWarning, source=self, stacklevel=1)

    def __iter__(self) -> Iterator[Message]:
        return self.messages()

    def __str__(self) -> str:
        return str(self._client).replace("pyderp.", "pyderp.blocking.", 1)

    def __repr__(self) -> str:
        return repr(self._client).replace("pyderp.", "pyderp.blocking.", 1)

    def _call(self, work: Callable[[], Awaitable[T]]) -> T:
        return self._started().call(work, unclaimed=lambda _: None)

    def _started(self) -> LoopThread:
        thread = self._thread
        if thread is None:
            thread = self._thread = shared.get()
            thread.loop.call_soon_threadsafe(thread.clients.add, self._client)
        elif not shared.has(thread):
            raise LocalProtocolError(
                "this client belongs to another process, or the process is ending; "
                "make a new one after a fork"
            )
        return thread

    def _look(self, look: Callable[[], T]) -> T:
        """Read state that the background thread changes, in that thread."""

        async def work() -> T:
            return look()

        return self._call(work)

    # Connecting and closing

    connect = _waiting(asynchronous.Client.connect)

    def close(self) -> None:
        """Close for good. May be called again.

        Packets that were sent before get a second to leave. Calls that wait in other threads
        raise `ClientClosed`.
        """
        if self._closed:
            return
        if self._thread is None or shared.has(self._thread):
            thread = self._started()
            self._call(lambda: thread.aclose(self._client))
        self._closed = True

    # Receiving

    def recv(self, timeout: float | None = None) -> Message:
        """Returns the next message; connects first if need be.

        Args:
            timeout: in seconds, connecting included; `None`: no limit.

        Raises:
            TimeoutError: no message in time; none is lost.
        """

        async def one() -> list[Message]:
            return [await self._client.recv()]

        return self._receive(one, timeout)[0]

    def receive_many(self, timeout: float | None = None) -> list[Message]:
        """Returns all messages that wait, at least one; otherwise as `recv`."""
        return self._receive(self._client.receive_many, timeout)

    def messages(self, *, reconnect: bool = True) -> Iterator[Message]:
        """Iterate over all messages from now on, until the client is closed."""
        source = self._client.messages(reconnect=reconnect)

        async def following() -> list[Message]:
            async for message in source:
                return [message]
            return []

        while found := self._receive(following, None):
            yield from found

    def _receive(
        self, receive: Callable[[], Awaitable[list[Message]]], timeout: float | None
    ) -> list[Message]:
        if timeout is not None:
            check_seconds("timeout", timeout)

        async def work() -> list[Message]:
            # The time limit is in the loop's thread: a waiting thread that gave up could not know
            # whether a message was taken for it.
            try:
                async with asyncio.timeout(timeout), self._receiving:
                    if self._unclaimed:
                        return [self._unclaimed.popleft()]
                    return await receive()
            except TimeoutError as e:
                if timeout is None:
                    raise
                raise TimeoutError(f"no message within {timeout:g} s") from without_frames(e)

        return self._started().call(work, unclaimed=self._unclaimed.extend)

    # Sending

    def send(
        self, dst: NodePublic, data: bytes, *, reconnect: bool = False, within: float = 30.0
    ) -> None:
        """Send a packet of at most 64 KiB; waits while more than 64 KiB wait to leave.

        While the client is connected and less than that waits, the call returns at once, and the
        background thread sends later. If the connection has ended by then, the next call that
        sends raises `ConnectionClosed`. With `reconnect` it waits in any case.
        """
        packet = as_packet(data)
        thread = self._thread
        if (
            reconnect
            or thread is None
            or not shared.has(thread)
            or thread.is_current()
            or not self._outbox.take(thread.loop, dst, packet)
        ):
            self._call(lambda: self._client.send(dst, packet, reconnect=reconnect, within=within))

    def send_many(self, dst: NodePublic, packets: Iterable[bytes]) -> None:
        """Send several packets to one peer; as `send` for each, but much cheaper."""
        listed = list(packets)  # in this thread: a generator may block, and must not block the loop
        self._call(lambda: self._client.send_many(dst, listed))

    forward_packet = _waiting(asynchronous.Client.forward_packet)
    close_peer = _waiting(asynchronous.Client.close_peer)
    watch_connection_changes = _waiting(asynchronous.Client.watch_connection_changes)
    note_preferred = _waiting(asynchronous.Client.note_preferred)

    def set_can_ack_pings(self, value: bool) -> None:
        """Whether later connects tell the relay that its pings will be answered."""
        self._look(lambda: self._client.set_can_ack_pings(value))

    ping = _waiting(asynchronous.Client.ping)
    send_ping = _waiting(asynchronous.Client.send_ping)
    send_pong = _waiting(asynchronous.Client.send_pong)

    def sealed(self, peer: NodePublic) -> SealedPeer:
        """Returns an object for packets of `peer` that the relay cannot read, forge or replay."""
        with self._sealing:
            return SealedPeer(self._client.sealed(peer), self.send, self._sealing)

    # State

    @property
    def self_public_key(self) -> NodePublic:
        """The client's public key."""
        return self._client.self_public_key

    @property
    def server_public_key(self) -> NodePublic | None:
        """The key of the relay of the last successful connect; `None` before the first."""
        return self._client.server_public_key

    @property
    def connected(self) -> bool:
        """Whether there is a connection that is not known to be broken."""
        return self._look(lambda: self._client.connected)

    @property
    def connection_state(self) -> ConnectionState:
        """Whether the client is not connected, connecting, connected or closed."""
        return self._look(lambda: self._client.connection_state)

    @property
    def generation(self) -> int:
        """Number of connections so far."""
        return self._client.generation

    @property
    def tls_state(self) -> TLSState | None:
        """TLS of the current connection; `None` without a connection, or without TLS."""
        return self._look(lambda: self._client.tls_state)

    @property
    def local_address(self) -> tuple[str, int] | None:
        """The client's IP address and port.

        Raises:
            NotConnected: no connection.
        """
        return self._look(lambda: self._client.local_address)

    @property
    def stats(self) -> ClientStats:
        """Counts over all connections; the object is live."""
        return self._client.stats


class SealedPeer:
    """Private packets to and from one peer, as `pyderp.SealedPeer`; its `send` waits.

    Made by `Client.sealed`. Threads may share it.
    """

    overhead: Final = sealed.SealedPeer.overhead
    """Bytes that sealing adds."""
    max_payload: Final = sealed.SealedPeer.max_payload
    """The longest payload, in bytes."""

    def __init__(
        self,
        inner: sealed.SealedPeer,
        send: Callable[[NodePublic, bytes], None],
        lock: threading.Lock,
    ) -> None:
        self._inner = inner
        self._send = send
        self._lock = lock

    @property
    def peer(self) -> NodePublic:
        """The peer's key."""
        return self._inner.peer

    def seal(self, data: bytes) -> bytes:
        """Returns the packet for a payload; another one at each call."""
        with self._lock:
            return self._inner.seal(data)

    def send(self, data: bytes) -> None:
        """Seal a payload and send it."""
        self._send(self.peer, self.seal(data))

    def open_untrusted(self, packet: bytes) -> bytes:
        """Returns the payload of a packet from the peer that is recent and not seen before."""
        with self._lock:
            return self._inner.open_untrusted(packet)
