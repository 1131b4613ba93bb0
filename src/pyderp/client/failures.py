"""Makes the errors of an attempt to connect that failed, and of a connection that has ended."""

from __future__ import annotations

from typing import Final

from pyderp.client.route import Progress, Route, explain_timeout
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

_REFUSED: Final = (
    "the relay took the login and closed the connection: it may not admit this key, or was stopping"
)
_AGAIN: Final = "; the next call connects again"


def connect_error(
    label: str, route: Route, error: Exception, progress: Progress, timeout: float
) -> ConnectError:
    """Returns the error of an attempt that failed, to be raised; it has a cause.

    Args:
        label: the call, as errors name it.
        error: the error that ended the attempt.
        timeout: seconds that the attempt had.
    """
    attempts = progress.attempts
    # With several nodes, `error` is that of the first one. A timeout of the whole attempt is not
    # among theirs.
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
    # The text has one error; a traceback shows them all.
    failed.__cause__ = ExceptionGroup("attempts to connect", failed.attempts)
    return failed


def connection_error(
    where: str,
    cause: Exception | None,
    refused: bool,
    generation: int,
    restarting: Restarting | None,
) -> ConnectionClosed:
    """Returns the error of a connection that has ended, to be raised; a new one for each call.

    Args:
        where: Go's name of the call, such as `derp.Send`.
        cause: why the connection ended; `None`: the relay closed the stream.
        refused: it ended before the relay's ServerInfo.
        generation, restarting: as the attributes of `ConnectionClosed`.
    """
    # Closed by the program: there is nothing to connect again to, and no other cause.
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
