"""What all connections of one relay share: the router, the buffers, the timer, the log."""

from __future__ import annotations

import asyncio
import ipaddress
import logging
import math
from collections.abc import Callable, Coroutine, Mapping
from dataclasses import dataclass
from typing import Any, Final, Generic, Protocol, TypeAlias, TypeVar

from pyderp.admission.verdict import ClientIdentity, Verdict
from pyderp.config.relay import Network
from pyderp.defaults import (
    LOGIN_TIMEOUT,
    MESH_WRITE_TIMEOUT,
    RECEIVE_BUFFER,
    RECONNECT_TRY_FOR,
    WRITE_TIMEOUT,
)
from pyderp.keys import MeshKey, NodePublic
from pyderp.relay.connection import Connection, EndReason, How
from pyderp.relay.lane import Receive, receive
from pyderp.relay.router import Router
from pyderp.server.conn.labels import Labels
from pyderp.text import LOG_FIELDS, counted
from pyderp.throttle import Throttle
from pyderp.wire.frames import pack_restarting
from pyderp.wire.login import ServerLogin
from pyderp.wire.upgrade import switching_protocols

__all__ = [
    "TICK",
    "Admission",
    "ConnectionContext",
    "ConnectionRules",
    "LimitedConnection",
    "LoginObserver",
    "RateLimited",
    "RateLimits",
    "Served",
    "Stage",
    "TimerWheel",
]

T = TypeVar("T")


class TimerWheel(Generic[T]):
    """Items with deadlines, in slots of `tick` seconds.

    A timer handle of the loop costs hundreds of bytes and a heap operation. An entry here costs
    a place in a set, and each connection has one. Items are returned at most one tick late.

    Args:
        tick: seconds of a slot.
        now: the time on the clock of all times here, in seconds.
    """

    __slots__ = ("_next", "_slots", "tick")

    def __init__(self, tick: float, now: float) -> None:
        self.tick = tick
        self._slots: dict[int, set[T]] = {}
        self._next = math.floor(now / tick)

    def add(self, item: T, when: float) -> int:
        """Let `advance` return `item` soon after `when`. Returns the slot, for `cancel`."""
        slot = max(math.ceil(when / self.tick), self._next)
        items = self._slots.get(slot)
        if items is None:
            self._slots[slot] = {item}
        else:
            items.add(item)
        return slot

    def cancel(self, item: T, slot: int) -> None:
        """Remove an item; does nothing if `advance` has returned it already."""
        items = self._slots.get(slot)
        if items is not None:
            items.discard(item)
            if not items:
                del self._slots[slot]

    def advance(self, now: float) -> list[T]:
        """Remove and return the items that are due by `now`, earliest slot first."""
        due: list[T] = []
        last = math.floor(now / self.tick)
        while self._next <= last:
            due.extend(self._slots.pop(self._next, ()))
            self._next += 1
        return due

    def __len__(self) -> int:
        return sum(len(items) for items in self._slots.values())


log = logging.getLogger("pyderp.relay")

SMALL_READ: Final = 8 * 1024
"""Bytes of one read before a login and in a websocket, where a byte costs more than in the lane."""
_MORE_THAN_READ: Final = 32 * 1024
"""Room of the shared buffer beyond one read. A read is put behind an incomplete frame of up to
4 KiB, and under TLS it may complete a record (16 KiB) that an earlier read began."""
TICK: Final = 0.25
"""Seconds between two checks of deadlines and stalled connections."""
_LONGEST_RECONNECT: Final = 2**32 // 1000
"""Seconds that fit a Restarting frame, which has milliseconds in 32 bits."""
_LONGEST_LINE: Final = 400
"""Characters of a log line about a peer."""
_LOG_INTERVAL: Final = 0.1
"""Seconds between two log lines about peers, after `_LOGGED_AT_ONCE` lines."""
_LOGGED_AT_ONCE: Final = 50

Stage: TypeAlias = Callable[[bytearray, memoryview, int], int]
"""Takes bytes of a connection's stream: a buffer, a view of it, and the number of bytes in it.
Returns how many it used; the rest is passed again, in front of what comes next."""


class Stalled(Protocol):
    """A connection whose socket is full: the kernel takes no more bytes."""

    def check_progress(self, now: float) -> None:
        """Check whether the kernel has taken bytes; close the connection if it takes too long."""


