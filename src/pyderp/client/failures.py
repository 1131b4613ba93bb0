"""The errors of a client whose attempt to connect failed, or whose connection has ended."""

from __future__ import annotations

from typing import Final

from pyderp.client.connect import Progress, Route, explain_timeout
from pyderp.errors import (
    ClientClosed,
    ConnectError,
    ConnectionClosed,
    DialError,
    LoginRefused,
    Restarting,
    TLSError,
    text_beside,
)
from pyderp.net.streams import describe

__all__ = ["connect_error", "connection_error"]

_REFUSED: Final = "the relay took the login and hung up: it may not admit this key, or was stopping"
_AGAIN: Final = "; the next call connects again"


def connect_error(
    label: str, route: Route, error: Exception, progress: Progress, timeout: float
) -> ConnectError:
    """The error of an attempt, to be raised; it has a cause.

    Args:
        label: the call, as errors name it.
        error: what ended the attempt.
        timeout: seconds that it had.
    """
    attempts = progress.attempts
    if error not in attempts:
        attempts = [*attempts, explain_timeout(error, progress, timeout)]
    first = attempts[0]
    if isinstance(first, DialError | TLSError):
        detail = text_beside(route.host, first)
    else:
        detail = describe(first)
    if len(attempts) > 1:
        detail += f" (the first of {len(attempts)} nodes that failed)"
    failed = ConnectError(f"{label} connect to {route.label}: {detail}", attempts=attempts)
    failed.__cause__ = ExceptionGroup("attempts to connect", failed.attempts)
    return failed


def connection_error(
    where: str,
    cause: Exception | None,
    refused: bool,
    generation: int,
    restarting: Restarting | None,
) -> ConnectionClosed:
    """The error of a connection that has ended, to be raised; made anew for each call.

    Args:
        where: the call, in Go's words.
        cause: why it ended; `None`: the relay closed the stream.
        refused: it ended before the relay's ServerInfo.
        generation, restarting: as the attributes of `ConnectionClosed`.
    """
    if isinstance(cause, ClientClosed):
        return ClientClosed(str(cause), generation=generation)
    if refused:
        text = _REFUSED if cause is None else f"{_REFUSED} ({describe(cause)})"
    else:
        text = "EOF" if cause is None else describe(cause)
    if where == "derp.Send":
        text += _AGAIN
    closed = (LoginRefused if refused else ConnectionClosed)(
        f"{where}: {text}", generation=generation, restarting=restarting
    )
    closed.__cause__ = cause
    return closed
