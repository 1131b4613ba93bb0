from __future__ import annotations

import asyncio
import json
from typing import Any

from pyderp.relay.counters import DropReason
from pyderp.server.site.metrics import metrics_text, variables
from pyderp.server.site.view import RelayView

from .world import bare, full


def read(view: RelayView) -> dict[str, Any]:
    parsed: dict[str, Any] = json.loads(asyncio.run(variables(view)))
    return parsed


def test_names_keep_their_prefixes() -> None:
    derp = read(bare())["derp"]
    assert derp["accepts"] == 0
    assert derp["gauge_current_connections"] == 0
    assert derp["counter_packets_received_kind"] == {"disco": 0, "other": 0}


def test_versions_are_text() -> None:
    top = read(bare())
    assert top["version"] == top["derp"]["version"] == "1.2.3"


def test_groups_are_objects() -> None:
    top = read(full())
    assert top["stun"]["counter_requests"] == {
        "not_stun": 0, "read_error": 0, "success": 3, "write_error": 0,
    }  # fmt: skip
    assert top["stun"]["counter_addrfamily"] == {"ipv4": 2, "ipv6": 1}
    assert top["stun"]["counter_no_local_addr"] == 4
    assert top["tls_listener"] == {
        "counter_accepted_connections": 30,
        "counter_rejected_connections": 20,
    }
    assert top["derper_tls_request_version"] == {"1.2": 1, "1.3": 8}
    assert top["counter_bootstrap_dns_requests"] == 9


def test_histograms_are_objects_in_order() -> None:
    view = bare()
    view.router.counters.mesh_update_loop_count.observe(3)
    histogram = read(view)["derp"]["counter_mesh_update_loop_count"]
    bounds = ["0", "1", "2", "5", "10", "20", "50", "100", "+Inf"]
    assert list(histogram) == [*bounds, "sum", "count"]
    assert [histogram[bound] for bound in bounds] == [0, 0, 0, 1, 1, 1, 1, 1, 1]
    assert (histogram["sum"], histogram["count"]) == (3, 1)


def test_drops_are_numbers_by_reason_and_kind() -> None:
    view = bare()
    view.router.counters.drop(DropReason.QUEUE_HEAD, disco=True, size=100)
    top = read(view)
    assert top["derp_packets_dropped"]["queue_head"] == {"disco": 1, "other": 0}
    assert top["derp_bytes_dropped"]["queue_head"] == {"disco": 100, "other": 0}


def test_the_variables_are_the_metrics_of_prometheus() -> None:
    view = full()
    text = asyncio.run(metrics_text(view)).decode()

    def flat(value: object, name: str) -> list[str]:
        name = name.replace("gauge_", "").replace("counter_", "")
        if name in ("derp", "stun", "tls_listener") and isinstance(value, dict):
            return [each for k, v in value.items() for each in flat(v, f"{name}_{k}")]
        return [name]

    for name in (each for k, v in read(view).items() for each in flat(v, k)):
        assert name == "derp_version" or f"# TYPE {name} " in text or f"{name}{{" in text


def test_the_json_ends_with_a_line_end() -> None:
    assert asyncio.run(variables(bare())).endswith(b"}\n")