class Served(Protocol):
    """A connection, as the rest of the relay uses it."""

    connection: Connection | None
    """The client that logged in; `None` before the login and after the end."""
    transport: asyncio.Transport | None
    is_websocket: bool

    @property
    def tls_version(self) -> str:
        """The TLS version of the connection, such as `1.3`; empty without TLS."""

    def on_timer(self, now: float) -> None:
        """Handle a deadline that passed."""

    def end(self, reason: EndReason, how: How, detail: str = "") -> None:
        """Close the connection; count and log the reason."""

    def limit_again(self) -> None:
        """Apply the rate limits anew, after they were read again."""


class LimitedConnection(Protocol):
    """A connection, as its rate limit uses it."""

    def read_in_small(self) -> None:
        """Read few bytes at a time from now on."""

    def hold(self, reason: int) -> None:
        """Stop reading."""

    def release(self, reason: int) -> None:
        """Read again, unless another reason holds."""

    def feed_rest(self) -> None:
        """Pass the bytes to the stage that it left unused."""


class Admission(Labels, Protocol):
    """Decides which clients may log in."""

    def known(self, client: ClientIdentity) -> Verdict | None:
        """Return the verdict about a client if it is known already."""

    async def ask(self, client: ClientIdentity) -> Verdict:
        """Return the verdict about a client, and ask for it if it is not known."""


class RateLimited(Protocol):
    """The stage that relays for a client with a rate limit."""

    holds: bool
    """Whether bytes wait for their turn."""

    def __call__(self, data: bytearray, view: memoryview, end: int, /) -> int:
        """Take bytes (`Stage`)."""

    def on_end(self) -> None:
        """Release what belongs to the connection, which has ended."""

    def stop(self) -> None:
        """Stop waiting, and let the connection read again."""


class RateLimits(Labels, Protocol):
    """The rate limits of a relay's clients."""

    def wrap(
        self, protocol: LimitedConnection, connection: Connection, relaying: Stage
    ) -> RateLimited | None:
        """Return the stage to use in place of `relaying`; `None` if the client has no limit."""


class LoginObserver(Protocol):
    """Is called for each login and departure."""

    def on_login(self, connection: Connection) -> None:
        """Note that a client logged in."""

    def on_leave(self, connection: Connection) -> None:
        """Note that a client left."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ConnectionRules:
    """Settings that apply to every connection."""

    mesh_key: MeshKey | None = None
    """The key that makes a client a mesh peer; `None`: no client is one."""
    disallowed_app_names: frozenset[str] = frozenset()
    """AppNames of clients that are refused, unless they are mesh peers."""
    trusted_proxies: tuple[Network, ...] = ()
    """Networks of the proxies from which the relay accepts a client's address."""
    login_timeout: float = LOGIN_TIMEOUT
    """Seconds from accept to a complete ClientInfo; a PROXY header before may take as long too."""
    write_timeout: float = WRITE_TIMEOUT
    """Seconds without progress of a write before a client is closed; 0: never."""
    mesh_write_timeout: float = MESH_WRITE_TIMEOUT
    """The same for mesh peers."""

    def trusts(self, host: str) -> bool:
        """Return whether `host` is a trusted proxy. Empty means a Unix socket, which is trusted
        if there are trusted proxies at all."""
        if not self.trusted_proxies:
            return False
        if not host:
            return True
        address = ipaddress.ip_address(host.partition("%")[0])
        return any(address in network for network in self.trusted_proxies)


