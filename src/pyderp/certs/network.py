"""HTTP to a certificate authority that may be hostile or broken, with limits of bytes and time.

Also the one-line reason why an authority issued no certificate.
"""

from __future__ import annotations

import concurrent.futures
import email.utils
import io
import ssl
import threading
import time
from collections.abc import Callable
from typing import Any, Final, TypeVar

import requests
from acme import client, messages
from acme import errors as acme_errors
from josepy.errors import Error as JoseError
from urllib3.exceptions import HTTPError

from pyderp.errors import ConfigError
from pyderp.tasks import call_in_thread
from pyderp.text import printable, system_words

__all__ = ["FAILURES", "Budget", "Network", "Refused", "Stopped", "describe", "retry_after"]

T = TypeVar("T")

_AGENT: Final = "pyderp"
_PATIENCE: Final = 20.0
"""Seconds to connect, and seconds until the next bytes of an answer."""
_LONGEST_BODY: Final = 1024 * 1024
"""Bytes of the body of one answer."""
_LONGEST_EXCHANGE: Final = 8 * 1024 * 1024
"""Bytes of the bodies of all answers of one exchange together."""
_NONCE_TRIES: Final = 5
_LOOK: Final = 0.1
"""Seconds between two checks whether a request should be abandoned."""
_hanging: Final = threading.BoundedSemaphore(8)
"""Limits the threads of requests, together with abandoned ones that still run."""
_LONGEST_REASON: Final = 400
"""Characters of an authority's own text in a reason."""

FAILURES: Final = (
    acme_errors.Error,
    JoseError,
    requests.RequestException,
    ConfigError,
    OSError,
    # The library raises these for answers that are not valid ACME.
    ValueError,
    LookupError,
    ArithmeticError,
    AttributeError,
    TypeError,
    RecursionError,
)
"""The errors that a request to an authority may end with."""


class Stopped(Exception):
    """The relay is stopping and does not need the answer any more."""


class Budget:
    """The limits of time and bytes for one exchange with an authority.

    Args:
        seconds: time for the whole exchange.
        stop: is set when the relay stops.
    """

    def __init__(self, seconds: float, stop: threading.Event) -> None:
        self._end = time.monotonic() + seconds
        self._stop = stop
        self._octets = 0

    def check(self) -> None:
        """Raise if the exchange must not go on.

        Raises:
            acme.errors.TimeoutError: no time is left.
            Stopped: the relay is stopping.
        """
        if self._stop.is_set():
            raise Stopped
        if time.monotonic() >= self._end:
            raise acme_errors.TimeoutError

    def sleep(self, seconds: float) -> None:
        """Wait for a number of seconds.

        Raises:
            acme.errors.TimeoutError: less time is left; raised at once.
            Stopped: the relay is stopping, or stops during the wait.
        """
        if time.monotonic() + seconds > self._end:
            raise acme_errors.TimeoutError
        if self._stop.wait(seconds):
            raise Stopped

    def took(self, octets: int) -> None:
        """Count bytes that the authority sent.

        Raises:
            acme.errors.ClientError: the exchange has had too many bytes.
        """
        self._octets += octets
        if self._octets > _LONGEST_EXCHANGE:
            raise acme_errors.ClientError(f"more than {_LONGEST_EXCHANGE} bytes in all")

    def run(self, request: Callable[[], T]) -> T:
        """Make a request in a thread of its own, which is abandoned when no time is left.

        The HTTP library limits only the time until the next byte. A server that sends a byte now
        and then, in headers too, would block the caller for ever.

        Raises:
            acme.errors.TimeoutError: no time is left, or too many abandoned requests still run.
            Stopped: the relay is stopping.
        """
        self.check()
        # Threads cannot be ended from outside, so the abandoned ones are limited in number.
        if not _hanging.acquire(blocking=False):
            raise acme_errors.TimeoutError
        try:
            outcome = call_in_thread(request, name="pyderp-acme-http")
        except OSError:
            _hanging.release()
            raise
        outcome.add_done_callback(lambda _: _hanging.release())
        # Polled, because neither the end of the time nor `stop` wakes a wait for the result.
        try:
            while not concurrent.futures.wait([outcome], _LOOK).done:
                self.check()
            return outcome.result()
        finally:
            # It may have an error whose traceback refers to this frame: a reference cycle.
            del outcome


class Network(client.ClientNetwork):
    """The HTTP client of the `acme` library, with a budget.

    A request that was refused because of its nonce is sent again with a new one (RFC 8555 §6.5).

    Args:
        context: the TLS context for HTTPS; `None` for the default of the library.
    """

    def __init__(self, budget: Budget, context: ssl.SSLContext | None) -> None:
        super().__init__(user_agent=_AGENT)
        # No compression: a small compressed body may be very large after decompression.
        self.session.headers["Accept-Encoding"] = "identity"
        self.session.mount("http://", _Adapter(budget, None))
        self.session.mount("https://", _Adapter(budget, context))

    def post(self, *args: Any, **kwargs: Any) -> requests.Response:
        """Send a signed request, and check the answer."""
        for _ in range(_NONCE_TRIES - 1):
            try:
                return super().post(*args, **kwargs)
            except messages.Error as e:
                if e.code != "badNonce":
                    raise
                # The refusal has a new nonce, which the library uses for the next request.
        return super().post(*args, **kwargs)


