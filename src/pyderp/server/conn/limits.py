"""Rate limits at work: between a connection and the lane, for those clients that have one."""

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
from pyderp.relay.health import HealthTeller
from pyderp.relay.limits import RateBucket, RateBuckets, RateConfig, RateLimit, parse_rate_config
from pyderp.secretfiles import read_regular
from pyderp.server.conn.context import LimitedConnection, RateLimited, Stage
from pyderp.server.conn.reading import HOLD_LIMIT
from pyderp.text import counted
from pyderp.wire.frames import FRAME_HEADER_LEN

__all__ = ["Limits", "read_rate_config"]

log = logging.getLogger("pyderp.relay")

_LARGEST: Final = 16 * 1024 * 1024
"""Bytes of a file: more than 100,000 keys."""
_LEAST_WAIT: Final = 0.001
"""Seconds; timers are no finer. A smaller debt is paid with the next."""
_LONGEST_TIMER: Final = 1.0
"""Seconds; a low rate can mean hours, and the client may be gone long before."""
_SMOOTH: Final = 0.1
"""Seconds of a client's rate that one read may bring; with less it reads in small."""


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

    All connections of a key share a bucket, and so does the next after the last has left. What
    one sends is relayed and then paid for: it is not read from until the debt is paid. What comes
    meanwhile by another connection of the key is held, one read of each, and has its turn once
    all that came before it is paid. So a key may exceed its limit by what one read brings,
    however many connections it has, and nothing is ever dropped.

    Args:
        loop: has the time, and the timers of clients that wait.
        counters: of the relay's router.
        path: the file of limits; `reload` reads it again.

    Raises:
        ConfigError: the file cannot be read, or cannot be used.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        counters: Counters,
        path: Path,
        *,
        observer: HealthTeller | None = None,
    ) -> None:
        self.loop = loop
        self.counters = counters
        self.observer = observer
        self.path = path
        self.waited = 0
        """How often a client was not read from (`rate_limit_per_client_waited`)."""
        self.waiting: set[_LimitedStage] = set()
        """Connections that are not read from at the moment."""
        self.buckets = RateBuckets()
        self.trouble = ""
        """Why the file as it is now is not used; empty: it is."""
        self.config = read_rate_config(path)
        self._log_config()

    def close(self) -> None:
        """Let no timer run on; for the end of a relay, once all its connections are closed."""
        for stage in list(self.waiting):
            stage.stop()

    def wrap(
        self, protocol: LimitedConnection, connection: Connection, relaying: Stage
    ) -> RateLimited | None:
        """The stage of a client after its login; `None`: it has no limit (`RateLimits`)."""
        limit = None if connection.can_mesh else self.config.limit_for(connection.key)
        if limit is None:
            return None
        if limit.bytes_per_second * _SMOOTH < RECEIVE_BUFFER:
            protocol.read_in_small()
        bucket = self.buckets.of(connection.key, limit, self.loop.time())
        return _LimitedStage(self, protocol, connection, relaying, self.buckets, bucket)

    def label(self, key: NodePublic) -> str:
        """What the file calls a key; empty for nothing."""
        return self.config.labels.get(key.raw, "")

    def reload(self) -> bool:
        """Read the file again. Connections that `limit_again` begin anew, with a full bucket.

        Returns:
            whether that worked. If not, the reason is logged and the limits stay.
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
                "rate config %s: unknown and passed over: %s", self.path, ", ".join(config.ignored)
            )


@dataclass(slots=True, eq=False)
class _LimitedStage:
    """Relays what comes, and then reads nothing until that is paid for (`Stage`).

    What comes while others of the key are in debt is charged at once and relayed in its turn:
    when the debt before it is paid, however much came after it.

    Attributes:
        holds: something waits for its turn.
        charged: bytes that were charged, and not relayed yet.
        turn: what waited is being relayed.
        until: when the debt is paid, on the loop's clock.
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
        """Take bytes in a buffer; returns how many were used up."""
        if self._must_hold(end):
            return 0
        counters = self.limits.counters
        packets = counters.packets_received
        charged, self.charged = self.charged, 0
        try:
            used = self.relaying(data, view, end)
        except RemoteProtocolError:
            # What stood before it was relayed, and would be free for a client that comes back.
            self.buckets.charge(self.bucket, end - charged, self.limits.loop.time())
            raise
        # As upstream, the headers of packets are free.
        size = used - FRAME_HEADER_LEN * (counters.packets_received - packets)
        now = self.limits.loop.time()
        wait = self.buckets.charge(self.bucket, size - charged, now)
        if wait >= _LEAST_WAIT and not self.connection.has_left:
            self._wait(wait, now)
        return used

    def _must_hold(self, end: int) -> bool:
        if self.turn or (self.timer is not None and not self.holds):
            return False  # the latter: more of the read that it waits for
        now = self.limits.loop.time()
        debt = self.bucket.charge(0, now)
        if not self.holds:
            if debt < _LEAST_WAIT:
                return False
            self.holds = True
            self._wait(debt, now)
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
        # One read may bring several charges, and the timer was set by the first.
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
        """The connection ended: what waited for its turn is discarded, and costs nothing."""
        self.stop()
        self.buckets.charge(self.bucket, -self.charged, self.limits.loop.time())

    def stop(self) -> None:
        """Wait no longer; the debt stays."""
        if self.timer is not None:
            self.timer.cancel()
            self.timer = None
            self.limits.waiting.discard(self)
            observer = self.limits.observer
            if observer is not None:
                observer.end_wait(self.connection)
            self.protocol.release(HOLD_LIMIT)