class ConnectionContext:
    """State and services that one relay's connections share, on one event loop.

    Args:
        router: decides where frames go.
        login: reads ClientInfo and writes ServerInfo, with the relay's key.
        uniform: returns a number from [0, 1), for jitter.
        rules: settings that apply to every connection.
        admission: is asked about each client; `None`: all may log in.
        limits: the rate limits; `None`: there are none.
        observer: is called for each login and departure.
        receive: relays the frames that a client sends.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        router: Router,
        login: ServerLogin,
        *,
        uniform: Callable[[], float],
        rules: ConnectionRules = ConnectionRules(),
        admission: Admission | None = None,
        limits: RateLimits | None = None,
        observer: LoginObserver | None = None,
        receive: Receive = receive,
    ) -> None:
        self.loop = loop
        self.router = router
        self.login = login
        self.greeting_with_head = switching_protocols(NodePublic(router.own_key)) + login.greeting
        self.uniform = uniform
        self.rules = rules
        self.admission = admission
        self.limits = limits
        self.observer = observer
        self.receive = receive
        # One buffer for the stream, and one for the bytes that a layer such as TLS reads. All
        # connections can share them: each is used only from a get_buffer to the buffer_updated
        # that follows, and asyncio calls no other protocol between the two.
        self.buffer = bytearray(RECEIVE_BUFFER + _MORE_THAN_READ)
        self.view = memoryview(self.buffer)
        self.large_view = self.view[:RECEIVE_BUFFER]
        self.small_view = self.view[:SMALL_READ]
        self.raw = memoryview(bytearray(RECEIVE_BUFFER))
        self.small_raw = self.raw[:SMALL_READ]
        self.protocols: set[Served] = set()
        self.linger_until = math.inf
        """The deadline of a stop, on the loop's clock: the last connection is closed then."""
        self.restarts_within: float | None = None
        """Seconds over which clients are to spread their reconnects; `None` until a stop begins."""
        self.stalled: dict[Stalled, None] = {}
        """Connections whose socket is full: an index of `RelayProtocol.full`."""
        self.timers: TimerWheel[Served] = TimerWheel(TICK, loop.time())
        self.tls_requests: dict[str, int] = {}
        """HTTP requests by TLS version."""
        self.flush_scheduled = False
        self._on_tick: list[Callable[[float], None]] = []
        self._tasks: set[asyncio.Task[None]] = set()
        self._ticker: asyncio.TimerHandle | None = None
        self._problems = Throttle(_LOG_INTERVAL, burst=_LOGGED_AT_ONCE)

    def start(self) -> None:
        """Start the timer."""
        self._ticker = self.loop.call_later(TICK, self._tick)

    def stop(self) -> None:
        """Stop the timer."""
        if self._ticker is not None:
            self._ticker.cancel()
            self._ticker = None

    def every_tick(self, call: Callable[[float], None]) -> None:
        """Call a function with the loop's time in each tick, until `stop`."""
        self._on_tick.append(call)

    def spawn(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """Run a coroutine for a connection in a task, which `cancel_tasks` ends at the latest."""
        task = self.loop.create_task(work)
        self._tasks.add(task)  # the loop itself keeps a weak reference only
        task.add_done_callback(self._tasks.discard)
        return task

    async def cancel_tasks(self) -> None:
        """Cancel the tasks of `spawn`, and wait for their end."""
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def send_restarting(self, connection: Connection) -> None:
        """Send a client the Restarting frame, if a stop has begun and the client knows it."""
        # Other clients may disconnect for good at a frame that they do not know.
        if self.restarts_within is not None and connection.takes_health:
            reconnect_in = min(self.restarts_within, _LONGEST_RECONNECT) * self.uniform()
            self.router.send_control(connection, pack_restarting(reconnect_in, RECONNECT_TRY_FOR))

    def schedule_flush(self) -> None:
        """Let the router write what it holds, once all sockets that are ready have been read."""
        if not self.flush_scheduled:
            self.flush_scheduled = True
            self.loop.call_soon(self.flush_turn)

    def flush_turn(self) -> None:
        """Write what the router holds; called by the loop after `schedule_flush`."""
        self.flush_scheduled = False
        router = self.router
        router.flush()
        if router.registry.departed:  # it forgets a few departed connections per flush
            self.schedule_flush()

    def _tick(self) -> None:
        # The next tick is planned first: an error below must not stop the timer.
        self._ticker = self.loop.call_later(TICK, self._tick)
        now = self.loop.time()
        for stalled in list(self.stalled):
            stalled.check_progress(now)
        for protocol in self.timers.advance(now):
            protocol.on_timer(now)
        for call in self._on_tick:
            call(now)
        if self.router.wants_flush:
            self.schedule_flush()

    def log_problem(
        self, text: str, *args: object, fields: Mapping[str, object] | None = None
    ) -> None:
        """Log a problem with a peer. If there are too many, lines are left out and counted.

        Args:
            fields: fields of the JSON log beside the text.
        """
        left_out = self._problems.admit(self.loop.time())
        if left_out is None:
            return
        # In the same line: a line of its own would double the number of lines.
        further = counted(left_out, "further problem")
        were = "was" if left_out == 1 else "were"
        more = f" ({further} with peers {were} not logged)" if left_out else ""
        # Callers cut what they quote of a peer. This is the limit if one of them does not.
        line = f"{(text % args)[:_LONGEST_LINE]}{more}"
        log.warning("%s", line, extra={LOG_FIELDS: fields or {}})
