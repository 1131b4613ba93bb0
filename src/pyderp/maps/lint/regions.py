"""Rules about one region."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Final

from pyderp.addresses import bare_name
from pyderp.maps.lint.finding import FIRST_OWN, LAST_OWN, Finding, region_path, unknown_members
from pyderp.maps.region import MAX_REGION_ID, REGION_NAMES, DERPRegion

__all__ = ["is_tailscales", "of_region"]

_TAILSCALE: Final = ".tailscale.com"
_NUMBER: Final = re.compile(r"[0-9]+", re.ASCII)


def of_region(number: int, region: DERPRegion) -> Iterator[Finding]:
    """Yield the findings about a region, without those about its single nodes."""
    path = region_path(number)
    if not 1 <= number <= MAX_REGION_ID or region.region_id != number:
        yield Finding(
            rule="region-id",
            path=f"{path}.RegionID",
            text=f"the key is {number} and RegionID {region.region_id}: both must be the same, "
            f"from 1 to {MAX_REGION_ID}",
            advice=f"write one id in both places, {FIRST_OWN} to {LAST_OWN} for your own relays",
        )
    elif number < FIRST_OWN and region.nodes and not is_tailscales(region):
        yield Finding(
            rule="own-id",
            path=path,
            text=f"ids below {FIRST_OWN} are Tailscale's: this region replaces Tailscale's region "
            f"{number}, also if Tailscale adds that later",
            advice=f"use an id from {FIRST_OWN} to {LAST_OWN}",
        )
    yield from _labels(region, path)
    yield from _nodes_of(region, path)
    if region.avoid:
        yield Finding(
            rule="avoid",
            path=f"{path}.Avoid",
            text="Avoid is deprecated, and a region that has it may still become home",
            advice="write NoMeasureNoHome instead",
        )
    if abs(region.latitude) > 90 or abs(region.longitude) > 180:
        yield Finding(
            rule="place",
            path=f"{path}.Latitude",
            text=f"{region.latitude:g}, {region.longitude:g} is not a place on Earth",
            advice="write a Latitude from -90 to 90, and a Longitude from -180 to 180",
        )
    yield from unknown_members(region.unknown, path, REGION_NAMES)


def is_tailscales(region: DERPRegion) -> bool:
    """Return whether a node of the region has a name in Tailscale's domain."""
    return any(bare_name(node.host_name).endswith(_TAILSCALE) for node in region.nodes)


def _labels(region: DERPRegion, path: str) -> Iterator[Finding]:
    if not region.region_code:
        yield Finding(
            rule="region-code",
            path=f"{path}.RegionCode",
            text="no code: tables and metrics show nothing for this region",
            advice="give it a short code, such as that of the nearest airport",
        )
    elif _NUMBER.fullmatch(region.region_code):
        yield Finding(
            rule="region-code",
            path=f"{path}.RegionCode",
            text=f"the code {region.region_code!r} is a number, which commands take for an id",
            advice="give it a code with a letter",
        )


def _nodes_of(region: DERPRegion, path: str) -> Iterator[Finding]:
    nodes = region.nodes
    if not nodes:
        yield Finding(
            rule="no-nodes",
            path=f"{path}.Nodes",
            text="no nodes: clients cannot connect to this region",
            advice="add a node, or remove the region",
        )
        return
    if all(node.stun_only for node in nodes):
        yield Finding(
            rule="stun-only-region",
            path=f"{path}.Nodes",
            text="all nodes are STUNOnly: clients may choose the region as home and then find no "
            "relay in it",
            advice="add a node with a relay, or set NoMeasureNoHome",
        )
    elif nodes[0].stun_only:
        yield Finding(
            rule="stun-only-first",
            path=f"{path}.Nodes[0].STUNOnly",
            text="the first node is STUNOnly: clients measure it, but connect to another node, "
            "which may be far away or down, and which counts them as not at their ideal node",
            advice="move a node that is a relay to the front",
        )
    if all(node.stun_port < 0 for node in nodes) and not region.no_measure_no_home:
        yield Finding(
            rule="no-stun",
            path=f"{path}.Nodes",
            text="no node answers STUN: clients measure the region by HTTPS only, and only if UDP "
            "is blocked, so they rarely choose it as home",
            advice="let a relay answer STUN, and leave STUNPort out or write its port",
        )
