"""Each rule finds its problem, names its place, and accepts a good map."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import pytest

from pyderp import gojson
from pyderp.maps.derpmap import DERPMap, HomeParams
from pyderp.maps.formats import MapKind
from pyderp.maps.lint import RULES, Severity, families, lint
from pyderp.maps.region import DERPNode, DERPRegion

PIN = "sha256-raw:" + "ab" * 32
A, B = (
    DERPNode(
        name=f"{n}a",
        region_id=n,
        host_name=f"derp{n}.example.com",
        ipv4=f"198.51.100.{n - 899}",
        can_port_80=True,
    )
    for n in (900, 901)
)
FRA, NYC = (
    DERPRegion(region_id=node.region_id, region_code=code, region_name=code, nodes=(node,))
    for node, code in ((A, "fra"), (B, "nyc"))
)
GOOD = DERPMap(regions={900: FRA, 901: NYC})
NODE = 'Regions["900"].Nodes[0]'


def with_node(**changes: Any) -> DERPMap:
    return with_region(nodes=(dataclasses.replace(A, **changes),))


def with_region(number: int = 900, **changes: Any) -> DERPMap:
    changes = {"region_id": number, **changes}
    return dataclasses.replace(
        GOOD, regions={number: dataclasses.replace(FRA, **changes), 901: NYC}
    )


def second(**changes: Any) -> DERPMap:
    """The map with a second node in region 900."""
    other = dataclasses.replace(A, name="900b", host_name="derp9.example.com")
    return with_region(nodes=(A, dataclasses.replace(other, **changes)))


def test_a_good_map_has_no_findings() -> None:
    assert lint(GOOD, gojson.parse(GOOD.to_json())) == []


CASES: Mapping[str, list[tuple[DERPMap, str]]] = {
    "no-regions": [(DERPMap(), "Regions"), (DERPMap(keep_regions=True), "Regions")],
    "no-nodes": [(with_region(nodes=()), 'Regions["900"].Nodes')],
    "region-id": [
        (with_region(region_id=902), 'Regions["900"].RegionID'),
        (
            DERPMap(regions={2**53: dataclasses.replace(FRA, region_id=2**53), 901: NYC}),
            f'Regions["{2**53}"].RegionID',
        ),
    ],
    "node-value": [
        (with_node(host_name=""), NODE),
        (with_node(host_name="https://derp.example.com"), NODE),
        (with_node(stun_port=-2), NODE),
        (with_node(derp_port=65536), NODE),
        (with_node(region_id=1), NODE),
        (with_node(cert_name="sha256-raw:AB"), NODE),
        (with_node(cert_name="sha256:" + "ab" * 32), NODE),
        (with_node(cert_name="SHA256-RAW:" + "ab" * 32), NODE),
        (with_node(cert_name="ab" * 32), NODE),
        (with_node(cert_name="AB:" * 31 + "AB"), NODE),
        (with_node(host_name="derp .example.com"), NODE),
        (with_node(host_name="derp.example.com\n"), NODE),
        (with_node(host_name="derp\u2003example.com"), NODE),
        (with_node(host_name="user@example.com"), NODE),
        (with_node(host_name="derp..example.com"), NODE),
        (with_node(host_name="a" * 64 + ".example.com"), NODE),
    ],
    "duplicate-name": [
        (second(name="900a"), 'Regions["900"].Nodes[1].Name'),
        (
            dataclasses.replace(
                GOOD,
                regions={
                    900: FRA,
                    901: dataclasses.replace(NYC, nodes=(dataclasses.replace(B, name="900a"),)),
                },
            ),
            'Regions["901"].Nodes[0].Name',
        ),
    ],
    "no-address": [
        (with_node(ipv4="none", ipv6="none"), NODE),
        (with_node(host_name="192.0.2.1", ipv4="none", cert_name=PIN), NODE),
    ],
    "stun-only-region": [(with_node(stun_only=True), 'Regions["900"].Nodes')],
    "no-home": [
        (
            DERPMap(
                regions={
                    n: dataclasses.replace(r, no_measure_no_home=True)
                    for n, r in GOOD.regions.items()
                }
            ),
            "Regions",
        )
    ],
    "stun-only-first": [
        (
            with_region(
                nodes=(
                    dataclasses.replace(A, name="900s", host_name="s.x", stun_only=True),
                    A,
                )
            ),
            f"{NODE}.STUNOnly",
        )
    ],
    "pin-conflict": [
        (
            second(host_name="DERP900.example.com.", cert_name=PIN),
            'Regions["900"].Nodes[1].CertName',
        )
    ],
    "ip-without-pin": [
        (with_node(host_name="192.0.2.1"), f"{NODE}.HostName"),
        (with_node(host_name="2001:db8::1"), f"{NODE}.HostName"),
    ],
    "port-80": [
        (
            DERPMap(
                regions={
                    n: dataclasses.replace(
                        r, nodes=(dataclasses.replace(r.nodes[0], can_port_80=False),)
                    )
                    for n, r in GOOD.regions.items()
                }
            ),
            "Regions",
        )
    ],
    "port-80-unused": [
        (with_node(ipv4=""), f"{NODE}.CanPort80"),
        (with_node(ipv4="none"), f"{NODE}.CanPort80"),
        (with_node(ipv4="2001:db8::1"), f"{NODE}.CanPort80"),
        (with_node(host_name="192.0.2.1", ipv4="", cert_name=PIN), f"{NODE}.CanPort80"),
    ],
    "no-name": [(with_node(name=""), f"{NODE}.Name")],
    "own-id": [(with_region(7, nodes=(dataclasses.replace(A, region_id=7),)), 'Regions["7"]')],
    "ipv6-only": [
        (with_node(ipv4="none"), f"{NODE}.IPv4"),
        (with_node(ipv4="none", ipv6="2001:db8::1"), f"{NODE}.IPv4"),
    ],
    "not-an-address": [
        (with_node(ipv4="192.0.2"), f"{NODE}.IPv4"),
        (with_node(ipv4="2001:db8::1"), f"{NODE}.IPv4"),
        (with_node(ipv6="192.0.2.1"), f"{NODE}.IPv6"),
    ],
    "omits-default-regions": [
        (dataclasses.replace(GOOD, omit_default_regions=True), "omitDefaultRegions")
    ],
    "duplicate-code": [
        (with_region(region_code="nyc"), 'Regions["901"].RegionCode'),
    ],
    "same-relay": [(second(host_name=A.host_name), 'Regions["900"].Nodes[1]')],
    "no-stun": [(with_node(stun_port=-1), 'Regions["900"].Nodes')],
    "for-tests": [
        (with_node(insecure_for_tests=True), f"{NODE}.InsecureForTests"),
        (with_node(stun_test_ip="127.0.0.1"), f"{NODE}.STUNTestIP"),
    ],
    "avoid": [(with_region(avoid=True), 'Regions["900"].Avoid')],
    "score": [
        (
            dataclasses.replace(GOOD, home_params=HomeParams(region_score={7: 0.5})),
            'HomeParams.RegionScore["7"]',
        ),
        (
            dataclasses.replace(GOOD, home_params=HomeParams(region_score={900: 0})),
            'HomeParams.RegionScore["900"]',
        ),
    ],
    "place": [(with_region(latitude=91.0), 'Regions["900"].Latitude')],
    "misspelled": [
        (with_node(unknown={"StunPorts": 1}), f"{NODE}.StunPorts"),
        (with_region(unknown={"Region_Code": 1}), 'Regions["900"].Region_Code'),
    ],
    "region-code": [
        (with_region(region_code=""), 'Regions["900"].RegionCode'),
        (with_region(region_code="12"), 'Regions["900"].RegionCode'),
    ],
    "unknown-member": [
        (with_node(unknown={"x": 1}), f"{NODE}.x"),
        (dataclasses.replace(GOOD, unknown={"comment": ""}), "comment"),
    ],
    "one-region": [(DERPMap(regions={900: FRA}), "Regions")],
    "derpprobe": [(with_node(ipv6="none"), f"{NODE}.IPv6")],
}


@pytest.mark.parametrize(
    ("rule", "derp_map", "path"),
    [
        pytest.param(rule, derp_map, path, id=f"{rule}-{at}")
        for rule, cases in CASES.items()
        for at, (derp_map, path) in enumerate(cases)
    ],
)
def test_each_rule_finds_its_problem_at_its_place(rule: str, derp_map: DERPMap, path: str) -> None:
    found = lint(derp_map)
    of_rule = [finding for finding in found if finding.rule == rule]
    assert [finding.path for finding in of_rule] == [path]
    assert of_rule[0].text
    assert of_rule[0].advice


def test_nodes_of_one_host_name_may_have_different_pins() -> None:
    """If each has its own address; without addresses, at most one of the pins is right."""
    both = second(host_name=A.host_name, cert_name=PIN, ipv4="192.0.2.1")
    assert "pin-conflict" not in {finding.rule for finding in lint(both)}


def test_a_name_that_only_begins_like_a_pin_is_accepted() -> None:
    assert lint(with_node(cert_name="sha256.example.com")) == []


def test_regions_of_tailscale_keep_their_ids() -> None:
    node = dataclasses.replace(A, region_id=7, host_name="derp7d.tailscale.com")
    assert lint(with_region(7, nodes=(node,))) == []


@pytest.mark.parametrize(
    ("text", "path"),
    [
        ('{"Regions": {}, "regions": {}}', "regions"),
        ('{"Regions": {"900": {}, "900": {}}}', 'Regions["900"]'),
        ('{"Regions": {"900": {}, "0900": {}}}', 'Regions["0900"]'),
        ('{"Regions": {"900": {"Nodes": [], "nodes": []}}}', 'Regions["900"].nodes'),
        (
            '{"Regions": {"900": {"Nodes": [{"HostName": "a", "hostname": "b"}]}}}',
            'Regions["900"].Nodes[0].hostname',
        ),
    ],
)
def test_duplicate_names_are_found(text: str, path: str) -> None:
    """Only the text has them; a parsed map does not."""
    found = lint(DERPMap.from_json(text), gojson.parse(text))
    assert [f.path for f in found if f.rule == "duplicate-key"] == [path]


@pytest.mark.parametrize(
    ("kind", "region", "rule"),
    [
        (None, "900", "null-member"),
        (MapKind.JSON, "7", "null-member"),
        (MapKind.POLICY, "900", "null-member"),
        (MapKind.POLICY, "7", "null-region"),
        (MapKind.HEADSCALE, "900", "null-region"),
    ],
)
def test_null_regions_are_found(kind: MapKind | None, region: str, rule: str) -> None:
    """A policy removes Tailscale's regions in this way, and headscale any region."""
    text = f'{{"Regions": {{"{region}": null, "901": {{"Nodes": [{{}}, null]}}}}}}'
    found = lint(DERPMap.from_json(text), gojson.parse(text), kind=kind)
    assert [(f.rule, f.path) for f in found if f.rule.startswith("null")] == sorted(
        [("null-member", 'Regions["901"].Nodes[1]'), (rule, f'Regions["{region}"]')],
        key=lambda each: (each[0] == "null-region", each[1]),
    )


