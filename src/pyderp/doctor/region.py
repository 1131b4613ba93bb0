"""Group `region`: whether the relays of a region form a mesh, and pass packets to each other."""

from __future__ import annotations

import itertools
import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from pyderp.doctor.carry import carry_again
from pyderp.doctor.finding import Check, Seen, failed, ok, skipped
from pyderp.doctor.visit import Settings, Visit

__all__ = ["CHECKS", "RegionVisit"]

_EVERY: Final = 0.2
"""Seconds between two attempts: a relay forwards to a client only after the mesh announced it."""
_PAIRS: Final = 12
"""How many pairs of nodes are tried, unless the run is deep."""
_SHARE: Final = 0.8
"""The share of the time limit for one pair."""
_NO_MESH: Final = (
    "connect each relay of the region to every other, with the same mesh key ({mesh_with}, "
    "{mesh_psk_file}); their logs say which mesh link is down"
)


@dataclass(frozen=True)
class RegionVisit:
    """The nodes of a region, after their own checks."""

    visits: Sequence[Visit]
    settings: Settings


async def _keys(region: RegionVisit) -> Seen:
    """Check that different nodes are different relays, by the keys that the relays presented."""
    seen: dict[str, str] = {}
    for visit in region.visits:
        for key in visit.relay_keys:
            other = seen.setdefault(str(key), visit.subject.node.name)
            if other != visit.subject.node.name:
                return failed(
                    f"{other} and {visit.subject.node.name} are the same relay, {key.short()}",
                    "give each relay one node in the map; two relays must not share a key file",
                )
    if len(seen) < 2:
        return skipped("fewer than two relays answer")
    return ok(f"{len(seen)} relays")


async def _mesh(region: RegionVisit) -> Seen:
    """Send a packet from a client of each node to a client of each other node, and back."""
    if region.settings.key is not None and region.settings.mesh_key is None:
        return skipped("not checked with {key}: two clients at different nodes need two keys")
    live = [visit for visit in region.visits if visit.pair is not None]
    if len(live) < 2:
        return skipped("fewer than two relays deliver packets")
    pairs = list(itertools.combinations(live, 2))
    tried = pairs if region.settings.deep else pairs[:_PAIRS]
    limit = region.settings.timeout * _SHARE / 2
    seconds: dict[str, float] = {}
    broken: list[str] = []
    for one, other in tried:
        for source, target in ((one, other), (other, one)):
            way = f"{source.subject.node.name} to {target.subject.node.name}"
            took = await _pass_packet(source, target, limit)
            if took is None:
                broken.append(way)
            else:
                seconds[way] = took
    data = {"seconds": seconds, "broken": broken}
    if broken:
        text = f"no packet passes within {limit:g} s from {', '.join(broken)}"
        return failed(text, _NO_MESH, **data)
    more = f", {len(pairs) - len(tried)} not tried" if len(pairs) > len(tried) else ""
    slowest = max(seconds.values()) * 1000
    text = f"packets pass between {len(tried)} pairs, both ways, in at most {slowest:.1f} ms{more}"
    if len(tried) == 1:
        text = f"packets pass both ways, in at most {slowest:.1f} ms"
    return ok(text, **data)


async def _pass_packet(source: Visit, target: Visit, limit: float) -> float | None:
    assert source.pair is not None and target.pair is not None  # noqa: PT018 (of one kind)
    return await carry_again(
        source.pair[0], target.pair[0], os.urandom(64), every=_EVERY, limit=limit
    )


CHECKS: Final[tuple[Check[RegionVisit], ...]] = (
    Check(name="region.relays", run=_keys),
    Check(name="region.mesh", run=_mesh, needs=("region.relays",), times=20.0),
)
