"""A client's connections: which one is current, one attempt at a time, and the end of it all."""

from __future__ import annotations

import asyncio
import contextlib
import warnings
from collections.abc import Sequence
from typing import Final, Literal, TypeAlias

from pyderp.client.arguments import check_peer
from pyderp.client.config import ClientConfig, ClientStats
from pyderp.client.connect import Progress, Route
from pyderp.client.connection import ClientConnection
from pyderp.client.failures import connect_error
from pyderp.client.login import Established, Login
from pyderp.client.refusals import Refusals
from pyderp.errors import (
    ClientClosed,
    ConnectError,
    ConnectionClosed,
    DerpError,
    LocalProtocolError,
    NotConnected,
    raisable,
    without_frames,
)
from pyderp.keys import NodePrivate, NodePublic
from pyderp.tasks import running_loop
from pyderp.wire.frames import (
    PROTOCOL_VERSION,
    BytesLike,
    as_packet,
    pack_note_preferred,
    pack_watch_conns,
)
from pyderp.wire.login import ClientInfo

__all__ = ["ConnectionState", "Lifecycle"]

ConnectionState: TypeAlias = Literal["not connected", "connecting", "connected", "closed"]

_OTHER_LOOP: Final = (
    "this client belongs to the event loop that it first connected on, and this is another one: "
    "make a client in each asyncio.run, or use pyderp.blocking"
)
_CLOSED: Final = "derphttp.Client closed"
_NOT_CONNECTED: Final = "client not connected; connect, send and recv connect, this call does not"


