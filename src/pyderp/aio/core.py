"""What all connections of one relay share: the router, the buffers, the timer, the log."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Final, Protocol

from pyderp.aio.wheel import TimerWheel
from pyderp.defaults import RECEIVE_BUFFER
from pyderp.keys import MeshKey, NodePrivate
from pyderp.relay.connection import Connection
from pyderp.relay.router import Router
from pyderp.wire.server import ServerLogin
from pyderp.wire.upgrade import switching_protocols

__all__ = ["Core"]

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

    def check_progress(self, now: float) -> None:
        """Look whether a stalled write went on."""

    def on_timer(self, now: float) -> None:
        """A deadline passed."""

    def close_gracefully(self) -> None:
        """Say goodbye and close."""

    def abort(self) -> None:
        """Close now."""


class Core:
    """State and services of one relay, on one event loop.

    Args:
        private: the relay's key.
        mesh_key: the key that grants mesh rights, if any.
        random: n fresh random bytes; for nonces.
        uniform: a number from [0, 1); for jitter.
        write_timeout: seconds without progress of a write before a client is closed; 0: never.
        mesh_write_timeout: the same for clients with the mesh key.
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
    ) -> None:
        self.loop = loop
        self.router = Router(private.public.raw, loop.time)
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
        self.stalled: dict[Served, None] = {}
        self.timers: TimerWheel[Served] = TimerWheel(TICK, loop.time())
        self._ticker: asyncio.TimerHandle | None = None
        self.flush_scheduled = False
        self._log_tokens = _LOGGED_AT_ONCE
        self._log_at = loop.time()
        self._not_logged = 0

    def start(self) -> None:
        """Start the timer."""
        self._ticker = self.loop.call_later(TICK, self._tick)

    def stop(self) -> None:
        """Stop the timer."""
        if self._ticker is not None:
            self._ticker.cancel()
            self._ticker = None

    def schedule_flush(self) -> None:
        """Have the router write what it holds, once all sockets that are ready were read."""
        if not self.flush_scheduled:
            self.flush_scheduled = True
            self.loop.call_soon(self._flush)

    def _flush(self) -> None:
        self.flush_scheduled = False
        self.router.flush()

    def _tick(self) -> None:
        # First of all the next tick: whatever goes wrong below must not stop time.
        self._ticker = self.loop.call_later(TICK, self._tick)
        now = self.loop.time()
        for protocol in list(self.stalled):
            protocol.check_progress(now)
        for protocol in self.timers.advance(now):
            protocol.on_timer(now)
        if self.router.touched:
            self.schedule_flush()

    def log_problem(self, text: str, *args: object) -> None:
        """Log what a peer did wrong; a flood of such lines is cut and counted."""
        now = self.loop.time()
        tokens = self._log_tokens + (now - self._log_at) * _LOGGED_A_SECOND
        self._log_at = now
        self._log_tokens = min(tokens, _LOGGED_AT_ONCE)
        if self._log_tokens < 1:
            self._not_logged += 1
            return
        self._log_tokens -= 1
        if self._not_logged:
            log.warning("%d further problems with peers were not logged", self._not_logged)
            self._not_logged = 0
        # A second net below those who cut what they quote: no line grows with what is sent.
        log.warning("%.*s", _LONGEST_LINE, text % args)
