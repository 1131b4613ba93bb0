"""Targets of the command: maps, relays, and texts that are neither."""

from __future__ import annotations

from pathlib import Path

import pytest

from pyderp.doctor.target import Single, TargetKind, kind_of, regions_of, relay_region
from pyderp.errors import ConfigError
from pyderp.maps.derpmap import DERPMap

RELAY, MAP = TargetKind.RELAY, TargetKind.MAP


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("derp.example.com", RELAY),
        ("derp.example.com:8443", RELAY),
        ("203.0.113.7", RELAY),
        ("2001:db8::7", RELAY),
        ("[2001:db8::7]:8443", RELAY),
        ("https://derp.example.com", RELAY),
        ("https://derp.example.com/", RELAY),
        ("HTTP://derp.example.com/derp", RELAY),
        ("https://example.com/behind/derp", RELAY),
        ("https://login.example.com/derpmap/default", MAP),
        ("https://example.com/map.json", MAP),
        ("-", MAP),
        ("map.json", MAP),
        ("map.YAML", MAP),
        ("policy.hujson", MAP),
        ("./map", MAP),
        ("./maps/derp", MAP),
        ("../maps/derp", MAP),
        ("maps/derp", MAP),
        ("derp.example.com/derp", RELAY),
        ("/etc/derp/map", MAP),
        ("https://[bad", RELAY),
    ],
)
def test_maps_and_relays_are_distinguished(text: str, kind: TargetKind) -> None:
    assert kind_of(text) is kind


def test_an_existing_file_is_a_map(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert kind_of("derpmap") is RELAY
    (tmp_path / "derpmap").write_text("{}")
    assert kind_of("derpmap") is MAP


@pytest.mark.parametrize(
    ("text", "name", "url", "host"),
    [
        ("b.example", "b.example", "https://b.example/derp", "b.example"),
        ("a.example:8443", "a.example:8443", "https://a.example:8443/derp", "a.example"),
        ("203.0.113.7", "203.0.113.7", "https://203.0.113.7/derp", "203.0.113.7"),
        ("2001:db8::7", "[2001:db8::7]", "https://[2001:db8::7]/derp", "2001:db8::7"),
        ("[2001:db8::7]:84", "[2001:db8::7]:84", "https://[2001:db8::7]:84/derp", "2001:db8::7"),
        ("http://a.example", "a.example", "http://a.example/derp", "a.example"),
        ("http://a.example:33/x/derp", "a.example:33", "http://a.example:33/x/derp", "a.example"),
    ],
)  # fmt: skip
def test_a_relay_is_a_url_or_a_host(text: str, name: str, url: str, host: str) -> None:
    region = relay_region(text, Single())
    (subject,) = region.subjects
    assert (region.name, subject.node.name) == (name, name)
    assert (subject.target.text, subject.node.host_name) == (url, host)


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("", "is neither a URL"),
        ("derp.example.com/derp", "give https://derp.example.com/derp"),
        ("derp.example.com:8443/x/derp", "give https://derp.example.com:8443/x/derp"),
        ("wss://a.example/derp", "not with wss://: give https://a.example/derp"),
        ("two words", "is neither a URL"),
        (":8443", "has no host"),
        ("host:port", "not a port number"),
        ("host:99999", "not a port number"),
        ("https://", "no host"),
        ("https://host:0/derp", "port 0"),
        ("https://[bad", "not a URL"),
        ("https://a b/derp", "neither a host name"),
        ("ftp://host/derp", "not with ftp://"),
    ],
)
def test_other_texts_are_refused(text: str, problem: str) -> None:
    with pytest.raises(ConfigError, match=problem):
        relay_region(text, Single())


def make_map(*regions: dict[str, object]) -> DERPMap:
    return DERPMap.from_json({"Regions": {str(r["RegionID"]): r for r in regions}})


NODE = {"Name": "900a", "RegionID": 900, "HostName": "a.example"}


def test_each_region_of_a_map_has_its_nodes() -> None:
    second = NODE | {"Name": "900b", "CanPort80": True}
    one = {"RegionID": 900, "RegionCode": "lab", "Nodes": [NODE, second]}
    other = {"RegionID": 901, "Nodes": [NODE | {"Name": "901a", "DERPPort": 8443}]}
    both = regions_of(make_map(one, other), None, http_port=80)
    assert [region.name for region in both] == ["region 900 (lab)", "region 901"]
    assert [s.node.name for s in both[0].subjects] == ["900a", "900b"]
    assert [s.wants_port_80 for s in both[0].subjects] == [False, True]
    assert both[0].has_several
    assert both[1].subjects[0].target.text == "https://a.example:8443/derp"
    assert [r.name for r in regions_of(make_map(one, other), "901", http_port=80)] == ["region 901"]
    assert [r.name for r in regions_of(make_map(one, other), "lab", http_port=80)] == [both[0].name]


def test_nodes_that_share_a_name_are_distinguished() -> None:
    one = {"RegionID": 900, "Nodes": [NODE, NODE]}
    (region,) = regions_of(make_map(one), None, http_port=80)
    assert [s.node.name for s in region.subjects] == ["900[0] 900a", "900[1] 900a"]


def test_an_unknown_region_is_refused() -> None:
    one = {"RegionID": 900, "RegionCode": "lab", "Nodes": [NODE]}
    with pytest.raises(ConfigError, match=r"no region 'nyc'; its regions: 900 \(lab\)"):
        regions_of(make_map(one), "nyc", http_port=80)
    for empty in (make_map(), make_map({"RegionID": 900})):
        with pytest.raises(ConfigError, match="the DERP map has no nodes"):
            regions_of(empty, None, http_port=80)


def test_a_region_without_a_code_is_listed_by_its_number() -> None:
    derp_map = make_map({"RegionID": 900, "Nodes": [NODE]})
    with pytest.raises(ConfigError, match=r"its regions: 900$"):
        regions_of(derp_map, "nowhere", http_port=80)
