"""What all connections of one relay share: the router, the buffers, the timer, the log."""

from __future__ import annotations

import asyncio
import ipaddress
import logging
import math
from collections.abc import Callable, Coroutine
from typing import TYPE_CHECKING, Any, Final, Protocol

from pyderp.config.relay import Network
from pyderp.defaults import RECEIVE_BUFFER, SEND_QUEUE_DEPTH
from pyderp.keys import MeshKey, NodePrivate
from pyderp.relay.connection import Connection
from pyderp.relay.ending import EndReason, How
from pyderp.relay.router import Router
from pyderp.server.conn.timers import TimerWheel
from pyderp.wire.bucket import TokenBucket
from pyderp.wire.server import ServerLogin
from pyderp.wire.upgrade import switching_protocols

if TYPE_CHECKING:
    from pyderp.admission.gate import Gate
    from pyderp.server.conn.deadpath import PathWatch
    from pyderp.server.conn.health import HealthTeller
    from pyderp.server.conn.limits import Limits
    from pyderp.server.conn.rtt import RttSampler

__all__ = ["Core", "Served"]

log = logging.getLogger("pyderp.relay")

SMALL_READ: Final = 8 * 1024
"""Bytes of one read where they cost more than in the lane: before a login, in a websocket."""
TICK: Final = 0.25
"""Seconds between two looks at deadlines and stalled connections."""
_LONGEST_LINE: Final = 400
_LOGGED_A_SECOND: Final = 10.0
_LOGGED_AT_ONCE: Final = 50.0


class Served(Protocol):
    """A connection, as far as the core looks at it."""

    connection: Connection | None
    transport: asyncio.Transport | None

    @property
    def websocket(self) -> object | None:
        """What puts its bytes into a websocket; `None`: nothing does."""

    @property
    def tls_version(self) -> str:
        """The TLS version agreed on, such as `1.3`; empty: none."""

    def check_progress(self, now: float) -> None:
        """Look whether a stalled write went on."""

    def on_timer(self, now: float) -> None:
        """A deadline passed."""

    def end(self, reason: EndReason, how: How, detail: str = "") -> None:
        """Close, and count and log why."""


class Core:
    """State and services of one relay, on one event loop.

    Args:
        private: the relay's key.
        mesh_key: the key that grants mesh rights, if any.
        random: n fresh random bytes; for nonces.
        uniform: a number from [0, 1); for jitter.
        write_timeout: seconds without progress of a write before a client is closed; 0: never.
        mesh_write_timeout: the same for clients with the mesh key.
        send_queue_depth: packets in each of the two queues of a client.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        private: NodePrivate,
        *,
        mesh_key: MeshKey | None,
        random: Callable[[int], bytes],
        uniform: Callable[[], float],
        write_timeout: float,
        mesh_write_timeout: float,
        send_queue_depth: int = SEND_QUEUE_DEPTH,
    ) -> None:
        self.loop = loop
        self.router = Router(private.public.raw, loop.time, send_queue_depth=send_queue_depth)
        self.login = ServerLogin(private, random=random)
        self.greeting_with_head = switching_protocols(private.public) + self.login.greeting
        self.mesh_key = mesh_key
        self.uniform = uniform
        self.write_timeout = write_timeout
        self.mesh_write_timeout = mesh_write_timeout
        # One buffer for what is read and, under TLS, one for what is decrypted: each is
        # used only between a get_buffer and the next buffer_updated.
        self.buffer = bytearray(RECEIVE_BUFFER)
        self.view = memoryview(self.buffer)
        self.small_view = self.view[:SMALL_READ]
        self.encrypted = memoryview(bytearray(RECEIVE_BUFFER))
        self.small_encrypted = self.encrypted[:SMALL_READ]
        self.protocols: set[Served] = set()
        self.linger_until = math.inf
        """When the last connection must be closed, on the loop's clock: a stop has a deadline."""
        self.stalled: dict[Served, None] = {}
        self.timers: TimerWheel[Served] = TimerWheel(TICK, loop.time())
        # Parts that a relay may have; the lane knows of none of them.
        self.gate: Gate | None = None
        self.limits: Limits | None = None
        self.health: HealthTeller | None = None
        self.rtt: RttSampler | None = None
        self.paths: PathWatch | None = None
        self.disallowed_app_names: frozenset[str] = frozenset()
        """What no client may call itself but a mesh peer."""
        self.trusted: tuple[Network, ...] = ()
        """Peers whose word on the client's address is taken."""
        self.server_name = b""
        """What TLS clients ask for, if the certificate is for a name."""
        self.tls_requests: dict[str, int] = {}
        """HTTP requests by TLS version."""
        self._tasks: set[asyncio.Task[None]] = set()
        self._ticker: asyncio.TimerHandle | None = None
        self.flush_scheduled = False
        self._log_bucket = TokenBucket(_LOGGED_A_SECOND, _LOGGED_AT_ONCE, loop.time())
        self._not_logged = 0

    def start(self) -> None:
        """Start the timer."""
        self._ticker = self.loop.call_later(TICK, self._tick)

    def stop(self) -> None:
        """Stop the timer."""
        if self._ticker is not None:
            self._ticker.cancel()
            self._ticker = None

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

    def trusts(self, host: str) -> bool:
        """Whether a peer's word on its client's address is taken; empty: a Unix socket's."""
        if not self.trusted:
            return False
        if not host:
            return True
        address = ipaddress.ip_address(host.partition("%")[0])
        return any(address in network for network in self.trusted)

    def schedule_flush(self) -> None:
        """Have the router write what it holds, once all sockets that are ready were read."""
        if not self.flush_scheduled:
            self.flush_scheduled = True
            self.loop.call_soon(self._flush)

    def _flush(self) -> None:
        self.flush_scheduled = False
        self.router.flush()
        if self.router.registry.departed:
            self.schedule_flush()

    def _tick(self) -> None:
        # First of all the next tick: whatever goes wrong below must not stop time.
        self._ticker = self.loop.call_later(TICK, self._tick)
        now = self.loop.time()
        for protocol in list(self.stalled):
            protocol.check_progress(now)
        for protocol in self.timers.advance(now):
            protocol.on_timer(now)
        if self.rtt is not None:
            self.rtt.tick(now)
        if self.paths is not None:
            self.paths.tick(now)
        if self.health is not None:
            self.health.tick(now)
        if self.router.wants_flush:
            self.schedule_flush()

    def log_problem(self, text: str, *args: object) -> None:
        """Log what a peer did wrong; a flood of such lines is cut and counted."""
        if not self._log_bucket.take(1, self.loop.time()):
            self._not_logged += 1
            return
        if self._not_logged:
            log.warning("%d further problems with peers were not logged", self._not_logged)
            self._not_logged = 0
        # A second net below those who cut what they quote: no line grows with what is sent.
        log.warning("%.*s", _LONGEST_LINE, text % args)
