"""HTTP to a certificate authority that may be hostile or broken: bounded in bytes and time.

And why an authority gave no certificate, in one line.
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
"""Seconds for each of connecting and the next bytes of an answer."""
_LONGEST_BODY: Final = 1024 * 1024
_LONGEST_EXCHANGE: Final = 8 * 1024 * 1024
"""Bytes of the bodies of all answers of one exchange."""
_NONCE_TRIES: Final = 5
_LOOK: Final = 0.1
"""Seconds between two looks whether a request should be abandoned."""
_hanging: Final = threading.BoundedSemaphore(8)
"""Threads for requests, with those that were abandoned and have not ended yet."""
_LONGEST_REASON: Final = 400
"""Characters of an authority's own words."""

FAILURES: Final = (
    acme_errors.Error,
    JoseError,
    requests.RequestException,
    ConfigError,
    OSError,
    # What comes of an answer that is no ACME.
    ValueError,
    LookupError,
    ArithmeticError,
    AttributeError,
    TypeError,
    RecursionError,
)
"""What asking an authority may end with."""


class Stopped(Exception):
    """The relay stops, and has no use for an answer any more."""


class Budget:
    """What one exchange with an authority may cost.

    Args:
        seconds: for all of it.
        stop: tells to stop.
    """

    def __init__(self, seconds: float, stop: threading.Event) -> None:
        self._end = time.monotonic() + seconds
        self._stop = stop
        self._octets = 0

    def check(self) -> None:
        """See whether to go on.

        Raises:
            acme.errors.TimeoutError: no time is left.
            Stopped: it was told to stop.
        """
        if self._stop.is_set():
            raise Stopped
        if time.monotonic() >= self._end:
            raise acme_errors.TimeoutError

    def sleep(self, seconds: float) -> None:
        """Wait.

        Raises:
            acme.errors.TimeoutError: so much time is not left.
            Stopped: it was told to stop, before or meanwhile.
        """
        if time.monotonic() + seconds > self._end:
            raise acme_errors.TimeoutError
        if self._stop.wait(seconds):
            raise Stopped

    def took(self, octets: int) -> None:
        """Count what came from the network.

        Raises:
            acme.errors.ClientError: that is too much.
        """
        self._octets += octets
        if self._octets > _LONGEST_EXCHANGE:
            raise acme_errors.ClientError(f"more than {_LONGEST_EXCHANGE} bytes in all")

    def run(self, request: Callable[[], T]) -> T:
        """Make a request on a thread of its own, which is abandoned when there is no time left.

        The HTTP library bounds only the time until the next byte, so a peer that sends one now
        and then, in headers too, would hold up its caller for ever.

        Raises:
            acme.errors.TimeoutError: no time is left, or too many abandoned requests still hang.
            Stopped: it was told to stop.
        """
        self.check()
        if not _hanging.acquire(blocking=False):
            raise acme_errors.TimeoutError
        try:
            outcome = call_in_thread(request, name="pyderp-acme-http")
        except OSError:
            _hanging.release()
            raise
        outcome.add_done_callback(lambda _: _hanging.release())
        try:
            while not concurrent.futures.wait([outcome], _LOOK).done:
                self.check()
            return outcome.result()
        finally:
            del outcome  # it may hold an error, which holds this frame


class Network(client.ClientNetwork):
    """The library's, within a budget.

    It tries again what was refused for a stale nonce only, as RFC 8555 §6.5 wants it.

    Args:
        context: for HTTPS; `None`: what the library takes.
    """

    def __init__(self, budget: Budget, context: ssl.SSLContext | None) -> None:
        super().__init__(user_agent=_AGENT)
        # What is small on the wire may be large once unpacked.
        self.session.headers["Accept-Encoding"] = "identity"
        self.session.mount("http://", _Adapter(budget, None))
        self.session.mount("https://", _Adapter(budget, context))

    def post(self, *args: Any, **kwargs: Any) -> requests.Response:
        """Send something signed, and check the answer."""
        for _ in range(_NONCE_TRIES - 1):
            try:
                return super().post(*args, **kwargs)
            except messages.Error as e:
                if e.code != "badNonce":
                    raise
        return super().post(*args, **kwargs)


class _Adapter(requests.adapters.HTTPAdapter):
    """Reads each answer at once, no more of it than is permitted, and within the budget."""

    def __init__(self, budget: Budget, context: ssl.SSLContext | None) -> None:
        super().__init__()
        self._budget = budget
        if context is not None:
            self.init_poolmanager(1, 1, ssl_context=context)

    def send(self, *args: Any, **kwargs: Any) -> requests.Response:
        kwargs["timeout"] = _PATIENCE
        response, body = self._budget.run(lambda: self._exchange(*args, **kwargs))
        self._budget.took(len(body))
        response.raw = io.BytesIO(body)
        return response

    def _exchange(self, *args: Any, **kwargs: Any) -> tuple[requests.Response, bytes]:
        """The answer and all of its body, not unpacked."""
        response = super().send(*args, **kwargs)
        raw: Any = response.raw
        body = b""
        try:
            while piece := raw.read(_LONGEST_BODY + 1 - len(body), decode_content=False):
                body += piece
                if len(body) > _LONGEST_BODY:
                    response.close()
                    raise acme_errors.ClientError(f"more than {_LONGEST_BODY} bytes in one answer")
        except HTTPError as e:
            raise requests.ConnectionError(e) from e
        raw.release_conn()
        return response, body


class Refused(Exception):
    """There is no certificate; never leaves this package.

    Attributes:
        retry_after: seconds that the authority wants to be left alone, if it said so.
        limited: it said that it is asked too often.
        asked: whether it was asked at all; otherwise there is no need to spare it.
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
    """What went wrong, for the log; what the authority wrote is cut and escaped."""
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
        text = f"the authority's answer is no ACME: {_no_acme(error)}"
    return printable(text, _LONGEST_REASON)


def _no_acme(error: BaseException) -> str:
    if isinstance(error, RecursionError):
        return "it is too deeply nested"
    if isinstance(error, acme_errors.MissingNonce):
        return "it lacks the header Replay-Nonce"
    what = error.args[0] if error.args else ""
    if isinstance(what, requests.Response):
        # A page of a proxy, or of a server that is no authority.
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
    # requests wraps urllib3 wraps the system's error; only that is worth reading.
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
    """Seconds in a `Retry-After` header, which has a number or a date (RFC 9110 §10.2.3)."""
    if value is None:
        return None
    if value.strip().isdecimal() and len(value) < 10:
        return float(value)
    try:
        return max(email.utils.parsedate_to_datetime(value).timestamp() - now, 0.0)
    except (ValueError, TypeError, OverflowError):
        return None
