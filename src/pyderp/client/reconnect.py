"""When a client connects again: which errors may pass, how long to wait, and the iteration."""

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
"""Seconds after which a connection counts as one that works. A relay that lets us in and hangs
up is a failure like any other."""
_LONGEST: Final = 5.0
_LONGEST_IN_RESTART: Final = 1.0
_LONGEST_ADVICE: Final = 60.0
_UNIT: Final = 0.010
_RETRYABLE_STATUS: Final = (HTTPStatus.REQUEST_TIMEOUT, HTTPStatus.TOO_MANY_REQUESTS)


class Backoff:
    """Seconds to wait before each reconnect: n² × 10 ms, at most 5 s, × [0.5, 1.5).

    These are the numbers of Tailscale's own use of its client.

    Args:
        uniform: a number from [0, 1), for the jitter.
    """

    def __init__(self, uniform: Callable[[], float]) -> None:
        self._uniform = uniform
        self._failures = 0
        self._restart_until = 0.0

    def reset(self) -> None:
        """The connection works."""
        self._failures = 0

    def announced(self, restarting: Restarting, now: float) -> float:
        """The relay restarts: how long to stay away, as it advised, but no longer than a minute.

        For `try_for` seconds from then on, waits between failures are kept short.
        """
        advice = min(restarting.reconnect_in, _LONGEST_ADVICE)
        self._restart_until = now + advice + restarting.try_for
        return advice

    def failed(self, now: float) -> float:
        """Another failure: how long to wait."""
        self._failures += 1
        longest = _LONGEST_IN_RESTART if now < self._restart_until else _LONGEST
        return min(self._failures**2 * _UNIT, longest) * (0.5 + self._uniform())


def is_transient(error: BaseException) -> bool:
    """Whether the same call may succeed later with nothing changed on this side.

    Not so: a closed client, wrong use, a map without usable nodes, a certificate that is not
    trusted, an HTTP refusal (4xx), a login that the relay does not answer (`LoginRefused`), and
    what is no DERP relay.
    """
    if isinstance(error, ConnectError):
        return not error.attempts or any(is_transient(e) for e in error.attempts)
    if isinstance(error, ClientClosed | LoginRefused):
        return False
    if isinstance(error, DialError) and error.reason is FailureReason.BAD_MAP:
        return False
    if isinstance(error, ConnectionClosed | OSError):
        return True
    if isinstance(error, UpgradeRejected):
        server_side = error.status >= HTTPStatus.INTERNAL_SERVER_ERROR
        return server_side or error.status in _RETRYABLE_STATUS
    permanent = (CertificateError, ConfigError, InvalidMap, LocalProtocolError, RemoteProtocolError)
    return not isinstance(error, permanent)


class MessageIterator:
    """All messages of a client, over all its connections, until it is closed.

    Made by `Client.messages`. Cancelling a wait loses nothing: the iteration can go on.

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
        self._wait_until: float | None = None

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
                if not self._reconnect or self._hopeless(e):
                    raise
                self._plan(e)
                continue
            if generation != self._generation:
                self._generation = generation
                self._since = asyncio.get_running_loop().time()
            return message

    async def aclose(self) -> None:
        """Nothing to do; for `contextlib.aclosing`. The client stays open."""

    def _hopeless(self, error: Exception) -> bool:
        """Whether trying again is in vain: the only stream has ended, or nothing ever worked."""
        attempts = error.attempts if isinstance(error, ConnectError) else ()
        if any(isinstance(e, LocalProtocolError) for e in attempts):
            return True
        if isinstance(error, LoginRefused):
            return _not_admitted(self._life)
        worked = self._life.generation > self._life.http_answers
        return not (worked or is_transient(error))

    def _plan(self, error: ConnectionClosed | ConnectError) -> None:
        now = asyncio.get_running_loop().time()
        delay = 0.0
        if isinstance(error, ConnectionClosed):
            if error.generation == self._generation and now - self._since >= STABLE:
                self._backoff.reset()
            if error.restarting is not None:
                delay = self._backoff.announced(error.restarting, now)
        delay = max(delay, self._backoff.failed(now))
        self._wait_until = now + delay
        log.info("%s; connecting again in %.2f s", error, delay)


async def send_again(life: Lifecycle, dst: NodePublic, packet: bytes, seconds: float) -> None:
    """Send a packet over as many connections as that takes; as `Client.send` with `reconnect`.

    The iteration over messages need not run: often it is what waits for this call.
    """
    check_seconds("within", seconds)
    clock = asyncio.get_running_loop().time
    backoff = Backoff(random.random)
    last: ConnectionClosed | ConnectError | None = None
    try:
        async with asyncio.timeout(seconds):
            while True:
                try:
                    return await life.send(dst, (packet,))
                except (ConnectionClosed, ConnectError) as e:
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
            last = life.refusals.last  # what holds the login back
        if last is None:
            raise TimeoutError(f"the relay took no packet within {seconds:g} s") from None
        raise raisable(last) from None


def _not_admitted(life: Lifecycle) -> bool:
    """Whether the relay seems not to admit the key: it refused twice, and never took us in.

    A relay that stops just after a login does the same once, and is worth another try.
    """
    return not life.admitted and life.refusals.repeated


async def pause(life: Lifecycle, seconds: float) -> None:
    """Wait until it is time, or the client was closed, or another task has connected."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(seconds):
            await life.news()
