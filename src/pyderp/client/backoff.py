"""When to try again, and whether."""

from __future__ import annotations

from collections.abc import Callable
from http import HTTPStatus
from typing import Final

from pyderp.errors import (
    CertificateError,
    ClientClosed,
    ConfigError,
    ConnectError,
    ConnectionClosed,
    InvalidMap,
    LocalProtocolError,
    RemoteProtocolError,
    UpgradeRejected,
)
from pyderp.wire.messages import Restarting

__all__ = ["Backoff", "is_transient"]

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

    Not so: a closed client, wrong use, a certificate that is not trusted, an HTTP refusal
    (4xx), and what is no DERP relay.
    """
    if isinstance(error, ConnectError):
        return not error.attempts or any(is_transient(e) for e in error.attempts)
    if isinstance(error, ClientClosed):
        return False
    if isinstance(error, ConnectionClosed | OSError):
        return True
    if isinstance(error, UpgradeRejected):
        server_side = error.status >= HTTPStatus.INTERNAL_SERVER_ERROR
        return server_side or error.status in _RETRYABLE_STATUS
    permanent = (CertificateError, ConfigError, InvalidMap, LocalProtocolError, RemoteProtocolError)
    return not isinstance(error, permanent)
