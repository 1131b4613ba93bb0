"""What a change of a map means for clients."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
from hypothesis import given

from pyderp.maps.derpmap import DERPMap, HomeParams
from pyderp.maps.diff import diff
from pyderp.maps.region import DERPNode, DERPRegion

from .test_derpmap import maps, quick

PIN = "sha256-raw:" + "ab" * 32
A = DERPNode(name="901a", region_id=901, host_name="a.example.com", ipv6="none")
B = DERPNode(name="901b", region_id=901, host_name="b.example.com")
C = DERPNode(name="901c", region_id=901, host_name="c.example.com")
LAB = DERPRegion(region_id=901, region_code="lab", region_name="Lab", nodes=(A, B))
OTHER = DERPRegion(region_id=902, region_code="fra", nodes=(dataclasses.replace(A, name="902a"),))
OLD = DERPMap(regions={901: LAB})
AT = 'Regions["901"]'
CHANGED = (
    AT,
    "region 901 (lab) has changed: clients close their connections to it, measure it again "
    "and reconnect",
)


def changes(old: DERPMap, new: DERPMap) -> list[tuple[str, str]]:
    return [(change.path, change.text) for change in diff(old, new)]


def region(**values: Any) -> DERPMap:
    return DERPMap(regions={901: dataclasses.replace(LAB, **values)})


def second(**values: Any) -> DERPMap:
    return region(nodes=(A, dataclasses.replace(B, **values)))


def test_explicit_defaults_change_no_port() -> None:
    """Clients compare the members, and reconnect; but nothing else changes."""
    assert changes(OLD, second(derp_port=443, stun_port=3478)) == [
        CHANGED,
        (
            f"{AT}.Nodes[1].STUNPort",
            "region 901 (lab), 901b: STUNPort (default) becomes 3478: the same port",
        ),
        (
            f"{AT}.Nodes[1].DERPPort",
            "region 901 (lab), 901b: DERPPort (default) becomes 443: the same port",
        ),
    ]


def test_the_loss_of_the_only_ipv6_node_is_named() -> None:
    assert changes(OLD, second(ipv6="none")) == [
        CHANGED,
        (
            f"{AT}.Nodes",
            "region 901 (lab) loses its only IPv6 node: clients with IPv6 alone cannot reach it, "
            "others use IPv4",
        ),
        (
            f"{AT}.Nodes[1].IPv6",
            "region 901 (lab), 901b: IPv6 (none) becomes 'none': clients no longer reach it by "
            "IPv6",
        ),
    ]
    assert (f"{AT}.Nodes", "region 901 (lab) can be reached by IPv6 now") in changes(
        second(ipv6="none"), OLD
    )


@pytest.mark.parametrize(
    ("old", "new", "path", "text"),
    [
        (
            OLD,
            DERPMap(),
            AT,
            "region 901 (lab) is gone, and no other is left: clients have no relay",
        ),
        (
            DERPMap(regions={901: LAB, 902: OTHER}),
            DERPMap(regions={902: OTHER}),
            AT,
            "region 901 (lab) is gone: clients whose home it is choose another",
        ),
        (
            DERPMap(regions={902: OTHER}),
            DERPMap(regions={901: LAB, 902: OTHER}),
            AT,
            "region 901 (lab) is new, with 2 nodes: clients measure it, and those that are nearest "
            "to it choose it as home",
        ),
        (
            OLD,
            region(nodes=(A,)),
            f"{AT}.Nodes[1]",
            "region 901 (lab) loses the node '901b' (b.example.com): clients on it move to another",
        ),
        (
            OLD,
            region(nodes=(B, A)),
            f"{AT}.Nodes[0]",
            "region 901 (lab): clients connect to '901b' first, and no longer to '901a'",
        ),
        (
            OLD,
            region(nodes=tuple(dataclasses.replace(n, stun_port=-1) for n in LAB.nodes)),
            f"{AT}.Nodes",
            "region 901 (lab) loses STUN: clients measure it by HTTPS only, if at all, and rarely "
            "choose it as home",
        ),
        (
            OLD,
            region(nodes=tuple(dataclasses.replace(n, stun_only=True) for n in LAB.nodes)),
            f"{AT}.Nodes",
            "region 901 (lab) loses its last relay: clients cannot connect to it any more, and "
            "those whose home it was lose their peers until they choose another",
        ),
        (
            second(cert_name=PIN),
            second(cert_name=PIN.replace("ab", "cd")),
            f"{AT}.Nodes[1].CertName",
            f"region 901 (lab), 901b: CertName {PIN!r} becomes {PIN.replace('ab', 'cd')!r}: clients"
            " with the old map refuse the new certificate, and those with the new map the old one: "
            "change both at the same time",
        ),
        (
            OLD,
            region(no_measure_no_home=True),
            f"{AT}.NoMeasureNoHome",
            "region 901 (lab) is no longer measured, and cannot be home",
        ),
        (
            OLD,
            dataclasses.replace(OLD, omit_default_regions=True),
            "omitDefaultRegions",
            "Tailscale's own regions are left out: clients have only those of this map",
        ),
        (
            OLD,
            dataclasses.replace(OLD, home_params=HomeParams(region_score={901: 0.5})),
            'HomeParams.RegionScore["901"]',
            "region 901: clients multiply its latency by 0.5 instead of 1",
        ),
        (
            OLD,
            DERPMap(keep_regions=True),
            "Regions",
            "the new map has no Regions: clients keep the regions of the old one",
        ),
        (
            OLD,
            second(unknown={"x": 1}),
            f"{AT}.Nodes[1]",
            "region 901 (lab), 901b: unknown members have changed",
        ),
        (
            region(nodes=tuple(dataclasses.replace(n, stun_only=True) for n in LAB.nodes)),
            OLD,
            f"{AT}.Nodes",
            "region 901 (lab) has a relay now: clients can connect to it",
        ),
        (
            region(nodes=tuple(dataclasses.replace(n, stun_port=-1) for n in LAB.nodes)),
            OLD,
            f"{AT}.Nodes",
            "region 901 (lab) answers STUN now: clients measure it by UDP",
        ),
        (
            region(nodes=(A, B, C)),
            region(nodes=(A, C, B)),
            f"{AT}.Nodes",
            "region 901 (lab): clients now try its nodes in the order 901a, 901c, 901b",
        ),
        (
            region(nodes=(A,)),
            OLD,
            f"{AT}.Nodes[1]",
            "region 901 (lab) has a new node '901b' (b.example.com)",
        ),
        (
            region(nodes=(A,)),
            second(stun_only=True),
            f"{AT}.Nodes[1]",
            "region 901 (lab) has a new node '901b' for STUN only",
        ),
        (
            OLD,
            second(cert_name=PIN),
            f"{AT}.Nodes[1].CertName",
            f"region 901 (lab), 901b: CertName (none) becomes {PIN!r}: clients accept only the "
            "pinned certificate",
        ),
        (
            second(cert_name=PIN),
            OLD,
            f"{AT}.Nodes[1].CertName",
            f"region 901 (lab), 901b: CertName {PIN!r} becomes (none): the certificate must be for "
            "'b.example.com', from an authority that clients trust",
        ),
        (
            OLD,
            second(derp_port=8443),
            f"{AT}.Nodes[1].DERPPort",
            "region 901 (lab), 901b: DERPPort (default) becomes 8443",
        ),
        (
            OLD,
            second(stun_port=-1),
            f"{AT}.Nodes[1].STUNPort",
            "region 901 (lab), 901b: STUNPort (default) becomes -1: it answers no STUN any more",
        ),
        (
            second(stun_port=-1),
            OLD,
            f"{AT}.Nodes[1].STUNPort",
            "region 901 (lab), 901b: STUNPort -1 becomes (default): it answers STUN now",
        ),
        (
            OLD,
            second(insecure_for_tests=True),
            f"{AT}.Nodes[1].InsecureForTests",
            "region 901 (lab), 901b: InsecureForTests false becomes true: clients do not verify "
            "its certificate",
        ),
        (
            second(stun_only=True),
            OLD,
            f"{AT}.Nodes[1].STUNOnly",
            "region 901 (lab), 901b: STUNOnly true becomes false: clients connect to it, too",
        ),
        (
            region(avoid=True),
            OLD,
            f"{AT}.Avoid",
            "region 901 (lab) is no longer avoided",
        ),
        (
            OLD,
            region(region_name="Workshop", unknown={"x": 1}),
            f"{AT}.RegionName",
            "region 901 (lab): RegionName 'Lab' becomes 'Workshop'",
        ),
        (OLD, region(unknown={"x": 1}), AT, "region 901 (lab): unknown members have changed"),
        (
            OLD,
            dataclasses.replace(OLD, unknown={"x": 1}),
            "",
            "unknown members of the map have changed",
        ),
        (
            DERPMap(regions={901: dataclasses.replace(LAB, no_measure_no_home=True), 902: OTHER}),
            DERPMap(regions={902: OTHER}),
            AT,
            "region 901 (lab) is gone: peers that have it as home cannot be reached",
        ),
        (
            DERPMap(),
            region(no_measure_no_home=True),
            AT,
            "region 901 (lab) is new, with 2 nodes: clients use it only to reach peers whose home "
            "it is",
        ),
        (
            DERPMap(),
            region(nodes=(dataclasses.replace(A, stun_only=True),)),
            AT,
            "region 901 (lab) is new, with 1 node: clients cannot connect to it, as no node is a "
            "relay",
        ),
    ],
)
def test_each_change_has_a_sentence(old: DERPMap, new: DERPMap, path: str, text: str) -> None:
    assert (path, text) in changes(old, new)


def test_order_of_regions_does_not_count() -> None:
    one = DERPMap(regions={901: LAB, 902: OTHER})
    assert diff(one, DERPMap(regions={902: OTHER, 901: LAB})) == []


def test_absent_scores_stay() -> None:
    old = dataclasses.replace(OLD, home_params=HomeParams(region_score={901: 0.5}))
    assert diff(old, OLD) == []
    assert diff(old, dataclasses.replace(OLD, home_params=HomeParams(region_score={}))) != []


@quick
@given(maps, maps)
def test_only_different_maps_have_changes(one: DERPMap, two: DERPMap) -> None:
    assert diff(one, one) == []
    regions = (one.regions, one.omit_default_regions)
    if regions != (two.regions, two.omit_default_regions):
        assert diff(one, two)
