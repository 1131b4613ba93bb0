"""Advice for each reason why a connect fails."""

from __future__ import annotations

import pytest

from pyderp.doctor.advice import explain
from pyderp.errors import DialError, FailureReason


@pytest.mark.parametrize("reason", FailureReason, ids=lambda reason: reason.name)
def test_each_reason_has_advice_and_only_reasons_of_proxies_name_one(
    reason: FailureReason,
) -> None:
    seen = explain(DialError("no connection", reason=reason))
    assert seen.advice
    assert ("proxy" in seen.advice) is reason.name.startswith("PROXY_")


def test_an_error_of_the_system_has_no_number_and_no_class() -> None:
    seen = explain(ConnectionResetError(104, "Connection reset by peer"))
    assert seen.text == "Connection reset by peer"
