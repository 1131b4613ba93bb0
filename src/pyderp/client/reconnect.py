"""Reconnecting: which errors are transient, how long to wait, and the loops that do it."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
from collections.abc import Awaitable, Callable
from http import HTTPStatus
from typing import Final

from pyderp.arguments import check_seconds
from pyderp.client.lifecycle import Lifecycle
from pyderp.client.sending import send_packets
from pyderp.errors import (
    CertificateError,
    ClientClosed,
    ConfigError,
    ConnectError,
    ConnectionClosed,
    DialError,
    FailureReason,
    InvalidMap,
    LocalProtocolError,
    LoginRefused,
    RemoteProtocolError,
    UpgradeRejected,
    raisable,
    without_frames,
)
from pyderp.keys import NodePublic
from pyderp.wire.messages import Message, Restarting

__all__ = ["Backoff", "MessageIterator", "is_transient", "send_again"]

log = logging.getLogger("pyderp.client")

STABLE: Final = 5.0
"""Seconds that a connection must last to count as one that works. If a relay accepts logins and
closes the connections soon after, the waits must grow as for any other failure."""
_LONGEST: Final = 5.0
_LONGEST_IN_RESTART: Final = 1.0
_LONGEST_ADVICE: Final = 60.0
"""Bound of the relay's advice: a relay must not keep its clients away for longer."""
_UNIT: Final = 0.010
_RETRYABLE_STATUS: Final = (HTTPStatus.REQUEST_TIMEOUT, HTTPStatus.TOO_MANY_REQUESTS)


class Backoff:
    """Seconds to wait before each reconnect: n² × 10 ms, at most 5 s, × [0.5, 1.5).

    These are the numbers of Tailscale's own program around its client. The factor is random, so
    that the clients of a relay that restarts do not all come back at the same time.

    Args:
        uniform: returns a number from [0, 1), for that factor.
    """

    def __init__(self, uniform: Callable[[], float]) -> None:
        self._uniform = uniform
        self._failures = 0
        self._restart_until = 0.0

    def reset(self) -> None:
        """Begin again at the shortest wait, as the connection has worked."""
        self._failures = 0

    def announced(self, restarting: Restarting, now: float) -> float:
        """Take the relay's announcement of a restart; return the seconds to wait, at most a minute.

        For `try_for` seconds after that, waits between failures stay at about a second: the relay
        is expected back at any moment.
        """
        advice = min(restarting.reconnect_in, _LONGEST_ADVICE)
        self._restart_until = now + advice + restarting.try_for
        return advice

    def failed(self, now: float) -> float:
        """Count a failure; return the seconds to wait."""
        self._failures += 1
        longest = _LONGEST_IN_RESTART if now < self._restart_until else _LONGEST
        return min(self._failures**2 * _UNIT, longest) * (0.5 + self._uniform())


def is_transient(error: BaseException) -> bool:
    """Whether the same call may succeed later with nothing changed on this side.

    False for a closed client, wrong use, a map without usable nodes, a certificate that is not
    trusted, an HTTP refusal (4xx), a login that the relay does not answer (`LoginRefused`), and a
    server that is not a DERP relay.
    """
    # One node that may come back is enough. Without attempts the map has no such region now.
    if isinstance(error, ConnectError):
        return not error.attempts or any(is_transient(e) for e in error.attempts)
    if isinstance(error, ClientClosed | LoginRefused):
        return False
    if isinstance(error, DialError) and error.reason is FailureReason.BAD_MAP:
        return False
    # After the checks above, which are for subclasses of these two. What is left are states of
    # the network or the relay, which pass.
    if isinstance(error, ConnectionClosed | OSError):
        return True
    if isinstance(error, UpgradeRejected):
        # As HTTP means them: 5xx is trouble of the server, 4xx an answer to this request.
        server_side = error.status >= HTTPStatus.INTERNAL_SERVER_ERROR
        return server_side or error.status in _RETRYABLE_STATUS
    permanent = (CertificateError, ConfigError, InvalidMap, LocalProtocolError, RemoteProtocolError)
    return not isinstance(error, permanent)


