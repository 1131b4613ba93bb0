from __future__ import annotations

import pytest
import requests
from acme import errors, messages

from pyderp.certs.refusal import describe, retry_after
from pyderp.errors import ConfigError

PREFIX = messages.ERROR_PREFIX
NOW = 1_800_000_000.0


def problem(code: str, detail: str | None = None, **more: object) -> messages.Error:
    made: messages.Error = messages.Error.from_json(
        {"type": PREFIX + code, "detail": detail, **more}
    )
    return made


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (problem("rateLimited", "too many\x1b[31m"), r"rateLimited: too many\x1b[31m"),
        (problem("caa"), "caa: no reason given"),
        (
            problem("compound", "two", subproblems=[{"type": PREFIX + "dns", "detail": "gone"}]),
            "compound: two (dns: gone)",
        ),
        (errors.IssuanceError(problem("badCSR", "weak key")), "badCSR: weak key"),
        (errors.ValidationError([]), "a challenge failed"),
        (errors.ClientError("<Response [500]>"), "the authority's answer is no ACME: <Resp"),
        (requests.ConnectionError("odd"), "cannot reach the authority: odd"),
        (requests.ReadTimeout(TimeoutError("timed out")), "cannot reach the authority: timed out"),
        (ConfigError("cannot read it"), "cannot read it"),
        (OSError(28, "No space left on device"), "No space left on device"),
        (KeyError("newNonce"), "the authority's answer is no ACME: KeyError('newNonce')"),
    ],
)
def test_errors_are_told_in_one_line(error: Exception, text: str) -> None:
    assert describe(error).startswith(text)


def test_long_words_are_cut() -> None:
    told = describe(problem("malformed", "x" * 10000))
    assert len(told) == 400
    assert told.endswith("…")


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        (None, None),
        ("120", 120),
        (" 0 ", 0),
        ("Fri, 15 Jan 2027 08:01:40 GMT", 100),
        ("Fri, 01 Jan 2021 00:00:00 GMT", 0),
        ("soon", None),
        ("9" * 50, None),
        ("-5", None),
    ],
)
def test_retry_after_is_a_number_or_a_date(value: str | None, seconds: float | None) -> None:
    assert retry_after(value, NOW) == seconds
