from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from pyderp.certs.credential import CertificateInfo, ExpiryWatch

ISSUED = datetime(2026, 1, 1, tzinfo=UTC)
END = ISSUED + timedelta(days=100)
ONE = CertificateInfo(("derp.example.com", "192.0.2.1"), ISSUED, END)
OTHER = CertificateInfo(("other.example.com",), ISSUED, END + timedelta(days=100))


@pytest.mark.parametrize(("day", "says"), [(79, None), (81, "expires on 2026-04-11"), (101, None)])
def test_a_warning_is_logged_in_the_last_fifth_of_the_lifetime(
    caplog: pytest.LogCaptureFixture, day: int, says: str | None
) -> None:
    ExpiryWatch().look([ONE, OTHER], ISSUED + timedelta(days=day))
    assert len(caplog.records) == bool(says)
    assert f"derp.example.com, 192.0.2.1 {says}" in caplog.text or not says


def test_the_warning_is_logged_once_a_day_and_at_once_for_a_new_certificate(
    caplog: pytest.LogCaptureFixture,
) -> None:
    watch = ExpiryWatch()
    counts = []
    for hours in (0, 1, 23, 24, 25, 49):
        watch.look([ONE], ISSUED + timedelta(days=90, hours=hours))
        counts.append(len(caplog.records))
    assert counts == [1, 1, 1, 2, 2, 3]
    watch.look([], END - timedelta(hours=1))
    watch.look([ONE], END - timedelta(hours=1))
    assert len(caplog.records) == 4
    watch.look([ONE], END + timedelta(days=1))
    assert "derp.example.com, 192.0.2.1 expired on 2026-04-11" in caplog.messages[-1]


def test_a_certificate_that_had_expired_before_is_logged_again_after_a_day(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Its source logs it at once."""
    watch = ExpiryWatch()
    counts = []
    for hours in (0, 23, 24):
        watch.look([ONE], END + timedelta(hours=hours))
        counts.append(len(caplog.records))
    assert counts == [0, 0, 1]


def test_a_lifetime_of_zero_has_nothing_remaining() -> None:
    assert CertificateInfo((), END, END).remaining(END) == 0
