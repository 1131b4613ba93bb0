from __future__ import annotations

from datetime import timedelta
from typing import Any

from pyderp.certs.credential import CertificateInfo
from pyderp.relay.connection import EndReason
from pyderp.server.site.metrics import own_series
from pyderp.server.site.view import RelayView

from .world import NOON, FakeLink, FakeMesh, FakeServed, bare, full


def gather(view: RelayView) -> dict[str, Any]:
    return {series.name: series.value for series in own_series(view)}


def test_all_names_begin_with_pyderp() -> None:
    assert all(name.startswith("pyderp_") for name in gather(full()))


def test_counters_end_in_total_and_gauges_do_not() -> None:
    for series in own_series(full()):
        assert (series.kind == "counter") == series.name.endswith("_total")


def test_metrics_of_disabled_parts_are_missing() -> None:
    assert set(gather(bare())) == {
        "pyderp_connections",
        "pyderp_connections_ended_total",
        "pyderp_degraded",
        "pyderp_native",
        "pyderp_connections_shed_total",
        "pyderp_protocol_errors_total",
        "pyderp_watchers_closed_total",
        "pyderp_mesh_keys_not_noted_total",
        "pyderp_peer_gone_not_sent_total",
        "pyderp_sources_not_noted_total",
        "pyderp_watch_repeats_ignored_total",
    }


def test_each_part_is_counted() -> None:
    view = full(FakeServed(), FakeServed())
    view.router.counters.ends[EndReason.PROTOCOL_ERROR] = 6
    values = gather(view)
    assert values["pyderp_connections"] == 2
    assert values["pyderp_protocol_errors_total"] == 6
    assert values["pyderp_connections_shed_total"] == 10
    assert values["pyderp_rate_limited_connections"] == 2
    assert values["pyderp_admission_allowed_total"] == 5
    assert values["pyderp_admission_denied_total"] == 4
    assert values["pyderp_admission_failed_open_total"] == 1


def test_of_several_certificates_for_a_name_the_first_to_expire_is_shown() -> None:
    def until(days: int, *names: str) -> CertificateInfo:
        return CertificateInfo(names, NOON, NOON + timedelta(days=days))

    view = bare(certificates=lambda: [until(9, "a", "b"), until(3, "b"), until(5, "b")])
    assert gather(view)["pyderp_certificate_expiry_timestamp_seconds"] == {
        ("a",): (NOON + timedelta(days=9)).timestamp(),
        ("b",): (NOON + timedelta(days=3)).timestamp(),
    }


def test_mesh_links_are_exported_but_not_the_one_to_itself() -> None:
    mesh = FakeMesh(
        FakeLink("b", peers=3), FakeLink("c", connected=False), FakeLink("a", is_self=True)
    )
    values = gather(bare(mesh=mesh))
    assert values["pyderp_mesh_link_up"] == {("b",): 1, ("c",): 0}
    assert values["pyderp_mesh_link_peers"] == {("b",): 3, ("c",): 0}
