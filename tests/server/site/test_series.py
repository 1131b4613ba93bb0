from __future__ import annotations

import pytest

from pyderp.relay.counters import Histogram
from pyderp.server.site.metrics_derper import Series


@pytest.mark.parametrize(
    ("raw", "group", "name", "kind"),
    [
        ("accepts", "derp", "derp_accepts", "counter"),
        ("gauge_watchers", "derp", "derp_watchers", "gauge"),
        ("counter_total_dup_client_conns", "derp", "derp_total_dup_client_conns", "counter"),
        ("counter_uptime_sec", "", "uptime_sec", "counter"),
        ("gauge_derper_tls_active_version", "", "derper_tls_active_version", "gauge"),
    ],
)
def test_the_prefix_of_the_raw_name_is_the_kind(raw: str, group: str, name: str, kind: str) -> None:
    series = Series(raw, "help", 1, group=group)
    assert series.name == name
    assert series.kind == kind


def test_a_histogram_is_one_whatever_its_prefix() -> None:
    assert Series("counter_sizes", "help", Histogram([1])).kind == "histogram"


def test_a_series_may_be_untyped() -> None:
    assert Series("x", "help", 1.0, untyped=True).kind == "untyped"
