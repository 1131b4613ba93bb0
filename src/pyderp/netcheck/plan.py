"""Plans which STUN requests a run sends, to which nodes and when (`net/netcheck.makeProbePlan`).

Sans-IO. Times are nanoseconds and integers as in Go, so that the delays are exactly the same.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from enum import IntEnum
from typing import Final, TypeAlias

from pyderp.addresses import ip_literal
from pyderp.maps.derpmap import DERPMap
from pyderp.maps.region import DERPNode, DERPRegion
from pyderp.netcheck.report import Report

__all__ = ["MS", "Family", "Plan", "Probe", "SetKey", "is_test_node", "make_plan", "sorted_regions"]

MS: Final = 1_000_000
"""Nanoseconds of a millisecond."""
INITIAL_STEP: Final = 100 * MS
"""Between two requests of a set in a full run [defaultInitialRetransmitTime]."""
STEADY_STEP: Final = 200 * MS
"""Between two requests of a set in an incremental run, for a region of unknown latency
[defaultActiveRetransmitTime]."""
INITIAL_TRIES: Final = 3
"""Requests of a set in a full run."""
INCREMENTAL_REGIONS: Final = 3
"""How many of the fastest regions an incremental run measures [numIncrementalRegions]."""
_HOME_TRIES: Final = 4
"""Requests to home in an incremental run: more, as lost answers may make home change."""
_LATE_EXTRA: Final = 50 * MS
"""Additional delay of the third request (2 × this) and the fourth (3 × this)."""


class Family(IntEnum):
    """IPv4 or IPv6."""

    V4 = 4
    V6 = 6


SetKey: TypeAlias = tuple[int, Family]
"""Region key and family of a set of probes; the first answer ends the set."""


@dataclass(frozen=True, slots=True)
class Probe:
    """One STUN request."""

    region: int
    """Key of the region in the map."""
    node: DERPNode
    family: Family
    delay: int
    """Nanoseconds after the run began."""

    @property
    def set_key(self) -> SetKey:
        """The set that the probe belongs to."""
        return self.region, self.family


Plan: TypeAlias = Mapping[SetKey, tuple[Probe, ...]]


def is_test_node(node: DERPNode) -> bool:
    """Return whether a node is probed even without a host address of the family (`IsTestNode`)."""
    return bool(node.stun_test_ip) or node.ipv4 == "127.0.0.1"


def sorted_regions(derp_map: DERPMap, last: Report, home: int) -> list[int]:
    """Return the regions that an incremental run may measure.

    The fastest of the previous run come first, and those without a latency last.
    """
    wanted = [
        (key, region)
        for key, region in derp_map.regions.items()
        if not region.no_measure_no_home and not (region.avoid and region.region_id != home)
    ]

    def order(item: tuple[int, DERPRegion]) -> tuple[bool, int, int]:
        latency = last.region_latency.get(item[1].region_id, 0)
        return latency == 0, latency, item[0]

    return [key for key, _ in sorted(wanted, key=order)]


def make_plan(
    derp_map: DERPMap, *, last: Report | None, home: int, have_v4: bool, have_v6: bool
) -> Plan:
    """Return the requests of one run.

    Args:
        last: the report of the previous run; `None`: a full run.
        home: the preferred region of the previous run, also for a full run; 0: none.
        have_v4, have_v6: whether this host has an address of the family that is neither loopback
            nor link-local.
    """
    if last is None or not last.region_latency:
        probes = _initial(derp_map, have_v4, have_v6)
    else:
        probes = _incremental(derp_map, last, home, have_v4, have_v6)
    plan: dict[SetKey, tuple[Probe, ...]] = {}
    for probe in probes:
        plan[probe.set_key] = (*plan.get(probe.set_key, ()), probe)
    return plan


def _initial(derp_map: DERPMap, have_v4: bool, have_v6: bool) -> Iterator[Probe]:
    for key, region in derp_map.regions.items():
        if region.no_measure_no_home or not region.nodes:
            continue
        for number in range(INITIAL_TRIES):
            node = region.nodes[number % len(region.nodes)]
            for family, have in ((Family.V4, have_v4), (Family.V6, have_v6)):
                text = node.ipv4 if family is Family.V4 else node.ipv6
                if text == "none":
                    continue
                if (have and _may_have_address(text, family)) or is_test_node(node):
                    yield Probe(key, node, family, number * INITIAL_STEP)


def _may_have_address(text: str, family: Family) -> bool:
    """Return whether a node may have an address of a family: a literal, or one to look up."""
    literal = ip_literal(text)
    return not text or (literal is not None and literal.version == family)


def _incremental(
    derp_map: DERPMap, last: Report, home: int, have_v4: bool, have_v6: bool
) -> Iterator[Probe]:
    home_planned = False
    for index, key in enumerate(sorted_regions(derp_map, last, home)):
        region = derp_map.regions[key]
        is_home = home != 0 and region.region_id == home
        if index >= INCREMENTAL_REGIONS:
            if home_planned or home == 0:
                return
            if not is_home:
                continue
        home_planned = home_planned or is_home
        yield from _region_probes(key, region, index, last, is_home, have_v4, have_v6)


def _region_probes(
    key: int,
    region: DERPRegion,
    index: int,
    last: Report,
    is_home: bool,
    have_v4: bool,
    have_v6: bool,
) -> Iterator[Probe]:
    if not region.nodes:
        return
    had_v4, had_v6 = bool(last.region_v4_latency), bool(last.region_v6_latency)
    wanted = {Family.V4: have_v4, Family.V6: have_v6}
    tries = 1
    if index < 2 or is_home:
        tries = 2
    elif have_v6 and had_v4 and had_v6:
        # Regions after the second are probed by one family each, in turn.
        wanted[Family.V6 if index % 2 == 0 else Family.V4] = False
    if not is_home and index >= 2 and not had_v6:
        wanted[Family.V6] = False
    if is_home:
        tries = _HOME_TRIES
    latency = last.region_latency.get(region.region_id, 0)
    step = latency * 120 // 100 if latency else STEADY_STEP
    for number in range(tries):
        if number and not had_v6:
            wanted[Family.V6] = False
        node = region.nodes[number % len(region.nodes)]
        delay = number * step + (number * _LATE_EXTRA if number > 1 else 0)
        for family, text in ((Family.V4, node.ipv4), (Family.V6, node.ipv6)):
            if text != "none" and (wanted[family] or is_test_node(node)):
                yield Probe(key, node, family, delay)
