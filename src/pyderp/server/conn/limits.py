"""Rate limits of clients: the stage between a connection and the lane that applies them."""

from __future__ import annotations

import asyncio
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from pyderp.defaults import RECEIVE_BUFFER
from pyderp.errors import ConfigError, RemoteProtocolError
from pyderp.keys import NodePublic
from pyderp.relay.connection import Connection
from pyderp.relay.counters import Counters
from pyderp.relay.health import HealthReporter
from pyderp.relay.limits import RateBucket, RateBuckets, RateConfig, RateLimit, parse_rate_config
from pyderp.secretfiles import read_regular
from pyderp.server.conn.context import LimitedConnection, RateLimited, Stage
from pyderp.server.conn.reading import HOLD_LIMIT
from pyderp.text import counted
from pyderp.wire.frames import FRAME_HEADER_LEN

__all__ = ["Limits", "read_rate_config"]

log = logging.getLogger("pyderp.relay")

_LARGEST: Final = 16 * 1024 * 1024
"""Bytes of a file; more than 100,000 keys."""
_LEAST_WAIT: Final = 0.001
"""Seconds; timers are not finer. A smaller debt is added to the next."""
_LONGEST_TIMER: Final = 1.0
"""Seconds. At a low rate a debt may last hours, and the client may leave long before its end."""
_SMOOTH: Final = 0.1
"""Seconds. If a full read is more than the client's rate allows in this time, reads are small, so
that the client's packets come in a steady stream and not in bursts."""


def read_rate_config(path: Path) -> RateConfig:
    """Read a file of rate limits (`derper -rate-config`).

    Raises:
        ConfigError: the file cannot be read, or cannot be used.
    """
    try:
        data = read_regular(path, _LARGEST)
    except OSError as e:
        raise ConfigError(f"cannot read the rate config {path}: {e.strerror}") from e
    return parse_rate_config(data, f"rate config {path}")