class MessageIterator:
    """Iterates over all messages of a client, over all its connections, until it is closed.

    Made by `Client.messages`. Cancelling a wait loses no message, and the iteration can go on.

    Args:
        receive: returns the next message and the generation of its connection.
        life: the client's connections.
    """

    def __init__(
        self,
        receive: Callable[[], Awaitable[tuple[Message, int]]],
        life: Lifecycle,
        *,
        reconnect: bool,
    ) -> None:
        self._receive = receive
        self._life = life
        self._reconnect = reconnect
        self._backoff = Backoff(random.random)
        self._generation = 0
        self._since = 0.0
        """When the first message of that connection came."""
        self._wait_until: float | None = None
        """Not a local: a wait that is cancelled goes on with the next call."""

    def __aiter__(self) -> MessageIterator:
        return self

    async def __anext__(self) -> Message:
        while True:
            try:
                if self._wait_until is not None:
                    now = asyncio.get_running_loop().time()
                    await pause(self._life, self._wait_until - now)
                    self._wait_until = None
                message, generation = await self._receive()
            except ClientClosed:
                raise StopAsyncIteration from None
            except (ConnectionClosed, ConnectError) as e:
                if not self._reconnect or self._is_permanent(e):
                    raise
                self._schedule(e)
                continue
            # The first message of a connection: from here on its age counts (`STABLE`).
            if generation != self._generation:
                self._generation = generation
                self._since = asyncio.get_running_loop().time()
            return message

    async def aclose(self) -> None:
        """Nothing to do; for `contextlib.aclosing`. The client stays open."""

    def _is_permanent(self, error: Exception) -> bool:
        """Whether to raise an error and not to connect again.

        Errors that look permanent count only until a first connection has worked: after that the
        settings are right, and a certificate that has expired or a wrong answer of a proxy may be
        corrected while a long-running program waits.
        """
        attempts = error.attempts if isinstance(error, ConnectError) else ()
        # The only stream of a client over a stream has ended: another connect can never work.
        if any(isinstance(e, LocalProtocolError) for e in attempts):
            return True
        if isinstance(error, LoginRefused):
            return _not_admitted(self._life)
        # A fast start that was answered in HTTP is counted as a connection, but never was one.
        worked = self._life.generation > self._life.http_answers
        return not (worked or is_transient(error))

    def _schedule(self, error: ConnectionClosed | ConnectError) -> None:
        """Set when to connect again."""
        now = asyncio.get_running_loop().time()
        delay = 0.0
        if isinstance(error, ConnectionClosed):
            # Only a connection that brought messages for a while makes the waits short again.
            if error.generation == self._generation and now - self._since >= STABLE:
                self._backoff.reset()
            if error.restarting is not None:
                delay = self._backoff.announced(error.restarting, now)
        # The longer of both, so that a relay that announces restarts with no wait, again and
        # again, is not flooded with logins.
        delay = max(delay, self._backoff.failed(now))
        self._wait_until = now + delay
        log.info("%s; connecting again in %.2f s", error, delay)


async def send_again(life: Lifecycle, dst: NodePublic, packet: bytes, seconds: float) -> None:
    """Send a packet, on later connections if need be; as `Client.send` with `reconnect`.

    It connects by itself, and does not rely on an iteration over messages: a program that sends an
    answer in the body of that iteration would wait for itself.
    """
    check_seconds("within", seconds)
    clock = asyncio.get_running_loop().time
    backoff = Backoff(random.random)
    last: ConnectionClosed | ConnectError | None = None
    try:
        async with asyncio.timeout(seconds):
            while True:
                try:
                    return await send_packets(life, dst, (packet,))
                except (ConnectionClosed, ConnectError) as e:
                    # `is_transient` takes each refused login for permanent; here the first may
                    # come from a relay that stops.
                    if isinstance(e, LoginRefused):
                        permanent = _not_admitted(life)
                    else:
                        permanent = not is_transient(e)
                    if permanent:
                        raise
                    last = without_frames(e)
                delay = 0.0
                if isinstance(last, ConnectionClosed) and last.restarting is not None:
                    delay = backoff.announced(last.restarting, clock())
                await pause(life, max(delay, backoff.failed(clock())))
    except TimeoutError:
        if last is None and life.connection is None:
            last = life.refusals.last  # the login was delayed because of it
        if last is None:
            raise TimeoutError(f"the relay took no packet within {seconds:g} s") from None
        raise raisable(last) from None


def _not_admitted(life: Lifecycle) -> bool:
    """Whether the relay seems not to admit the key: it refused twice, and never admitted it.

    A relay that stops just after a login looks the same, once, so the first refusal is tried again.
    """
    return not life.admitted and life.refusals.repeated


async def pause(life: Lifecycle, seconds: float) -> None:
    """Wait for some seconds, or until the client is closed or another task has connected."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(seconds):
            await life.wait_for_change()
