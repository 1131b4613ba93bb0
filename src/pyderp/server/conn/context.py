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
    """Items that are due at some time, in slots of `tick` seconds.

    A timer handle of the loop costs hundreds of bytes and a heap operation; an entry here
    costs a place in a set. Items are given back at most one tick late.

    Args:
        tick: seconds a slot.
    """

    __slots__ = ("_next", "_slots", "tick")

    def __init__(self, tick: float, now: float) -> None:
        self.tick = tick
        self._slots: dict[int, set[T]] = {}
        self._next = math.floor(now / tick)

    def add(self, item: T, when: float) -> int:
        """Have `advance` give `item` soon after `when`; gives the slot, for `cancel`."""
        slot = max(math.ceil(when / self.tick), self._next)
        items = self._slots.get(slot)
        if items is None:
            self._slots[slot] = {item}
        else:
            items.add(item)
        return slot

    def cancel(self, item: T, slot: int) -> None:
        """Forget an item; harmless when it was given already."""
        items = self._slots.get(slot)
        if items is not None:
            items.discard(item)
            if not items:
                del self._slots[slot]

    def advance(self, now: float) -> list[T]:
        """The items that are due by `now`, earliest slot first; they are forgotten."""
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
"""Bytes of one read where they cost more than in the lane: before a login, in a websocket."""
_MORE_THAN_READ: Final = 32 * 1024
"""What a read brings goes behind an incomplete frame of up to 4 KiB, and under TLS it may bring
the rest of a record (16 KiB) that an earlier read began: the shared buffer has room for both."""
TICK: Final = 0.25
"""Seconds between two looks at deadlines and stalled connections."""
_LONGEST_RECONNECT: Final = 2**32 // 1000
"""Seconds that fit a Restarting frame, which has milliseconds in 32 bits."""
_LONGEST_LINE: Final = 400
_LOG_INTERVAL: Final = 0.1
"""Seconds between two lines about peers that do wrong, after as many at once as follow."""
_LOGGED_AT_ONCE: Final = 50

Stage: TypeAlias = Callable[[bytearray, memoryview, int], int]
"""Takes bytes of a connection's stream: a buffer, a view of it, how many bytes there are.
Returns how many it used up."""


class Stalled(Protocol):
    """A connection whose kernel takes no more."""

    def check_progress(self, now: float) -> None:
        """Look whether a stalled write went on."""


class Served(Protocol):
    """A connection, as all but itself see it."""

    connection: Connection | None
    """Its login; `None`: there was none yet, or it has ended."""
    transport: asyncio.Transport | None
    is_websocket: bool

    @property
    def tls_version(self) -> str:
        """The TLS version agreed on, such as `1.3`; empty: none."""

    def on_timer(self, now: float) -> None:
        """A deadline passed."""

    def end(self, reason: EndReason, how: How, detail: str = "") -> None:
        """Close, and count and log why."""

    def limit_again(self) -> None:
        """Relay under the rate limits as they are now."""


class LimitedConnection(Protocol):
    """A connection, as its rate limit sees it."""

    def read_in_small(self) -> None:
        """Take few bytes a read."""

    def hold(self, reason: int) -> None:
        """Read nothing."""

    def release(self, reason: int) -> None:
        """Read on."""

    def feed_rest(self) -> None:
        """Give the stage what it left unused."""


class Admission(Labels, Protocol):
    """Decides which clients may come in."""

    def known(self, client: ClientIdentity) -> Verdict | None:
        """What is known about a client already."""

    async def ask(self, client: ClientIdentity) -> Verdict:
        """Find out about a client."""


class RateLimited(Protocol):
    """The stage that relays for a client with a rate limit."""

    holds: bool
    """Something waits for its turn."""

    def __call__(self, data: bytearray, view: memoryview, end: int, /) -> int:
        """Take bytes (`Stage`)."""

    def on_end(self) -> None:
        """The connection ended."""

    def stop(self) -> None:
        """Wait no longer."""


class RateLimits(Labels, Protocol):
    """The rate limits of a relay's clients."""

    def wrap(
        self, protocol: LimitedConnection, connection: Connection, relaying: Stage
    ) -> RateLimited | None:
        """The stage to be used in place of `relaying`; `None`: the client has no limit."""


