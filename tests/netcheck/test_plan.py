"""Which probes are sent, to which node and when: the plans of Go's TestMakeProbePlan, and more."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeAlias

import pytest

from pyderp.maps.derpmap import DERPMap
from pyderp.netcheck.plan import MS, Plan, make_plan, sorted_regions
from pyderp.netcheck.report import Report

from .maps import map_of, node, region, report

MAP = map_of(
    *(region(n, *(node(n, index) for index in range(n))) for n in range(1, 6)),
    region(6, no_measure_no_home=True),
)
"""Region n has n nodes."""

Short: TypeAlias = Mapping[str, str]


def short(plan: Plan) -> dict[str, str]:
    """A plan as `1-v4` → `1a@0 1b@12`, delays in milliseconds."""
    return {
        f"{number}-v{family.value}": " ".join(
            f"{probe.node.name}@{probe.delay / MS:g}" for probe in probes
        )
        for (number, family), probes in sorted(plan.items())
    }


def both(plan: Short) -> Short:
    """The same probes by IPv4 and by IPv6."""
    return {f"{key}-{family}": value for key, value in plan.items() for family in ("v4", "v6")}


def only(plan: Short, family: str) -> Short:
    return {f"{key}-{family}": value for key, value in plan.items()}


INITIAL: Short = {
    "1": "1a@0 1a@100 1a@200",
    "2": "2a@0 2b@100 2a@200",
    "3": "3a@0 3b@100 3c@200",
    "4": "4a@0 4b@100 4c@200",
    "5": "5a@0 5b@100 5c@200",
}
LAST = {1: 10, 2: 20, 3: 30, 4: 40}
BY_V4 = report(LAST, v4=LAST)
MIXED = report({**LAST}, v4={1: 10, 2: 20}, v6={3: 30, 4: 40})


@pytest.mark.parametrize(
    ("v4", "v6", "want"),
    [
        pytest.param(True, True, both(INITIAL), id="initial_v6"),
        pytest.param(True, False, only(INITIAL, "v4"), id="initial_no_v6"),
        pytest.param(False, True, only(INITIAL, "v6"), id="only_v6_initial"),
        pytest.param(False, False, {}, id="no_address"),
    ],
)
def test_an_initial_plan_has_all_measured_regions(v4: bool, v6: bool, want: Short) -> None:
    """Three requests a family, to the nodes in turn."""
    plan = make_plan(MAP, last=None, home=0, have_v4=v4, have_v6=v6)
    assert short(plan) == want
    empty = make_plan(MAP, last=Report(), home=0, have_v4=v4, have_v6=v6)
    assert short(empty) == want


@pytest.mark.parametrize(
    ("last", "home", "v6", "want"),
    [
        pytest.param(
            BY_V4,
            0,
            False,
            {"1-v4": "1a@0 1a@12", "2-v4": "2a@0 2b@24", "3-v4": "3a@0"},
            id="second_v4_no_6if",
        ),
        pytest.param(
            BY_V4,
            0,
            True,
            {
                "1-v4": "1a@0 1a@12",
                "1-v6": "1a@0",
                "2-v4": "2a@0 2b@24",
                "2-v6": "2a@0",
                "3-v4": "3a@0",
            },
            id="second_v4_only_with_6if",
        ),
        pytest.param(
            MIXED,
            0,
            True,
            {
                "1-v4": "1a@0 1a@12",
                "1-v6": "1a@0 1a@12",
                "2-v4": "2a@0 2b@24",
                "2-v6": "2a@0 2b@24",
                "3-v4": "3a@0",
            },
            id="second_mixed",
        ),
        pytest.param(
            MIXED,
            1,
            True,
            {
                "1-v4": "1a@0 1a@12 1a@124 1a@186",
                "1-v6": "1a@0 1a@12 1a@124 1a@186",
                "2-v4": "2a@0 2b@24",
                "2-v6": "2a@0 2b@24",
                "3-v4": "3a@0",
            },
            id="try_harder_for_preferred_derp",
        ),
        pytest.param(
            report({2: 20, 3: 30, 4: 40, 1: 50}, v4={2: 20, 3: 30, 4: 40, 1: 50}),
            1,
            False,
            {
                "1-v4": "1a@0 1a@60 1a@220 1a@330",
                "2-v4": "2a@0 2b@24",
                "3-v4": "3a@0 3b@36",
                "4-v4": "4a@0",
            },
            id="ensure_home_region_inclusion",
        ),
    ],
)
def test_an_incremental_plan_has_the_fastest_regions_and_home(
    last: Report, home: int, v6: bool, want: Short
) -> None:
    """The fastest three of the last report, and home at any place."""
    plan = make_plan(MAP, last=last, home=home, have_v4=True, have_v6=v6)
    assert short(plan) == want


def test_a_region_of_unknown_latency_is_retried_after_200_ms() -> None:
    """Home lost its latency: it comes last, and still gets four requests."""
    last = report({2: 20}, v4={2: 20})
    plan = short(make_plan(MAP, last=last, home=5, have_v4=True, have_v6=False))
    assert plan["5-v4"] == "5a@0 5b@200 5c@500 5d@750"


def test_regions_are_sorted_by_latency_and_those_without_come_last() -> None:
    """The case of Go's TestSortRegions."""
    derp_map = map_of(*(region(n) for n in range(1, 6)))
    last = report({1: 5000, 2: 3000, 3: 6000, 5: 2000})
    assert sorted_regions(derp_map, last, 0) == [5, 2, 1, 3, 4]


