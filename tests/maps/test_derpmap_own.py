"""A relay's own node in a DERP map."""

from __future__ import annotations

import pytest

from pyderp.maps.derpmap import DERPMap, own_map, own_node
from pyderp.maps.region import DERPNode
from pyderp.maps.yamltext import headscale_yaml

PIN = "sha256-raw:" + "ab" * 32


def test_usual_ports_are_left_out() -> None:
    assert own_node("relay.example.com", derp_port=443, stun_port=3478) == DERPNode(
        name="custom", region_id=900, host_name="relay.example.com"
    )


def test_other_ports_and_absent_ones_are_in_the_node() -> None:
    node = own_node("192.0.2.1", cert_name=PIN, derp_port=8443, stun_port=None)
    assert (node.derp_port, node.stun_port, node.cert_name) == (8443, -1, PIN)


@pytest.mark.parametrize(
    ("host", "expected"),
    [("2001:DB8::7", "2001:db8::7"), ("::ffff:192.0.2.1", "192.0.2.1"), ("Relay.", "relay")],
)
def test_an_address_has_one_spelling(host: str, expected: str) -> None:
    assert own_node(host, derp_port=443, stun_port=None).host_name == expected


def test_the_region_code_comes_from_the_name() -> None:
    (region,) = own_map(own_node("derp1.example.com", derp_port=443, stun_port=0)).regions.values()
    assert (region.region_code, region.region_name) == ("derp1", "derp1.example.com")
    assert (region.nodes[0].ipv4, region.nodes[0].ipv6) == ("", "")


def test_a_node_with_an_address_has_it_in_its_fields() -> None:
    derp_map = own_map(own_node("192.0.2.1", derp_port=443, stun_port=3478))
    assert derp_map.region("relay") == derp_map.regions[900]
    (node,) = derp_map.regions[900].nodes
    assert (node.name, node.ipv4, node.ipv6) == ("900a", "192.0.2.1", "")
    assert DERPMap.from_json(derp_map.to_json()) == derp_map
    assert derp_map.problems().errors == ()


def test_the_map_as_yaml_of_headscale() -> None:
    node = own_node("2001:db8::7", cert_name=PIN, derp_port=8443, stun_port=None)
    assert headscale_yaml(own_map(node)).splitlines() == [
        "regions:",
        "  900:",
        "    regionid: 900",
        '    regioncode: "relay"',
        '    regionname: "2001:db8::7"',
        "    nodes:",
        '      - name: "900a"',
        "        regionid: 900",
        '        hostname: "2001:db8::7"',
        f'        certname: "{PIN}"',
        '        ipv6: "2001:db8::7"',
        "        stunport: -1",
        "        derpport: 8443",
    ]