@pytest.mark.parametrize(
    ("kind", "urls", "omits", "rules"),
    [
        (None, None, False, {"no-home"}),
        (MapKind.JSON, None, False, {"no-home"}),
        (MapKind.POLICY, None, False, set()),
        (MapKind.POLICY, None, True, {"no-home", "omits-default-regions"}),
        (MapKind.HEADSCALE, None, False, set()),
        (MapKind.HEADSCALE, (), False, {"no-home", "omits-default-regions"}),
    ],
)
def test_default_regions_of_clients_count(
    kind: MapKind | None, urls: tuple[str, ...] | None, omits: bool, rules: set[str]
) -> None:
    """A map without a home is an error only if clients have no other regions."""
    regions = {
        n: dataclasses.replace(region, no_measure_no_home=True)
        for n, region in GOOD.regions.items()
    }
    found = lint(DERPMap(regions=regions, omit_default_regions=omits), kind=kind, urls=urls)
    assert {finding.rule for finding in found} == rules


def test_headscale_with_tailscale_regions_omits_no_default_regions() -> None:
    node = dataclasses.replace(A, region_id=7, host_name="derp7d.tailscale.com")
    with_theirs = with_region(7, nodes=(node,))
    assert lint(with_theirs, kind=MapKind.HEADSCALE, urls=("https://example.com",)) == []
    (finding,) = lint(GOOD, kind=MapKind.HEADSCALE, urls=())
    assert (finding.rule, finding.path) == ("omits-default-regions", "derp.urls")


