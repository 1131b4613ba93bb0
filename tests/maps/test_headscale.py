"""headscale's YAML becomes the objects that JSON would have made."""

from __future__ import annotations

import pytest

from pyderp.errors import InvalidMap
from pyderp.maps.headscale import HeadscaleConfig, map_tree, read_config
from pyderp.maps.yamltree import parse_yaml

FULL = """
regions:
  1: null
  900:
    regionid: 900
    regioncode: no
    regionname: 12
    latitude: 48.5
    nomeasurenohome: yes
    nodes:
      - {name: 900a, regionid: 900, hostname: h, ipv4: none, stunport: -1, canport80: on}
      - ~
omitdefaultregions: true
homeparams: {regionscore: {900: 0.5}}
extra: {a: [1]}
"""


def test_known_members_have_the_types_of_go() -> None:
    """A text member is text, and `yes` is true for a boolean member."""
    tree, warnings = map_tree(parse_yaml(FULL))
    assert tree == {
        "Regions": {
            "1": None,
            "900": {
                "RegionID": 900,
                "RegionCode": "no",
                "RegionName": "12",
                "Latitude": 48.5,
                "NoMeasureNoHome": True,
                "Nodes": [
                    {
                        "Name": "900a",
                        "RegionID": 900,
                        "HostName": "h",
                        "IPv4": "none",
                        "STUNPort": -1,
                        "CanPort80": True,
                    },
                    None,
                ],
            },
        },
        "omitDefaultRegions": True,
        "HomeParams": {"RegionScore": {"900": 0.5}},
        "extra": {"a": [1]},
    }
    assert warnings == []


def test_keys_in_another_case_are_ignored_with_a_warning() -> None:
    tree, warnings = map_tree(parse_yaml("regions: {1: {RegionID: 1, nodes: [{HostName: h}]}}"))
    assert tree == {"Regions": {"1": {"Nodes": [{}]}}}
    assert warnings == [
        'regions["1"].RegionID: headscale ignores keys that are not in lower case: write regionid',
        'regions["1"].nodes[0].HostName: headscale ignores keys that are not in lower case: write '
        "hostname",
    ]


def test_empty_text_is_no_map() -> None:
    assert map_tree(parse_yaml("")) == (None, [])


def config(text: str) -> HeadscaleConfig | None:
    return read_config(parse_yaml(text))


def test_a_config_has_paths_and_urls() -> None:
    text = "derp:\n  urls: [https://a/b]\n  paths: [/etc/derp.yaml, more.yaml]\n"
    assert config(text) == HeadscaleConfig(
        paths=("/etc/derp.yaml", "more.yaml"), urls=("https://a/b",)
    )
    assert config("derp: {urls: ~, server: {enabled: false}}") == HeadscaleConfig()
    assert config("regions: {}") is None


@pytest.mark.parametrize(
    ("url", "port"),
    [("https://hs.example.com", 443), ("http://hs.example.com", 80), ("https://hs.x:8443", 8443)],
)
def test_the_embedded_relay_is_a_region(url: str, port: int) -> None:
    text = f"""
server_url: {url}
derp:
  server: {{enabled: true, region_code: hs, stun_listen_addr: ":3479", ipv4: 192.0.2.1}}
"""
    read = config(text)
    assert read is not None
    assert read.own_region is not None
    nodes = read.own_region["Nodes"]
    assert isinstance(nodes, list)
    (node,) = nodes
    assert (node["Name"], node["STUNPort"], node["IPv4"]) == ("999", 3479, "192.0.2.1")
    assert node["DERPPort"] == port
    left_out = text.replace(
        "enabled: true", "enabled: true, automatically_add_embedded_derp_region: false"
    )
    assert config(left_out) == HeadscaleConfig()


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("derp: []", "line 1, derp: want a mapping"),
        ("derp: {urls: x}", "line 1, derp.urls: want a list"),
        ("derp: {paths: [[a]]}", "line 1, derp.paths[0]: want a text"),
        ("derp: {server: {enabled: 1}}", "line 1, derp.server.enabled: want true or false"),
        ("derp: {server: {enabled: true}}", "server_url: '' has no host"),
        (
            "derp: {server: {enabled: true, region_id: x}}",
            "line 1, derp.server.region_id: want an integer",
        ),
    ],
)
def test_a_wrong_config_is_refused(text: str, error: str) -> None:
    with pytest.raises(InvalidMap) as caught:
        config(text)
    assert str(caught.value).startswith(error)
