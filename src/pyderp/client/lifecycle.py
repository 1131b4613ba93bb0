"""A client's connections: which one is current, one attempt at a time, forgetting and closing."""

from __future__ import annotations

import asyncio
import contextlib
import warnings
from typing import Final, Literal, TypeAlias

from pyderp.client.config import ClientConfig, ClientStats
from pyderp.client.connection import ClientConnection
from pyderp.client.failures import connect_error
from pyderp.client.login import Established, Login
from pyderp.client.refusals import Refusals
from pyderp.client.route import Progress, Route
from pyderp.errors import (
    ClientClosed,
    ConnectError,
    DerpError,
    LocalProtocolError,
    NotConnected,
    raisable,
    without_frames,
)
from pyderp.keys import NodePrivate, NodePublic
from pyderp.tasks import running_loop
from pyderp.wire.frames import PROTOCOL_VERSION, pack_note_preferred, pack_watch_conns
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
        route: the way to the relay.
        private: the client's key.
    """

    def __init__(self, route: Route, private: NodePrivate, config: ClientConfig) -> None:
        self.route = route
        self.private = private
        self.stats = ClientStats()
        self.connection: ClientConnection | None = None
        """The current one; it may have ended already, if no call has noticed that."""
        self.generation = 0
        self.server_key: NodePublic | None = None
        self.closing = asyncio.Event()
        """Set when the client is closed."""
        self.unsent: ClientConnection | None = None
        """A connection whose last write failed, until a call that sends has raised its error."""
        self.http_answers = 0
        """Fast starts that were answered in HTTP; each was counted as a connection before."""
        self.admitted = False
        """Whether a relay has admitted the client at least once."""
        self.preferred = False
        self.can_ack_pings = config.can_ack_pings
        self.watch = config.watch_connection_changes
        self._config = config
        self._loop: asyncio.AbstractEventLoop | None = None
        self._lock = asyncio.Lock()
        self._attempt: asyncio.Timeout | None = None
        self._attempts = 0
        """Attempts that have ended, without those that were cancelled."""
        self._failure: ConnectError | None = None
        """The error of the last of them, as long as a caller waits that shares it."""
        self.refusals = Refusals()
        self._callers = 0
        """Calls of `connect` that have not returned."""
        self._changed = asyncio.Event()
        """Set by a new connection and by the close; for `wait_for_change`."""

    def __del__(self) -> None:
        connection = getattr(self, "connection", None)
        if connection is None or connection.ended or self._loop is None:
            return
        # The collector may run in any thread, so the loop is asked to do it. RuntimeError: the
        # loop is closed, and with it its sockets.
        with contextlib.suppress(RuntimeError):
            self._loop.call_soon_threadsafe(connection.end, ClientClosed(_CLOSED), "closed")
        warnings.warn(f"unclosed {self.name}", ResourceWarning, source=self, stacklevel=1)

    @property
    def name(self) -> str:
        """The client for errors and logs: its short key and its route, without passwords."""
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
        """Whether the client is not connected, connecting, connected or closed."""
        if self.closed:
            return "closed"
        if self._attempt is not None:
            return "connecting"
        return "connected" if self.connected else "not connected"

    async def connect(self, label: str) -> ClientConnection:
        """Returns the current connection, or makes one; one attempt at a time.

        A call that waits for the attempt of another call shares its failure: ten tasks that send
        through a broken network make one attempt and not ten, one after the other.
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
                self._failure = None  # it holds frames that hold this object

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
        """As `check_loop`, but does not remember the loop: for calls that do not connect."""
        if self._loop is not None:
            self.check_loop()

    async def _connect_in_turn(self, label: str, attempts: int) -> ClientConnection:
        connection = self.connection
        if connection is not None:
            if not connection.ended:
                return connection
            self.forget(connection, sending=False)
        # An attempt that ended while this call waited for the lock is as good as one of its own.
        # A cancelled attempt does not count: the next call makes a new one.
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
        self._changed.set()
        return connection

    async def wait_for_change(self) -> None:
        """Wait until there is a connection, or the client is closed."""
        self._changed.clear()
        if not (self.closed or self.connected):
            await self._changed.wait()

    async def for_receive(self, what: str) -> ClientConnection:
        """Returns the connection to use for a call; makes one if there is none.

        It may have ended: then using it raises the error of that, and the caller forgets it. So
        each end is reported once, and nothing is sent on a new connection before.

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
            # Reached if the scope suppresses an error, as `asyncio.timeout` never does.
            raise ConnectError(f"{label}: connect_scope suppressed an error")
        except TimeoutError as e:
            # Of the scope: the timeout of `connect` itself has become a ConnectError.
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
        running_loop()  # without asyncio it raises an error that says what to do
        progress = Progress()
        login = Login(self.private, info, preferred=self.preferred, watch=self.watch)
        try:
            # One time limit around everything. `aclose` moves it to now, which ends the attempt.
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
        # `aclose` came too late to end the attempt.
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
        # The login has what was set when the attempt began; send what has changed since.
        if self.preferred != login.preferred and not connection.ended:
            connection.send_frame(pack_note_preferred(self.preferred))
        if self.watch and not login.watch and not connection.ended:
            connection.send_frame(pack_watch_conns())
        return connection

    def forget(self, connection: ClientConnection, *, sending: bool) -> None:
        """End a connection, so that the next call that needs one connects again.

        The current connection is replaced only if it is this one: when a sender and a receiver
        fail at the same time, the second must not drop the new connection of the first.

        Args:
            sending: the caller is a sender and raises the error.
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
        # A receiver that raised the error does not tell the sender, whose packets may be lost: so
        # `unsent` stays set until a sender raises it.
        if sending and self.unsent is connection:
            self.unsent = None

    def forget_or_retry(
        self, connection: ClientConnection, what: str, *, sending: bool, closed: bool
    ) -> bool:
        """Forget a connection that has ended; return whether the call is to connect and try again.

        That is so if the connection was a fast start, its answer came in HTTP, and the client is
        to connect again and await the answer.

        The error is no argument: a frame in its traceback that also refers to the error would
        leave both to the cyclic collector.

        Args:
            what: the call, as errors name it.
            sending: as for `forget`.
            closed: the error is `ClientClosed`.

        Raises:
            ConnectError: the answer was a refusal that another attempt would get again.
        """
        self.forget(connection, sending=sending)
        answer = connection.http_answer
        if answer is None or closed:
            return False
        # The relay refused the upgrade, so it has read nothing that was sent behind it: sending
        # it again cannot duplicate it, and no sender has to learn of a loss.
        self.unsent = None
        if answer.error is not None:
            self.stats.failed_connects += 1
            label = f"derphttp.Client.{what}"
            raise connect_error(label, self.route, raisable(answer.error), Progress(), 0)
        return True

    async def require_or_retry(self, what: str) -> ClientConnection:
        """As `require`, but connects again after a fast start that `forget_or_retry` retries."""
        connection = self.connection
        if connection is None or connection.http_answer is None:
            return self.require_here()
        if not self.forget_or_retry(connection, what, sending=False, closed=False):
            raise connection.error(what)
        return await self.for_receive(what)

    async def aclose(self) -> None:
        """As `Client.aclose`."""
        if self._loop is not None and self._loop.is_closed():
            # The loop has closed its sockets, and no call can wait on it any more. RuntimeError:
            # calls that waited for `closing` belong to that loop.
            self.connection = None
            with contextlib.suppress(RuntimeError):
                self.closing.set()
            return
        self.check_same_loop()
        self.closing.set()
        self._changed.set()
        if self._attempt is not None:
            # Ends the attempt as its timeout does. RuntimeError: the attempt has ended, but its
            # task has not run since.
            with contextlib.suppress(RuntimeError):
                self._attempt.reschedule(asyncio.get_running_loop().time())
        connection, self.connection = self.connection, None
        try:
            if connection is not None:
                await connection.aclose(ClientClosed(_CLOSED))
        finally:
            await self.route.aclose()

    async def for_send(self, what: str) -> ClientConnection:
        """As `for_receive`, but first raises the error of an earlier write, once.

        Raises:
            ConnectionClosed: packets sent on an earlier connection were lost, and no call that
                sends has raised that yet.
        """
        unsent, self.unsent = self.unsent, None
        if unsent is not None and not self.closed:
            raise unsent.error("derp.Send")
        return self.connection or await self.for_receive(what)

    def require_here(self) -> ClientConnection:
        """As `require`, but refuses another event loop (`check_loop`)."""
        self.check_same_loop()
        return self.require()

    def require(self) -> ClientConnection:
        """Returns the connection, for calls that do not make one.

        Raises:
            NotConnected: there is none.
        """
        if self.closed:
            raise ClientClosed(_CLOSED)
        if self.connection is None or self.connection.ended:
            raise NotConnected(_NOT_CONNECTED)
        return self.connection