def test_nodes_without_a_name_do_not_share_one() -> None:
    nameless = dataclasses.replace(A, name="")
    found = lint(with_region(nodes=(nameless, dataclasses.replace(nameless, host_name="b.x"))))
    assert [finding.rule for finding in found] == ["no-name", "no-name"]


def test_findings_are_sorted_by_severity() -> None:
    found = lint(second(name="900a", ipv6="none", stun_port=-1, insecure_for_tests=True))
    order = [list(Severity).index(finding.severity) for finding in found]
    assert order == sorted(order)
    assert len(set(order)) == 3


def test_every_offline_rule_has_a_case() -> None:
    online = {"node-silent", "certificate", "family-silent", "stun-silent", "port-80-silent"}
    online |= {"port-80-captive", "nothing-tried", "not-tried"}
    of_text = {"duplicate-key", "null-member", "null-region"}
    assert set(CASES) | of_text | online == set(RULES)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, (True, True)),
        ({"ipv4": "192.0.2.1"}, (True, True)),
        ({"ipv4": "none"}, (False, True)),
        ({"ipv6": "192.0.2.1"}, (True, False)),
        ({"host_name": "192.0.2.1"}, (True, False)),
        ({"host_name": "2001:db8::1"}, (False, True)),
        ({"host_name": "2001:db8::1", "ipv4": "192.0.2.1"}, (True, True)),
        ({"host_name": ""}, (False, False)),
    ],
)
def test_addresses_of_a_node_decide_its_families(
    changes: dict[str, Any], expected: tuple[bool, bool]
) -> None:
    assert families(dataclasses.replace(A, **{"ipv4": "", **changes})) == expected


def test_ten_thousand_nodes_are_checked_in_time() -> None:
    """A rule that compared each node with each other one would exceed the time of a test."""
    regions = {}
    for n in range(900, 10_900):
        # Every second node shares name and port, each with its own pin.
        node = dataclasses.replace(
            A,
            name=f"{n}a",
            region_id=n,
            host_name=f"derp{n // 2}.example.com",
            cert_name=f"sha256-raw:{n:064x}",
            unknown={f"x{n}": n},
        )
        regions[n] = dataclasses.replace(FRA, region_id=n, region_code=f"r{n}", nodes=(node,))
    found = lint(DERPMap(regions=regions))
    assert len([f for f in found if f.rule == "pin-conflict"]) == 5000
    assert len([f for f in found if f.rule == "unknown-member"]) == 10_000
