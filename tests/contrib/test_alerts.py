"""The alert rules in `contrib` name existing metrics of the relay."""

from __future__ import annotations

import asyncio
import re
from pathlib import Path

from pyderp.certs.credential import CertificateState
from pyderp.server.site.metrics import metrics_text
from tests.server.site.world import full

RULES = Path(__file__).parents[2] / "contrib" / "prometheus" / "alerts.yml"


GUIDE = Path(__file__).parents[2] / "docs" / "howto" / "monitoring.md"


def test_the_recommended_scrape_works_without_a_certificate() -> None:
    """A scrape over TLS fails in the very states that the rules about certificates report."""
    found = re.search(r"^scrape_configs:\n(.*?)```", GUIDE.read_text(), re.M | re.S)
    assert found
    assert "    scheme: http\n" in found[1]
    assert re.findall(r'"([^"]+)"', found[1]) == ["relay1.example.com:80", "relay2.example.com:80"]


def test_each_rule_uses_existing_metrics() -> None:
    view = full(certificate_states=lambda: [CertificateState("a.example", None)])
    text = asyncio.run(metrics_text(view)).decode()
    known = set(re.findall(r"^# TYPE (\S+)", text, re.MULTILINE))
    rules = re.findall(r"^        expr: (.*)$", RULES.read_text(), re.MULTILINE)
    used = {name for rule in rules for name in re.findall(r"\b(?:pyderp|process)_\w+", rule)}
    assert {"pyderp_degraded", "pyderp_certificate_missing"} <= used <= known
