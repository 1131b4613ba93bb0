"""`async for message in client`: receive, and connect again when the connection ends."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
from collections.abc import Awaitable, Callable
from typing import Final

from pyderp.client.backoff import Backoff, is_transient
from pyderp.client.lifecycle import Lifecycle
from pyderp.errors import ClientClosed, ConnectError, ConnectionClosed, LocalProtocolError
from pyderp.wire.messages import Message

__all__ = ["MessageIterator"]

log = logging.getLogger("pyderp.client")

STABLE: Final = 5.0
"""Seconds after which a connection counts as one that works. A relay that lets us in and hangs
up is a failure like any other."""


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
        return self._life.generation == 0 and not is_transient(error)

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


async def pause(life: Lifecycle, seconds: float) -> None:
    """Wait until it is time, or the client was closed, or another task has connected."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(seconds):
            await life.news()
