"""The debug page, the check and the metrics report the same troubles."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from pyderp.certs.credential import CertificateInfo, CertificateState
from pyderp.config import ManualTLS, RelayConfig
from pyderp.server.site.degraded import troubles
from pyderp.server.site.metrics import metrics_text
from pyderp.server.site.view import RelayView
from pyderp.server.trouble import Part, Trouble

from .world import NOON, FakeAdmission, FakeLimits, FakeLink, FakeMesh, bare, get

NAME = "relay.example.com"
DAY = timedelta(days=1)


def state(error: str = "", *, start: int = -10, end: int = 80, **more: Any) -> CertificateState:
    info = CertificateInfo((NAME,), NOON + start * DAY, NOON + end * DAY)
    return CertificateState(**{"name": NAME, "info": info, "error": error, **more})


def failing_open() -> FakeAdmission:
    admission = FakeAdmission()
    admission.failing = "controller is unreachable, clients are let in unasked: refused"
    return admission


CASES: dict[str, tuple[dict[str, Any], Part, str]] = {
    "no certificate": (
        {"certificate_states": lambda: [state("CA is down", info=None, failures=3)]},
        Part.CERTIFICATE,
        f"no certificate for {NAME}: CA is down",
    ),
    "a certificate that was asked for": (
        {"certificate_states": lambda: [state(info=None)]},
        Part.CERTIFICATE,
        f"no certificate for {NAME}; it has been asked for",
    ),
    "an expired certificate": (
        {"certificate_states": lambda: [state(end=-1)]},
        Part.CERTIFICATE,
        f"the certificate for {NAME} expired on 2029-12-31 12:00 UTC",
    ),
    "a certificate of tomorrow": (
        {"certificate_states": lambda: [state(start=1)]},
        Part.CERTIFICATE,
        f"the certificate for {NAME} is not valid before 2030-01-02 12:00 UTC",
    ),
    "a file that is not taken": (
        {"certificate_states": lambda: [state("no PEM")]},
        Part.CERTIFICATE,
        f"the certificate for {NAME}, valid until 2030-03-22 12:00 UTC, is not replaced: no PEM",
    ),
    "a renewal that fails for long": (
        {"certificate_states": lambda: [state("CA is down", start=-80, end=10, next_try=1.0)]},
        Part.CERTIFICATE,
        f"the certificate for {NAME}, valid until 2030-01-11 12:00 UTC, is not replaced: "
        "CA is down",
    ),
    "a certificate that is not saved": (
        {"certificate_states": lambda: [state(unsaved="disk is full")]},
        Part.CERTIFICATE,
        f"the certificate for {NAME} cannot be saved, it is lost if the relay stops: disk is full",
    ),
    "a controller that is down": (
        {"admission": failing_open()},
        Part.ADMISSION,
        "controller is unreachable, clients are let in unasked: refused",
    ),
    "a mesh link": (
        {"mesh": FakeMesh(FakeLink("b.example", connected=False, error="no route"))},
        Part.MESH,
        "mesh link to b.example is down: no route",
    ),
    "no STUN": ({"stun_trouble": lambda: "no STUN: taken"}, Part.STUN, "no STUN: taken"),
    "a rate config": (
        {"limits": FakeLimits(trouble="rate config x: no JSON")},
        Part.RATE_CONFIG,
        "rate config x: no JSON",
    ),
    "the log": (
        {"more_troubles": lambda: [Trouble(Part.LOG, "the log cannot be written: full")]},
        Part.LOG,
        "the log cannot be written: full",
    ),
}


def scrape(view: RelayView) -> str:
    return asyncio.run(metrics_text(view)).decode()


@pytest.mark.parametrize("case", CASES)
def test_each_trouble_is_shown_everywhere(case: str) -> None:
    parts, part, text = CASES[case]
    tls = ManualTLS(certdir=Path("unused"), hostname=NAME)
    view = bare(config=RelayConfig(tls=tls), **parts)
    assert troubles(view) == [Trouble(part, text)]
    check = get(view, "/debug/check")
    assert (check.status, check.body.decode()) == (500, f"{text}\n")
    assert f"<b>DEGRADED ({part}):</b> {text}<" in get(view, "/debug/").body.decode()
    assert f'\npyderp_degraded{{part="{part}"}} 1\n' in scrape(view)


def test_the_check_has_a_line_for_each_trouble() -> None:
    """Not separated by commas or semicolons: the texts contain these."""
    parts = CASES["a certificate that was asked for"][0] | CASES["a controller that is down"][0]
    view = bare(config=RelayConfig(tls=ManualTLS(certdir=Path("unused"), hostname=NAME)), **parts)
    assert get(view, "/debug/check").body.decode().splitlines() == [
        f"no certificate for {NAME}; it has been asked for",
        "controller is unreachable, clients are let in unasked: refused",
    ]


def test_a_relay_that_works_is_not_degraded() -> None:
    healthy = {
        "certificate_states": lambda: [
            state(),
            state("CA is down", next_try=1.0),  # much of its lifetime is left
        ],
        "admission": FakeAdmission(),
        "mesh": FakeMesh(
            FakeLink("b.example"), FakeLink("a.example", connected=False, is_self=True)
        ),
        "limits": FakeLimits(),
    }
    view = bare(**healthy)
    assert troubles(view) == []
    assert get(view, "/debug/check").status == 200
    assert "DEGRADED" not in get(view, "/debug/").body.decode()
    gauges = [line for line in scrape(view).splitlines() if line.startswith("pyderp_degraded{")]
    assert gauges
    assert all(line.endswith(" 0") for line in gauges)


def test_each_certificate_has_metrics_of_its_own() -> None:
    states = [
        state("CA is down", info=None, failures=3, next_try=1893499300.0),
        state(name="other.example"),
    ]
    text = scrape(bare(certificate_states=lambda: states))
    for line in (
        f'pyderp_certificate_missing{{name="{NAME}"}} 1',
        'pyderp_certificate_missing{name="other.example"} 0',
        f'pyderp_certificate_failures{{name="{NAME}"}} 3',
        f'pyderp_certificate_next_try_timestamp_seconds{{name="{NAME}"}} 1893499300.0',
    ):
        assert f"\n{line}\n" in text


def test_the_page_says_that_admission_has_a_trouble() -> None:
    body = get(bare(admission=failing_open()), "/debug/").body.decode()
    assert "checked by allow file, local tailscaled; IN TROUBLE, see above<" in body
