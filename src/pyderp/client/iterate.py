"""`async for message in client`: receive, and connect again when the connection ends."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
from collections.abc import AsyncGenerator
from typing import TYPE_CHECKING

from pyderp.client.backoff import Backoff, is_transient
from pyderp.errors import ClientClosed, ConnectError, ConnectionClosed, LocalProtocolError
from pyderp.wire.messages import Message

if TYPE_CHECKING:
    from pyderp.client.client import Client

__all__ = ["messages", "pause"]

log = logging.getLogger("pyderp.client")


async def messages(client: Client, *, reconnect: bool) -> AsyncGenerator[Message, None]:
    """All messages of a client, over all its connections, until it is closed."""
    backoff = Backoff(random.random)
    while True:
        try:
            message = await client.recv()
        except ClientClosed:
            return
        except (ConnectionClosed, ConnectError) as e:
            if not reconnect or _hopeless(e) or (client.generation == 0 and not is_transient(e)):
                raise
            delay = _delay(backoff, e)
            log.info("%s; connecting again in %.2f s", e, delay)
        else:
            backoff.reset()
            yield message
            continue
        await pause(client, delay)


async def pause(client: Client, delay: float) -> None:
    """Wait some seconds, or until the client is closed."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(delay):
            await client.wait_closed()


def _hopeless(error: Exception) -> bool:
    """Whether no later attempt can succeed: the one stream that was given has ended."""
    attempts = error.attempts if isinstance(error, ConnectError) else ()
    return any(isinstance(e, LocalProtocolError) for e in attempts)


def _delay(backoff: Backoff, error: ConnectionClosed | ConnectError) -> float:
    now = asyncio.get_running_loop().time()
    if isinstance(error, ConnectionClosed) and error.restarting is not None:
        return backoff.announced(error.restarting, now)
    return backoff.failed(now)