def test_avoided_regions_are_measured_in_full_runs_and_as_home_only() -> None:
    derp_map = map_of(region(1, avoid=True), region(2))
    assert {key for key, _ in make_plan(derp_map, last=None, home=0, have_v4=True, have_v6=False)}
    full = make_plan(derp_map, last=None, home=0, have_v4=True, have_v6=False)
    assert {number for number, _ in full} == {1, 2}
    last = report({1: 10, 2: 20}, v4={1: 10, 2: 20})
    for home, want in ((0, {2}), (2, {2}), (1, {1, 2})):
        plan = make_plan(derp_map, last=last, home=home, have_v4=True, have_v6=False)
        assert {number for number, _ in plan} == want


def _one(**values: Any) -> DERPMap:
    return map_of(region(1, node(1, **values)))


@pytest.mark.parametrize(
    ("derp_map", "v4", "v6", "want"),
    [
        pytest.param(_one(ipv4="none"), True, True, {"1-v6"}, id="no_ipv4"),
        pytest.param(_one(ipv6="none"), True, True, {"1-v4"}, id="no_ipv6"),
        pytest.param(_one(ipv4="", ipv6=""), True, True, {"1-v4", "1-v6"}, id="by_name"),
        pytest.param(_one(ipv4="x", ipv6="192.0.2.1"), True, True, set(), id="no_addresses"),
        pytest.param(_one(ipv4="127.0.0.1"), False, False, {"1-v4", "1-v6"}, id="test_node"),
        pytest.param(
            _one(stun_test_ip="127.0.0.1", ipv6="none"), False, False, {"1-v4"}, id="test_ip"
        ),
        pytest.param(map_of(region(1, nodes=())), True, True, set(), id="no_nodes"),
    ],
)
def test_addresses_of_a_node_decide_its_families(
    derp_map: DERPMap, v4: bool, v6: bool, want: set[str]
) -> None:
    """Test nodes are probed even if this host has no address of the family."""
    assert set(short(make_plan(derp_map, last=None, home=0, have_v4=v4, have_v6=v6))) == want


def test_probes_of_a_set_have_its_region_and_family() -> None:
    plan = make_plan(MAP, last=None, home=0, have_v4=True, have_v6=True)
    assert all(probe.set_key == key for key, probes in plan.items() for probe in probes)