class Lifecycle:
    """Makes connections when they are needed, and forgets them when they have ended.

    Args:
        route: where they lead.
        private: our key.
    """

    def __init__(self, route: Route, private: NodePrivate, config: ClientConfig) -> None:
        self.route = route
        self.private = private
        self.stats = ClientStats()
        self.connection: ClientConnection | None = None
        """The current one; it may have ended without a call that noticed."""
        self.generation = 0
        self.server_key: NodePublic | None = None
        self.closing = asyncio.Event()
        """Set when the client is closed."""
        self.unsent: ClientConnection | None = None
        """It ended with a failed write, of which no sender has heard."""
        self.http_answers = 0
        """How many connections were none: a fast start was answered in HTTP."""
        self.admitted = False
        """A relay has taken us in at least once."""
        self.preferred = False
        self.can_ack_pings = config.can_ack_pings
        self.watch = config.watch_connection_changes
        self._config = config
        self._loop: asyncio.AbstractEventLoop | None = None
        self._lock = asyncio.Lock()
        self._attempt: asyncio.Timeout | None = None
        self._attempts = 0
        """Attempts that have ended, but for those that were cancelled."""
        self._failure: ConnectError | None = None
        """What the last of them ended with, as long as a caller waits that shares it."""
        self.refusals = Refusals()
        self._callers = 0
        """Calls of `connect` that have not returned."""
        self._news = asyncio.Event()

    def __del__(self) -> None:
        connection = getattr(self, "connection", None)
        if connection is None or connection.ended or self._loop is None:
            return
        # The collector may run in any thread. A closed loop has closed its sockets.
        with contextlib.suppress(RuntimeError):
            self._loop.call_soon_threadsafe(connection.end, ClientClosed(_CLOSED), "closed")
        warnings.warn(f"unclosed {self.name}", ResourceWarning, source=self, stacklevel=1)

    @property
    def name(self) -> str:
        """The client for errors and logs: its short key and where it leads, without passwords."""
        return f"<pyderp.Client {self.private.public.short()} url={self.route.label}>"

    @property
    def closed(self) -> bool:
        """Whether the client was closed."""
        return self.closing.is_set()

    @property
    def connected(self) -> bool:
        """Whether there is a connection that is not known to be broken."""
        return self.connection is not None and not self.connection.ended

    @property
    def state(self) -> ConnectionState:
        """What is being done about the connection."""
        if self.closed:
            return "closed"
        if self._attempt is not None:
            return "connecting"
        return "connected" if self.connected else "not connected"

    async def connect(self, label: str) -> ClientConnection:
        """The current connection if it stands, or else a new one; one attempt at a time.

        A call that waits for the attempt of another shares its failure.
        """
        self.check_loop()
        attempts = self._attempts
        self._callers += 1
        try:
            async with self._lock:
                return await self._connect_in_turn(label, attempts)
        finally:
            self._callers -= 1
            if not self._callers:
                self._failure = None  # it holds frames that hold us

    def check_loop(self) -> None:
        """Remember the event loop of the first call, and refuse any other.

        Raises:
            LocalProtocolError: this is another one.
        """
        loop = running_loop()
        if self._loop is None:
            self._loop = loop
        elif self._loop is not loop:
            raise LocalProtocolError(_OTHER_LOOP)

    def check_same_loop(self) -> None:
        """As `check_loop`, but before a first call any loop will do."""
        if self._loop is not None:
            self.check_loop()

    async def _connect_in_turn(self, label: str, attempts: int) -> ClientConnection:
        connection = self.connection
        if connection is not None:
            if not connection.ended:
                return connection
            self.forget(connection, sending=False)
        if self._attempts > attempts and self._failure is not None and not self.closed:
            raise ConnectError(
                str(self._failure), attempts=self._failure.attempts
            ) from self._failure.__cause__
        await self.refusals.wait(self.closing)
        try:
            connection = await self._attempt_connect(label)
        except ConnectError as e:
            self._attempts += 1
            self._failure = e
            raise
        self._attempts += 1
        self._failure = None
        self._news.set()
        return connection

    async def news(self) -> None:
        """Wait until there is a connection, or the client was closed."""
        self._news.clear()
        if not (self.closed or self.connected):
            await self._news.wait()

    async def for_receive(self, what: str) -> ClientConnection:
        """The connection to use for a call; made if there is none.

        It may have ended: then the call that gets it reports that.

        Args:
            what: the call, as errors name it.
        """
        if self.closed:
            raise ClientClosed(_CLOSED)
        if self.connection is not None:
            return self.connection
        label = f"derphttp.Client.{what}"
        try:
            async with (self._config.connect_scope or contextlib.nullcontext)():
                return await self.connect(label)
            raise ConnectError(f"{label}: connect_scope swallowed an error")
        except TimeoutError as e:
            # The scope's: ours has become a ConnectError on its way.
            raise ConnectError(
                f"{label} connect to {self.route.label}: the time of connect_scope is up",
                attempts=[without_frames(e)],
            ) from e

    async def _attempt_connect(self, label: str) -> ClientConnection:
        if self.closed:
            raise ClientClosed(_CLOSED)
        info = ClientInfo(
            mesh_key=self._config.mesh_key,
            version=PROTOCOL_VERSION,
            can_ack_pings=self.can_ack_pings,
            is_prober=self._config.is_prober,
            app_name=self._config.app_name,
            takes_health=True,
        )
        running_loop()  # for its error
        progress = Progress()
        login = Login(self.private, info, preferred=self.preferred, watch=self.watch)
        try:
            async with asyncio.timeout(self._config.connect_timeout) as self._attempt:
                made = await self.route.connect(login, progress)
        except (DerpError, OSError) as e:
            if self.closed:
                raise ClientClosed(_CLOSED) from None
            self.stats.failed_connects += 1
            if isinstance(e, ConnectError):
                raise
            if isinstance(e, TimeoutError):
                without_frames(e)
            timeout = self._config.connect_timeout
            raise connect_error(label, self.route, e, progress, timeout)  # noqa: B904 (it has a cause)
        finally:
            self._attempt = None
            progress.attempts = []  # the errors hold frames that hold `progress`
        return self._connected(made, login)

    def _connected(self, made: Established, login: Login) -> ClientConnection:
        if self.closed:
            made.link.abort()
            raise ClientClosed(_CLOSED)
        self.generation += 1
        self.stats.connects += 1
        self.stats.websocket_fallbacks += made.fell_back
        connection = self.connection = ClientConnection(
            made,
            generation=self.generation,
            stats=self.stats,
            receive_timeout=self._config.receive_timeout,
        )
        self.server_key = made.session.server_key
        # What changed during the attempt.
        if self.preferred != login.preferred and not connection.ended:
            connection.send_frame(pack_note_preferred(self.preferred))
        if self.watch and not login.watch and not connection.ended:
            connection.send_frame(pack_watch_conns())
        return connection

    def forget(self, connection: ClientConnection, *, sending: bool) -> None:
        """Close for reconnect: only if it is still the current one.

        So a sender and a receiver that fail together cannot close each other's new one.
        """
        connection.end(None, "error")
        if self.connection is connection:
            self.connection = None
            if connection.admitted:
                self.admitted = True
                self.refusals.reset()
            elif connection.refused:
                self.refusals.add(connection.error("derp.Send"))
            if connection.http_answer is not None:
                self.http_answers += 1
            self.unsent = connection if connection.write_failed else None
        # What a receiver was told is still news for the next sender.
        if sending and self.unsent is connection:
            self.unsent = None

    def goes_on(
        self, connection: ClientConnection, what: str, *, sending: bool, closed: bool
    ) -> bool:
        """Forget a connection that has ended. Whether the call is to connect in another way.

        It takes no error: a frame that an error's traceback refers to, and that refers to the
        error, would leave both to the collector.

        Args:
            closed: the client was closed.

        Raises:
            ConnectError: a fast start was answered in HTTP, by a refusal.
        """
        self.forget(connection, sending=sending)
        answer = connection.http_answer
        if answer is None or closed:
            return False
        self.unsent = None  # nothing at all has arrived, which the answer says
        if answer.error is not None:
            self.stats.failed_connects += 1
            label = f"derphttp.Client.{what}"
            raise connect_error(label, self.route, raisable(answer.error), Progress(), 0)
        return True

    async def standing(self, what: str) -> ClientConnection:
        """As `require`; but a fast start that was answered in HTTP is handled as in `goes_on`."""
        connection = self.connection
        if connection is None or connection.http_answer is None:
            return self.current()
        if not self.goes_on(connection, what, sending=False, closed=False):
            raise connection.error(what)
        return await self.for_receive(what)

    async def aclose(self) -> None:
        """As `Client.aclose`."""
        if self._loop is not None and self._loop.is_closed():
            self.connection = None  # nothing runs on it that would still use it
            with contextlib.suppress(RuntimeError):
                self.closing.set()
            return
        self.check_same_loop()
        self.closing.set()
        self._news.set()
        if self._attempt is not None:
            # It may be over, and just not have come to say so.
            with contextlib.suppress(RuntimeError):
                self._attempt.reschedule(asyncio.get_running_loop().time())
        connection, self.connection = self.connection, None
        try:
            if connection is not None:
                await connection.aclose(ClientClosed(_CLOSED))
        finally:
            await self.route.aclose()

    async def for_send(self, what: str) -> ClientConnection:
        """As `for_receive`; but raises first if a write failed and no sender was told.

        Raises:
            ConnectionClosed: of the connection whose write failed.
        """
        unsent, self.unsent = self.unsent, None
        if unsent is not None and not self.closed:
            raise unsent.error("derp.Send")
        return self.connection or await self.for_receive(what)

    async def send_one(self, dst: NodePublic, data: BytesLike) -> None:
        """As `Client.send`."""
        await self.send(dst, (as_packet(data),))

    async def send(self, dst: NodePublic, packets: Sequence[bytes]) -> None:
        """As `Client.send_many`, of packets that went through `as_packet`."""
        if not isinstance(dst, NodePublic):
            check_peer(dst, "the destination")
        self.check_loop()
        connection = self.connection
        if connection is None or self.unsent is not None:
            connection = await self.for_send("Send")
        try:
            done = 0
            while done < len(packets):
                if connection.busy:
                    # Before as well as after, or all that wait here would each have one queued.
                    await connection.drain()
                done = connection.send_packets(dst, packets, done)
            if connection.busy:
                await connection.drain()
        except ConnectionClosed as e:
            closed = isinstance(e, ClientClosed)
            if not self.goes_on(connection, "Send", sending=True, closed=closed):
                raise
            await self.send(dst, packets)

    async def send_command(self, connection: ClientConnection, frame: bytes) -> None:
        """Send a frame that is no packet; when it fails, the connection is forgotten."""
        self.check_loop()
        try:
            await _send_frame(connection, frame)
        except ConnectionClosed as e:
            closed = isinstance(e, ClientClosed)
            if not self.goes_on(connection, "Send", sending=True, closed=closed):
                raise
            await _send_frame(await self.for_receive("Send"), frame)

    async def send_on_current(self, frame: bytes) -> None:
        """Send a ping or pong on the connection there is; does not forget one that has ended."""
        await _send_frame(await self.standing("Send"), frame)

    def current(self) -> ClientConnection:
        """As `require`, for calls that use it: another event loop is refused (`check_loop`)."""
        self.check_same_loop()
        return self.require()

    def require(self) -> ClientConnection:
        """The connection, for calls that do not make one.

        Raises:
            NotConnected: there is none.
        """
        if self.closed:
            raise ClientClosed(_CLOSED)
        if self.connection is None or self.connection.ended:
            raise NotConnected(_NOT_CONNECTED)
        return self.connection


async def _send_frame(connection: ClientConnection, frame: bytes) -> None:
    if connection.busy:
        await connection.drain()
    connection.send_frame(frame)
