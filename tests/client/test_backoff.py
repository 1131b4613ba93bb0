"""How long to wait before a reconnect, and which errors may pass."""

from __future__ import annotations

import pytest

from pyderp import (
    CertificateError,
    ClientClosed,
    ConfigError,
    ConnectError,
    ConnectionClosed,
    DialError,
    InvalidMap,
    LocalProtocolError,
    PinMismatch,
    RemoteProtocolError,
    TLSError,
    UpgradeRejected,
    is_transient,
)
from pyderp.client.backoff import Backoff
from pyderp.wire.messages import Restarting


def test_squares_of_ten_milliseconds() -> None:
    """The n-th wait is n² × 10 ms, at most 5 s."""
    backoff = Backoff(lambda: 0.5)
    waits = [backoff.failed(0) for _ in range(30)]
    assert waits == pytest.approx([min(n * n * 0.01, 5.0) for n in range(1, 31)])


@pytest.mark.parametrize(("uniform", "factor"), [(0.0, 0.5), (0.999, 1.499)])
def test_jitter(uniform: float, factor: float) -> None:
    """A wait is between a half and one and a half of that."""
    assert Backoff(lambda: uniform).failed(0) == pytest.approx(0.01 * factor)


def test_reset() -> None:
    """After a success it begins anew."""
    backoff = Backoff(lambda: 0.5)
    for _ in range(9):
        backoff.failed(0)
    backoff.reset()
    assert backoff.failed(0) == pytest.approx(0.01)


def test_restart_that_was_announced() -> None:
    """A relay says when to come back; then attempts are frequent for as long as it says."""
    backoff = Backoff(lambda: 0.5)
    for _ in range(30):
        backoff.failed(100)
    assert backoff.announced(Restarting(reconnect_in=2.5, try_for=60), 100) == 2.5
    waits = [backoff.failed(102.5 + n) for n in range(20)]
    assert max(waits) == pytest.approx(1.0)
    # 162.5 is when the time ends.
    assert backoff.failed(162.4) == pytest.approx(1.0)
    assert backoff.failed(162.6) > 4


def test_advice_has_a_bound() -> None:
    """No relay keeps a client away for longer than a minute."""
    assert Backoff(lambda: 0.5).announced(Restarting(2**32 / 1000, 0), 0) == 60


@pytest.mark.parametrize(
    ("error", "transient"),
    [
        (ConnectionClosed("x"), True),
        (ConnectionResetError(), True),
        (TimeoutError(), True),
        (DialError("x"), True),
        (TLSError("x"), True),
        (UpgradeRejected("x", status=503, body=""), True),
        (UpgradeRejected("x", status=500, body=""), True),
        (UpgradeRejected("x", status=429, body=""), True),
        (UpgradeRejected("x", status=408, body=""), True),
        (UpgradeRejected("x", status=404, body=""), False),
        (UpgradeRejected("x", status=200, body=""), False),
        (ClientClosed("x"), False),
        (CertificateError("x"), False),
        (PinMismatch("x"), False),
        (ConfigError("x"), False),
        (InvalidMap("x"), False),
        (LocalProtocolError("x"), False),
        (RemoteProtocolError("x"), False),
        (ConnectError("DERP region not available"), True),
        (ConnectError("x", attempts=[CertificateError("x")]), False),
        (ConnectError("x", attempts=[CertificateError("x"), DialError("x")]), True),
    ],
)
def test_is_transient(error: Exception, transient: bool) -> None:
    """What may pass by itself, and what needs a person."""
    assert is_transient(error) is transient
