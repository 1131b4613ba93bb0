"""The dashboard in ``contrib``: the metrics and labels that it queries exist."""

from __future__ import annotations

import asyncio
import itertools
import json
import re
from pathlib import Path
from typing import Any

import pytest

from pyderp.server.site.metrics import metrics_text

from .world import FakeServed, full

DASHBOARD = Path(__file__).resolve().parents[3] / "contrib" / "grafana" / "pyderp.json"
EVERYWHERE = {"job", "instance"}
"""Labels that Prometheus adds to all metrics."""

METRIC = re.compile(r"\b([a-z]\w*)\{")


@pytest.fixture(scope="module")
def dashboard() -> dict[str, Any]:
    parsed: dict[str, Any] = json.loads(DASHBOARD.read_text())
    return parsed


@pytest.fixture(scope="module")
def labels() -> dict[str, set[str]]:
    """Return the metrics of a relay with everything on, each with its labels."""
    view = full(FakeServed(tls_version="1.3"))
    view.router.counters.tcp_rtt["10ms"] = 1
    text = asyncio.run(metrics_text(view)).decode()
    found: dict[str, set[str]] = {}
    for line in text.splitlines():
        if not line.startswith("#"):
            name = re.split("[{ ]", line)[0]
            found.setdefault(name, set()).update(re.findall(r'(\w+)="', line))
    return found


def targets(dashboard: dict[str, Any]) -> list[tuple[str, str]]:
    return [
        (target["expr"], target["legendFormat"])
        for panel in dashboard["panels"]
        for target in panel.get("targets", ())
    ]


def test_every_metric_exists(dashboard: dict[str, Any], labels: dict[str, set[str]]) -> None:
    asked = {name for expr, _ in targets(dashboard) for name in METRIC.findall(expr)}
    assert len(asked) > 40
    assert asked <= set(labels)


def test_every_query_selects_the_chosen_relays(dashboard: dict[str, Any]) -> None:
    for expr, _ in targets(dashboard):
        names = METRIC.findall(expr)
        assert names
        assert expr.count('{job=~"$job",instance=~"$instance"}') == len(names) == expr.count("{")
        assert expr.count("(") == expr.count(")")


def test_every_label_exists(dashboard: dict[str, Any], labels: dict[str, set[str]]) -> None:
    for expr, legend in targets(dashboard):
        known = EVERYWHERE.union(*(labels[name] for name in METRIC.findall(expr)))
        grouped = re.findall(r"by \((\w+)\)", expr)
        assert set(grouped) <= known
        shown = set(re.findall(r"\{\{(\w+)\}\}", legend))
        assert shown <= known
        # A sum has only the labels that it is grouped by.
        assert not expr.startswith(("sum(", "min(")) or not shown
        assert not grouped or shown == set(grouped)


def test_counters_are_shown_as_rates_and_gauges_are_not(dashboard: dict[str, Any]) -> None:
    text = asyncio.run(metrics_text(full())).decode()
    types = dict(re.findall(r"# TYPE (\S+) (\S+)", text))
    for expr, _ in targets(dashboard):
        for name in METRIC.findall(expr):
            rated = f"rate({name}{{" in expr
            if name == "derper_tls_request_version":
                assert rated  # derper exports this counter without a type
            elif name != "uptime_sec":
                assert rated == (types[name] == "counter"), name


def test_panels_have_unique_titles_and_do_not_overlap(dashboard: dict[str, Any]) -> None:
    panels = dashboard["panels"]
    for what in ("id", "title"):
        values = [panel[what] for panel in panels]
        titled = [value for value in values if values.count(value) > 1]
        assert not titled
    for first, second in itertools.combinations([panel["gridPos"] for panel in panels], 2):
        apart = (
            first["x"] + first["w"] <= second["x"]
            or second["x"] + second["w"] <= first["x"]
            or first["y"] + first["h"] <= second["y"]
            or second["y"] + second["h"] <= first["y"]
        )
        assert apart, (first, second)
    assert all(panel["gridPos"]["x"] + panel["gridPos"]["w"] <= 24 for panel in panels)
