from __future__ import annotations

import asyncio
from typing import Any

from pyderp.keys import NodePrivate
from pyderp.relay.counters import DropReason
from pyderp.relay.limits import RateConfig
from pyderp.server.site.metrics_derper import gather_upstream
from pyderp.server.site.view import RelayView

from .world import NOON, FakeLimits, FakeServed, bare, client, full


def gather(view: RelayView) -> dict[str, Any]:
    return {series.name: series.value for series in asyncio.run(gather_upstream(view))}


class Elsewhere:
    """Another relay of the mesh."""

    def forward(self, src: bytes, dst: bytes, packet: bytes) -> DropReason | None:
        return None


def test_a_key_here_and_on_another_relay_is_counted_once() -> None:
    view = bare()
    here = client()
    view.router.login(here)
    view.router.login(client(2))
    other = Elsewhere()
    view.router.add_forwarder(here.key, other)
    for _ in range(3):
        view.router.add_forwarder(NodePrivate.generate().public.raw, other)
    values = gather(view)
    assert values["derp_clients_local"] == 2
    assert values["derp_clients_remote"] == 3
    assert values["derp_clients_total"] == 5


def test_duplicates_are_counted_by_key_and_by_connection() -> None:
    view = bare()
    key = NodePrivate.generate().public
    for number in (1, 2, 3):
        view.router.login(client(number, key=key))
    view.router.login(client(4))
    values = gather(view)
    assert values["derp_current_connections"] == 4
    assert values["derp_clients_local"] == 2
    assert values["derp_current_dup_client_keys"] == 1
    assert values["derp_current_dup_client_conns"] == 3
    assert values["derp_total_dup_client_conns"] == 2


def test_packets_are_counted_by_kind() -> None:
    view = bare()
    view.router.counters.packets_received = 10
    view.router.counters.disco_received = 4
    assert gather(view)["derp_packets_received_kind"] == {("disco",): 4, ("other",): 6}


def test_drops_have_all_reasons_from_the_start() -> None:
    drops = gather(bare())["derp_packets_dropped"]
    assert set(drops) == {(r.value, kind) for r in DropReason for kind in ("disco", "other")}
    assert list(drops) == sorted(drops)
    assert set(drops.values()) == {0}


def test_limits_are_exported_only_if_there_are_some() -> None:
    assert not any("rate_limit" in name for name in gather(bare()))
    values = gather(full())
    assert values["derp_rate_limit_per_client_bytes_per_second"] == 1000
    assert values["derp_rate_limit_per_client_burst_bytes"] == 70_000
    assert values["derp_rate_limit_per_client_waited"] == 7


def test_no_limit_is_zero() -> None:
    values = gather(bare(limits=FakeLimits(RateConfig())))
    assert values["derp_rate_limit_per_client_bytes_per_second"] == 0
    assert values["derp_rate_limit_per_client_burst_bytes"] == 0


def test_metrics_of_disabled_parts_are_zero() -> None:
    values = gather(bare())
    assert set(values["stun_requests"].values()) == {0}
    assert values["tls_listener_accepted_connections"] == 0
    assert values["bootstrap_dns_requests"] == 0


def test_connections_are_counted_by_tls_version() -> None:
    served = [FakeServed(tls_version=version) for version in ("1.3", "", "1.2", "1.3")]
    assert gather(bare(*served))["derper_tls_active_version"] == {("1.2",): 1, ("1.3",): 2}


def test_round_trip_times_keep_their_labels() -> None:
    view = bare()
    view.router.counters.tcp_rtt.update({"inf": 2, "10ms": 5})
    assert gather(view)["derp_tcp_rtt"] == {("10ms",): 5, ("inf",): 2}


def test_the_age_of_the_relay_is_in_whole_seconds() -> None:
    start = NOON.timestamp() - 90.7
    values = gather(bare(started=start))
    assert values["uptime_sec"] == 90
    assert values["process_start_unix_time"] == int(start)


def test_the_age_is_never_negative() -> None:
    assert gather(bare(started=NOON.timestamp() + 10))["uptime_sec"] == 0