class LoginObserver(Protocol):
    """Hears of clients that come and go."""

    def on_login(self, connection: Connection) -> None:
        """A client logged in."""

    def on_leave(self, connection: Connection) -> None:
        """A client left."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ConnectionRules:
    """Settings that every connection is measured by."""

    mesh_key: MeshKey | None = None
    """The key that grants mesh rights, if any."""
    disallowed_app_names: frozenset[str] = frozenset()
    """What no client may call itself but a mesh peer."""
    trusted_proxies: tuple[Network, ...] = ()
    """Peers whose word on the client's address is taken."""
    login_timeout: float = LOGIN_TIMEOUT
    """Seconds from accept to a complete ClientInfo; before that a PROXY header may take as long."""
    write_timeout: float = WRITE_TIMEOUT
    """Seconds without progress of a write before a client is closed; 0: never."""
    mesh_write_timeout: float = MESH_WRITE_TIMEOUT
    """The same for clients with the mesh key."""

    def trusts(self, host: str) -> bool:
        """Whether a peer's word on its client's address is taken; empty: a Unix socket's."""
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
        login: the login with the relay's key.
        uniform: a number from [0, 1); for jitter.
        admission: asked about each client; `None`: all may come in.
        limits: slow clients down; `None`: no limits.
        observer: hears of logins and departures.
        receive: relays what a client sends.
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
        # One buffer for the stream, and one for what is read for a layer such as TLS: each
        # is used only between a get_buffer and the next buffer_updated.
        self.buffer = bytearray(RECEIVE_BUFFER + _MORE_THAN_READ)
        self.view = memoryview(self.buffer)
        self.large_view = self.view[:RECEIVE_BUFFER]
        self.small_view = self.view[:SMALL_READ]
        self.raw = memoryview(bytearray(RECEIVE_BUFFER))
        self.small_raw = self.raw[:SMALL_READ]
        self.protocols: set[Served] = set()
        self.linger_until = math.inf
        """When the last connection must be closed, on the loop's clock: a stop has a deadline."""
        self.restarts_within: float | None = None
        """Seconds within which a stop that has begun has clients come back; `None`: no stop."""
        self.stalled: dict[Stalled, None] = {}
        """Connections whose kernel takes no more: an index of `RelayProtocol.full`."""
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
        """Have something called with the loop's time in each tick, until the stop."""
        self._on_tick.append(call)

    def spawn(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """Run something for a connection; it ends with the relay at the latest."""
        task = self.loop.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def cancel_tasks(self) -> None:
        """End what `spawn` began."""
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def tell_restarting(self, connection: Connection) -> None:
        """Send a client the Restarting frame if a stop has begun, and if the client knows it."""
        # Other clients may end for good on a frame that they do not know.
        if self.restarts_within is not None and connection.takes_health:
            reconnect_in = min(self.restarts_within, _LONGEST_RECONNECT) * self.uniform()
            self.router.send_control(connection, pack_restarting(reconnect_in, RECONNECT_TRY_FOR))

    def schedule_flush(self) -> None:
        """Have the router write what it holds, once all sockets that are ready were read."""
        if not self.flush_scheduled:
            self.flush_scheduled = True
            self.loop.call_soon(self.flush_turn)

    def flush_turn(self) -> None:
        """Write what the router holds; `schedule_flush` has it called."""
        self.flush_scheduled = False
        router = self.router
        router.flush()
        if router.registry.departed:  # departed connections that are still to be forgotten
            self.schedule_flush()

    def _tick(self) -> None:
        # First of all the next tick: whatever goes wrong below must not stop time.
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
        """Log what a peer did wrong; a flood of such lines is cut and counted.

        Args:
            fields: what a JSON log has beside the text.
        """
        left_out = self._problems.admit(self.loop.time())
        if left_out is None:
            return
        # In the same line, or the limit would let through twice as many.
        further = counted(left_out, "further problem")
        were = "was" if left_out == 1 else "were"
        more = f" ({further} with peers {were} not logged)" if left_out else ""
        # A second net below those who cut what they quote: no line grows with what is sent.
        line = f"{(text % args)[:_LONGEST_LINE]}{more}"
        log.warning("%s", line, extra={LOG_FIELDS: fields or {}})
