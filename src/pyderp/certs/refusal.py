"""Why an authority gave no certificate, in one line."""

from __future__ import annotations

import email.utils
from typing import Any, Final

import requests
from acme import errors as acme_errors
from acme import messages
from josepy.errors import Error as JoseError

from pyderp.errors import ConfigError
from pyderp.text import printable

__all__ = ["FAILURES", "Refused", "describe", "retry_after"]

_LONGEST: Final = 400
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
    """What went wrong, for the log; what strangers wrote is cut and escaped."""
    if isinstance(error, acme_errors.ValidationError):
        text = "; ".join(_failed_challenges(error)) or "a challenge failed"
    elif isinstance(error, acme_errors.IssuanceError):
        text = _problem(error.error)
    elif isinstance(error, messages.Error):
        text = _problem(error)
    elif isinstance(error, acme_errors.ClientError) and error.args:
        text = f"the authority's answer is no ACME: {error.args[0]}"
    elif isinstance(error, requests.RequestException):
        text = f"cannot reach the authority: {_innermost(error)}"
    elif isinstance(error, ConfigError):
        text = str(error)
    elif isinstance(error, OSError):
        text = str(error.strerror or error)
    elif isinstance(error, RecursionError):
        text = "the authority's answer is no ACME: it is too deeply nested"
    else:
        text = f"the authority's answer is no ACME: {error!r}"
    return printable(text, _LONGEST)


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
    return str(getattr(cause, "strerror", None) or cause)


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