class _Adapter(requests.adapters.HTTPAdapter):
    """Sends requests within the budget, and reads the whole body of each answer up to a limit."""

    def __init__(self, budget: Budget, context: ssl.SSLContext | None) -> None:
        super().__init__()
        self._budget = budget
        if context is not None:
            # One connection is enough, as the requests of a session follow one another.
            self.init_poolmanager(1, 1, ssl_context=context)

    def send(self, *args: Any, **kwargs: Any) -> requests.Response:
        kwargs["timeout"] = _PATIENCE
        response, body = self._budget.run(lambda: self._exchange(*args, **kwargs))
        self._budget.took(len(body))
        # requests reads the body from here later, when no limit of ours applies any more.
        response.raw = io.BytesIO(body)
        return response

    def _exchange(self, *args: Any, **kwargs: Any) -> tuple[requests.Response, bytes]:
        """Return the answer and its whole body, as it was on the wire."""
        response = super().send(*args, **kwargs)
        raw: Any = response.raw
        body = b""
        # One byte more than allowed is enough to recognize a body that is too long. It is not
        # decoded, because a hostile server may send compressed data that was not asked for.
        try:
            while piece := raw.read(_LONGEST_BODY + 1 - len(body), decode_content=False):
                body += piece
                if len(body) > _LONGEST_BODY:
                    response.close()
                    raise acme_errors.ClientError(f"more than {_LONGEST_BODY} bytes in one answer")
        except HTTPError as e:
            # As requests does with errors of its own reads; `describe` knows its errors.
            raise requests.ConnectionError(e) from e
        raw.release_conn()  # all was read, so the next request can use the connection
        return response, body


class Refused(Exception):
    """A request failed, and there is no certificate; not raised outside of this package.

    Attributes:
        retry_after: seconds that the authority's `Retry-After` demands, if it sent one.
        limited: the authority's error is `rateLimited`.
        asked: whether the authority was asked. If not, the next try need not wait for long.
    """

    def __init__(
        self,
        reason: str,
        *,
        retry_after: float | None = None,
        limited: bool = False,
        asked: bool = True,
    ) -> None:
        super().__init__(reason)
        self.retry_after = retry_after
        self.limited = limited
        self.asked = asked


def describe(error: BaseException) -> str:
    """Return why a request failed, for the log. Text from the authority is cut and escaped."""
    if isinstance(error, acme_errors.ValidationError):
        text = "; ".join(_failed_challenges(error)) or "a challenge failed"
    elif isinstance(error, acme_errors.IssuanceError):
        text = _problem(error.error)
    elif isinstance(error, messages.Error):
        text = _problem(error)
    elif isinstance(error, requests.RequestException):
        text = f"cannot reach the authority: {_innermost(error)}"
    elif isinstance(error, ConfigError):
        text = str(error)
    elif isinstance(error, OSError):
        text = system_words(error)
    else:
        text = f"the authority's answer is not ACME: {_no_acme(error)}"
    return printable(text, _LONGEST_REASON)


def _no_acme(error: BaseException) -> str:
    if isinstance(error, RecursionError):
        return "it is too deeply nested"
    if isinstance(error, acme_errors.MissingNonce):
        return "it lacks the header Replay-Nonce"
    what = error.args[0] if error.args else ""
    if isinstance(what, requests.Response):
        # The answer is a page of a proxy, or of a server that is not an ACME authority.
        return f"{what.status_code} {what.reason or ''}".strip()
    if isinstance(error, KeyError):
        return f"it lacks {what}"
    return str(error) or type(error).__name__


def _problem(error: messages.Error) -> str:
    text = f"{error.code or error.typ}: {error.detail or error.title or 'no reason given'}"
    more = [_problem(each) for each in error.subproblems or ()]
    return f"{text} ({'; '.join(more)})" if more else text


def _failed_challenges(error: acme_errors.ValidationError) -> list[str]:
    return [
        f"challenge {challenge.chall.typ} failed: {_problem(challenge.error)}"
        for authorization in error.failed_authzrs
        for challenge in authorization.body.challenges
        if challenge.error is not None
    ]


def _innermost(error: BaseException) -> str:
    # requests wraps urllib3's error, and that the system's. Only the last one tells the operator
    # something. The number of steps is limited, in case errors refer to each other in a circle.
    reason: Any = error
    for _ in range(8):
        inner = getattr(reason, "reason", None)
        if not isinstance(inner, BaseException) and getattr(reason, "args", None):
            inner = reason.args[0]
        if not isinstance(inner, BaseException):
            break
        reason = inner
    cause = reason.__cause__ or reason.__context__ or reason
    return system_words(cause) if isinstance(cause, OSError) else str(cause)


def retry_after(value: str | None, now: float) -> float | None:
    """Return the seconds of a `Retry-After` header: a number or a date (RFC 9110 §10.2.3).

    Args:
        value: the header's value; `None` if there is none.
        now: seconds since 1970.

    Returns:
        `None` if there is no header, or its value is malformed.
    """
    if value is None:
        return None
    if value.strip().isdecimal() and len(value) < 10:
        return float(value)
    try:
        return max(email.utils.parsedate_to_datetime(value).timestamp() - now, 0.0)
    except (ValueError, TypeError, OverflowError):
        return None
