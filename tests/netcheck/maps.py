"""Maps and reports for the tests of netcheck."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pyderp.maps.derpmap import DERPMap
from pyderp.maps.region import DERPNode, DERPRegion
from pyderp.netcheck.plan import MS
from pyderp.netcheck.report import Report


def node(region: int, index: int = 0, **more: Any) -> DERPNode:
    """A node with an address of each family; 1a is the first of region 1."""
    name = f"{region}{chr(ord('a') + index)}"
    values: dict[str, Any] = {
        "name": name,
        "region_id": region,
        "host_name": f"derp{name}.example.com",
        "ipv4": f"192.0.2.{region * 10 + index}",
        "ipv6": f"2001:db8::{region}:{index}",
    }
    return DERPNode(**(values | more))


def region(number: int, *nodes: DERPNode, **more: Any) -> DERPRegion:
    values: dict[str, Any] = {
        "region_id": number,
        "region_code": f"r{number}",
        "region_name": f"Region {number}",
        "nodes": nodes or (node(number),),
    }
    return DERPRegion(**(values | more))


def map_of(*regions: DERPRegion) -> DERPMap:
    return DERPMap(regions={each.region_id: each for each in regions})


def report(
    latencies: Mapping[int, float],
    *,
    v4: Mapping[int, float] | None = None,
    v6: Mapping[int, float] | None = None,
    now: int = 0,
) -> Report:
    """A report with latencies in milliseconds; a family without values has none."""
    return Report(
        now=now,
        udp=bool(latencies),
        region_latency=_ns(latencies),
        region_v4_latency=_ns(v4 or {}),
        region_v6_latency=_ns(v6 or {}),
    )


def _ns(latencies: Mapping[int, float]) -> dict[int, int]:
    return {number: round(latency * MS) for number, latency in latencies.items()}