class Limits:
    """The rate limits of one relay's clients. Mesh peers have none.

    All connections of a key share a bucket, which also stays for a later connection. Bytes are
    relayed first and charged afterwards: then the connection is not read until its debt is paid.
    Bytes that come meanwhile on another connection of the key are held, one read of each, until
    all that came before them is paid. So a key exceeds its limit by one read at most, with any
    number of connections, and no packet is dropped.

    Args:
        loop: has the clock, and the timers of clients that wait.
        counters: the counters of the relay's router.
        path: the file of limits; `reload` reads it again.
        observer: is notified when a client starts to wait, for Health frames.

    Raises:
        ConfigError: the file cannot be read, or is malformed.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        counters: Counters,
        path: Path,
        *,
        observer: HealthReporter | None = None,
    ) -> None:
        self.loop = loop
        self.counters = counters
        self.observer = observer
        self.path = path
        self.waited = 0
        """How often reading from a client stopped (`rate_limit_per_client_waited`)."""
        self.waiting: set[_LimitedStage] = set()
        """Connections that are not read at the moment."""
        self.buckets = RateBuckets()
        self.trouble = ""
        """Why the current content of the file is not in use; empty if it is in use."""
        self.config = read_rate_config(path)
        self._log_config()

    def close(self) -> None:
        """Stop all timers, after the relay has closed all connections."""
        for stage in list(self.waiting):
            stage.stop()

    def wrap(
        self, protocol: LimitedConnection, connection: Connection, relaying: Stage
    ) -> RateLimited | None:
        """Return the stage of a client after its login; `None` if it has no limit."""
        limit = None if connection.can_mesh else self.config.limit_for(connection.key)
        if limit is None:
            return None
        if limit.bytes_per_second * _SMOOTH < RECEIVE_BUFFER:
            protocol.read_in_small()
        bucket = self.buckets.of(connection.key, limit, self.loop.time())
        return _LimitedStage(self, protocol, connection, relaying, self.buckets, bucket)

    def label(self, key: NodePublic) -> str:
        """Return the label of a key in the file; empty if there is none."""
        return self.config.labels.get(key.raw, "")

    def reload(self) -> bool:
        """Read the file again. Call `limit_again` of each connection afterwards.

        Every key begins with a full bucket then.

        Returns:
            whether the file could be used. If not, the reason is logged and the limits stay.
        """
        try:
            self.config = read_rate_config(self.path)
        except ConfigError as e:
            log.error("%s; the limits stay as they are", e)
            self.trouble = f"{e}; the old limits stay in use"
            return False
        self.trouble = ""
        self._log_config()
        self.buckets = RateBuckets()
        return True

    def _log_config(self) -> None:
        config = self.config
        limit = config.default or RateLimit(0, 0)
        own = "with a limit of its own" if len(config.keys) == 1 else "with limits of their own"
        log.info(
            "rate config applied: client-rate=%d bytes/sec, client-burst=%d bytes%s",
            limit.bytes_per_second,
            limit.burst_bytes,
            f", {counted(len(config.keys), 'key')} {own}" if config.keys else "",
        )
        if config.ignored:
            log.warning(
                "rate config %s: unknown members are ignored: %s",
                self.path,
                ", ".join(config.ignored),
            )


@dataclass(slots=True, eq=False)
class _LimitedStage:
    """Relays the bytes of a client, and then stops reading until they are paid for (`Stage`).

    Bytes that come while other connections of the key have a debt are charged at once. They are
    relayed when the debt before them is paid, however much the others send after them.

    Attributes:
        holds: whether bytes wait for their turn.
        charged: bytes that were charged, but not relayed yet.
        turn: whether the bytes that waited are being relayed.
        until: when the debt will be paid, on the loop's clock.
    """

    limits: Limits
    protocol: LimitedConnection
    connection: Connection
    relaying: Stage
    buckets: RateBuckets
    bucket: RateBucket
    holds: bool = False
    charged: int = 0
    turn: bool = False
    timer: asyncio.TimerHandle | None = None
    until: float = 0.0

    def __call__(self, data: bytearray, view: memoryview, end: int) -> int:
        """Take bytes (`Stage`)."""
        if self._must_hold(end):
            return 0
        counters = self.limits.counters
        packets = counters.packets_received
        charged, self.charged = self.charged, 0
        try:
            used = self.relaying(data, view, end)
        except RemoteProtocolError:
            # The frames before the bad one were relayed. Charge them too, or a client could avoid
            # its limit by breaking the protocol and connecting again.
            self.buckets.charge(self.bucket, end - charged, self.limits.loop.time())
            raise
        # Frame headers of packets are not charged, as in Go's relay.
        size = used - FRAME_HEADER_LEN * (counters.packets_received - packets)
        now = self.limits.loop.time()
        # Without the bytes that were charged already when they had to wait.
        wait = self.buckets.charge(self.bucket, size - charged, now)
        if wait >= _LEAST_WAIT and not self.connection.has_left:
            self._wait(wait, now)
        return used

    def _must_hold(self, end: int) -> bool:
        if self.turn or (self.timer is not None and not self.holds):
            # In the second case this connection waits for its own debt: these bytes are the rest
            # of the read that made the debt.
            return False
        now = self.limits.loop.time()
        debt = self.bucket.charge(0, now)
        if not self.holds:
            if debt < _LEAST_WAIT:
                return False
            self.holds = True
            self._wait(debt, now)
        # Charged now, so that bytes that come later on other connections wait longer than these.
        self.buckets.charge(self.bucket, end - self.charged, now)
        self.charged = end
        return True

    def _wait(self, seconds: float, now: float) -> None:
        self.until = now + seconds
        self.limits.waited += 1
        observer = self.limits.observer
        if observer is not None:
            observer.on_wait(self.connection, seconds)
        if self.timer is None:
            self.limits.waiting.add(self)
            self.protocol.hold(HOLD_LIMIT)
            self._start_timer(now)

    def _start_timer(self, now: float) -> None:
        seconds = min(self.until - now, _LONGEST_TIMER)
        self.timer = self.limits.loop.call_later(seconds, self._on_timer)

    def _on_timer(self) -> None:
        now = self.limits.loop.time()
        # The timer was started by the first charge of a read. Further ones have moved `until`.
        if self.until - now >= _LEAST_WAIT:
            self._start_timer(now)
            return
        self.stop()
        if self.holds:
            self.holds = False
            self.turn = True
            self.protocol.feed_rest()
            self.turn = False

    def on_end(self) -> None:
        """Refund the bytes that waited for their turn: they are discarded with the connection."""
        self.stop()
        self.buckets.charge(self.bucket, -self.charged, self.limits.loop.time())

    def stop(self) -> None:
        """Stop waiting, and let the connection read again; the debt stays."""
        if self.timer is not None:
            self.timer.cancel()
            self.timer = None
            self.limits.waiting.discard(self)
            observer = self.limits.observer
            if observer is not None:
                observer.end_wait(self.connection)
            self.protocol.release(HOLD_LIMIT)
