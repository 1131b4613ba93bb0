"""DERP maps: read and written as Go does, checked more strictly."""

from __future__ import annotations

import contextlib
import dataclasses
import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pyderp.errors import InvalidMap
from pyderp.maps.derpmap import DERPMap, HomeParams
from pyderp.maps.region import DERPNode, DERPRegion

quick = settings(derandomize=True, deadline=None)

LAB_JSON = (
    '{"Regions":{"900":{"RegionID":900,"RegionCode":"lab","RegionName":"Lab",'
    '"Nodes":[{"Name":"900a","RegionID":900,"HostName":"derp.example.com"}]}},'
    '"omitDefaultRegions":true}'
)
NODE = DERPNode(name="900a", region_id=900, host_name="derp.example.com")
LAB = DERPRegion(region_id=900, region_code="lab", region_name="Lab", nodes=(NODE,))
LAB_MAP = DERPMap(regions={900: LAB}, omit_default_regions=True)

FULL_NODE = DERPNode(
    name="1a",
    region_id=1,
    host_name="a.example.com",
    cert_name="front.example.com",
    ipv4="203.0.113.5",
    ipv6="none",
    stun_port=3479,
    stun_only=True,
    derp_port=8443,
    insecure_for_tests=True,
    stun_test_ip="127.0.0.1",
    can_port_80=True,
)
FULL_MAP = DERPMap(
    home_params=HomeParams(region_score={10: 0.5, 2: 1.0}),
    regions={
        2: DERPRegion(region_id=2),
        10: DERPRegion(
            region_id=10,
            region_code="x",
            region_name="X & Y",
            latitude=37.5,
            longitude=-122.0,
            avoid=True,
            no_measure_no_home=True,
            nodes=(FULL_NODE,),
        ),
    },
)
FULL_JSON = """\
{
	"HomeParams": {
		"RegionScore": {
			"10": 0.5,
			"2": 1
		}
	},
	"Regions": {
		"10": {
			"RegionID": 10,
			"RegionCode": "x",
			"RegionName": "X \\u0026 Y",
			"Latitude": 37.5,
			"Longitude": -122,
			"Avoid": true,
			"NoMeasureNoHome": true,
			"Nodes": [
				{
					"Name": "1a",
					"RegionID": 1,
					"HostName": "a.example.com",
					"CertName": "front.example.com",
					"IPv4": "203.0.113.5",
					"IPv6": "none",
					"STUNPort": 3479,
					"STUNOnly": true,
					"DERPPort": 8443,
					"InsecureForTests": true,
					"STUNTestIP": "127.0.0.1",
					"CanPort80": true
				}
			]
		},
		"2": {
			"RegionID": 2,
			"RegionCode": "",
			"RegionName": "",
			"Nodes": []
		}
	}
}"""


# JSON


def test_a_map_of_one_region_is_read_and_written() -> None:
    assert DERPMap.from_json(LAB_JSON) == LAB_MAP
    assert DERPMap.from_json(LAB_JSON.encode()) == LAB_MAP
    assert DERPMap.from_json(json.loads(LAB_JSON)) == LAB_MAP
    assert LAB_MAP.to_json() == LAB_JSON


def test_a_map_with_every_field_is_read_and_written() -> None:
    assert DERPMap.from_json(FULL_JSON) == FULL_MAP
    assert FULL_MAP.to_json(pretty=True) == FULL_JSON


def test_names_match_in_any_case_and_unknown_names_and_nulls_are_ignored() -> None:
    text = """{"regions": {"900": {"regionid": 900, "NODES": [null, {
        "hostname": "h", "NAME": "900a", "regionID": 900, "New": [1], "derpport": null
    }], "more": {}}, "7": null}, "OmitDefaultRegions": true, "x": 1e999}"""
    derp_map = DERPMap.from_json(text)
    node = DERPNode(name="900a", region_id=900, host_name="h")
    assert derp_map.regions == {900: DERPRegion(region_id=900, nodes=(node,))}
    assert derp_map.omit_default_regions


@pytest.mark.parametrize("text", ["null", "{}", '{"Regions":null,"HomeParams":null}'])
def test_absent_regions_are_unknown(text: str) -> None:
    derp_map = DERPMap.from_json(text)
    assert derp_map == DERPMap(keep_regions=True)
    assert derp_map.to_json() == '{"Regions":null}'


def test_no_regions_differ_from_absent_ones() -> None:
    derp_map = DERPMap.from_json('{"Regions":{}}')
    assert derp_map == DERPMap()
    assert derp_map.to_json() == '{"Regions":{}}'


@pytest.mark.parametrize("text", ['{"HomeParams":{}', '{"HomeParams":{"RegionScore":{}}'])
def test_empty_scores_differ_from_absent_ones(text: str) -> None:
    text += ',"Regions":{}}'
    assert DERPMap.from_json(text).to_json() == text


AT = 'Regions["900"]'


@pytest.mark.parametrize(
    ("document", "error"),
    [
        ([], "the map: want an object, got an array"),
        ("x", "the map: want an object, got a string"),
        ({"Regions": []}, "Regions: want an object, got an array"),
        ({"Regions": {"x": {}}}, 'Regions["x"]: the key is not an integer of 64 bits'),
        ({"Regions": {"1.0": None}}, 'Regions["1.0"]: the key is not an integer of 64 bits'),
        ({"Regions": {'"': {}}}, r'Regions["\""]: the key is not an integer of 64 bits'),
        ({"Regions": {"900": 1}}, f"{AT}: want an object, got an integer"),
        ({"Regions": {"900": {"Nodes": {}}}}, f"{AT}.Nodes: want an array, got an object"),
        (
            {"Regions": {"900": {"Nodes": [{}, 1]}}},
            f"{AT}.Nodes[1]: want an object, got an integer",
        ),
        (
            {"Regions": {"900": {"Nodes": [{"derpport": "443"}]}}},
            f"{AT}.Nodes[0].DERPPort: want an integer, got a string",
        ),
        (
            {"Regions": {"900": {"Nodes": [{"STUNPort": 3478.0}]}}},
            f"{AT}.Nodes[0].STUNPort: want an integer, got a number",
        ),
        ({"Regions": {"900": {"RegionID": True}}}, f"{AT}.RegionID: want an integer, got true or"),
        (
            {"Regions": {"900": {"RegionID": 2**63}}},
            f"{AT}.RegionID: the integer does not fit into 64 bits",
        ),
        (
            {"Regions": {"900": {"RegionCode": 1}}},
            f"{AT}.RegionCode: want a string, got an integer",
        ),
        ({"Regions": {"900": {"Avoid": 1}}}, f"{AT}.Avoid: want true or false, got an integer"),
        ({"Regions": {"900": {"Latitude": "1"}}}, f"{AT}.Latitude: want a number, got a string"),
        ({"Regions": {"900": {"Latitude": 10**400}}}, f"{AT}.Latitude: the number is out of range"),
        ({"omitDefaultRegions": "yes"}, "omitDefaultRegions: want true or false, got a string"),
        ({"HomeParams": 1.5}, "HomeParams: want an object, got a number"),
        (
            {"HomeParams": {"RegionScore": {"1": False}}},
            'HomeParams.RegionScore["1"]: want a number, got true or false',
        ),
    ],
)
def test_a_wrong_type_is_refused_with_its_place(document: Any, error: str) -> None:
    for source in (json.dumps(document), document):
        if source == "x":
            continue
        with pytest.raises(InvalidMap) as caught:
            DERPMap.from_json(source)
        assert str(caught.value).startswith(error)


def test_a_number_out_of_range_is_refused() -> None:
    with pytest.raises(InvalidMap, match=r'^Regions\["1"\].Latitude: the number is out of range$'):
        DERPMap.from_json('{"Regions":{"1":{"Latitude":1e999}}}')


texts = st.text(max_size=8)
ints = st.integers(-(2**63), 2**63 - 1)
# Reading loses the sign of -0, which has no meaning in a map.
floats = st.floats(allow_nan=False, allow_infinity=False).map(lambda number: number + 0.0)
nodes = st.builds(
    DERPNode,
    name=texts,
    region_id=ints,
    host_name=texts,
    cert_name=texts,
    ipv4=texts,
    ipv6=texts,
    stun_port=ints,
    stun_only=st.booleans(),
    derp_port=ints,
    insecure_for_tests=st.booleans(),
    stun_test_ip=texts,
    can_port_80=st.booleans(),
)
regions = st.builds(
    DERPRegion,
    region_id=ints,
    region_code=texts,
    region_name=texts,
    latitude=floats,
    longitude=floats,
    avoid=st.booleans(),
    no_measure_no_home=st.booleans(),
    nodes=st.lists(nodes, max_size=2).map(tuple),
)
scores = st.dictionaries(ints, floats, max_size=3)
maps = st.builds(
    DERPMap,
    regions=st.dictionaries(ints, regions, max_size=3),
    home_params=st.none() | st.builds(HomeParams, region_score=st.none() | scores),
    omit_default_regions=st.booleans(),
)


@quick
@given(maps, st.booleans())
def test_a_written_map_is_read_back(derp_map: DERPMap, pretty: bool) -> None:
    text = derp_map.to_json(pretty=pretty)
    assert DERPMap.from_json(text) == derp_map
    assert DERPMap.from_json(text).to_json(pretty=pretty) == text
    assert DERPMap.from_json(json.loads(text)) == derp_map


SOME_KEYS = "Regions 900 nodes Nodes Name RegionID DERPPort HomeParams Latitude regionscore Avoid 5"
json_keys = texts | st.sampled_from(SOME_KEYS.split())
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | texts,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(json_keys, inner, max_size=4),
    max_leaves=12,
)


@quick
@given(json_values)
def test_any_json_is_a_map_or_an_error(document: Any) -> None:
    """A map can be written, checked and read again."""
    text = json.dumps(document)
    try:
        derp_map = DERPMap.from_json(text)
    except InvalidMap:
        return
    assert DERPMap.from_json(derp_map.to_json()) == derp_map
    derp_map.problems()


@quick
@given(st.binary(max_size=60))
def test_any_bytes_are_a_map_or_an_error(data: bytes) -> None:
    with contextlib.suppress(InvalidMap):
        assert set(DERPMap.from_json(b'{"Regions":{"1":' + data + b"}}").regions) <= {1}


# Updates


def test_an_update_with_regions_replaces_them() -> None:
    update = DERPMap(regions={1: DERPRegion(region_id=1)})
    merged = update.merge(LAB_MAP)
    assert merged.regions == update.regions
    assert not merged.omit_default_regions


def test_an_update_without_regions_keeps_them_and_their_settings() -> None:
    update = DERPMap.from_json('{"HomeParams":{"RegionScore":{"900":2}}}')
    merged = update.merge(LAB_MAP)
    assert merged == dataclasses.replace(LAB_MAP, home_params=update.home_params)
    assert DERPMap.from_json("{}").merge(DERPMap.from_json("{}")).keep_regions


@pytest.mark.parametrize(
    ("update", "previous", "merged"),
    [
        (None, None, None),
        (None, {1: 2.0}, {1: 2.0}),
        ({}, {1: 2.0}, {}),
        ({2: 0.5}, {1: 2.0}, {2: 0.5}),
    ],
)
def test_scores_of_an_update_replace_the_previous_ones(
    update: dict[int, float] | None,
    previous: dict[int, float] | None,
    merged: dict[int, float] | None,
) -> None:
    before = DERPMap(home_params=HomeParams(region_score=previous))
    after = DERPMap(home_params=HomeParams(region_score=update)).merge(before)
    assert after.home_params == HomeParams(region_score=merged)
    assert DERPMap().merge(before).home_params == before.home_params


def test_the_first_update_keeps_nothing() -> None:
    update = DERPMap(home_params=HomeParams())
    assert update.merge(DERPMap()) == update


# Look-ups


@pytest.mark.parametrize("wanted", [900, "900", "+900", "0900", "lab"])
def test_a_region_is_found_by_id_or_code(wanted: int | str) -> None:
    assert LAB_MAP.region(wanted) == LAB


@pytest.mark.parametrize("wanted", [0, -900, 901, "901", "Lab", "LAB", "", "9e2", "900 "])
def test_an_unknown_region_is_none(wanted: int | str) -> None:
    assert LAB_MAP.region(wanted) is None


def test_a_number_that_is_no_id_is_a_code() -> None:
    """Ids are from 1 to 2^53-1."""
    for code in ("9007199254740992", "0", "-5"):
        odd = DERPRegion(region_id=1, region_code=code)
        assert DERPMap(regions={1: odd, int(code): LAB}).region(code) == odd


def test_the_port_of_a_node_has_a_default() -> None:
    assert NODE.derp_port_or(443) == 443
    assert FULL_NODE.derp_port_or(443) == 8443


# Checks


def changed(**changes: Any) -> DERPMap:
    """The lab's map and a good second region, with changes to the lab's node."""
    region = dataclasses.replace(LAB, nodes=(dataclasses.replace(NODE, **changes),))
    other = dataclasses.replace(NODE, name="901a", region_id=901)
    return DERPMap(regions={900: region, 901: DERPRegion(region_id=901, nodes=(other,))})


NO_HOST = "no HostName: only a node with InsecureForTests and IPv4 or IPv6 works without"


def test_a_good_map_has_no_problems() -> None:
    derp_map = changed()
    assert derp_map.problems().errors == ()
    assert derp_map.problems().warnings == ()
    assert derp_map.check() == ()


@pytest.mark.parametrize(
    ("changes", "error"),
    [
        ({"name": "901a"}, "region 901, node '901a': another node has the same name"),
        ({"region_id": 901}, "region 900, node '900a': its RegionID is 901, and not 900"),
        ({"host_name": ""}, f"region 900, node '900a': {NO_HOST}"),
        ({"host_name": "", "ipv4": "203.0.113.5"}, f"region 900, node '900a': {NO_HOST}"),
        ({"host_name": "", "insecure_for_tests": True}, f"region 900, node '900a': {NO_HOST}"),
        *(
            (
                {"host_name": host},
                f"region 900, node '900a': HostName {host!r} is a URL: write the name alone, and "
                "the port in DERPPort",
            )
            for host in ("https://derp.example.com", "derp.example.com/derp")
        ),
        *(
            (
                {"host_name": host},
                f"region 900, node '900a': HostName {host!r} has a port or brackets: write the "
                "name or address alone, and the port in DERPPort",
            )
            for host in ("derp.example.com:8443", "[2001:db8::1]", "203.0.113.5:443")
        ),
        ({"stun_port": -2}, "region 900, node '900a': STUNPort -2 is not from -1 to 65535"),
        ({"stun_port": 65536}, "region 900, node '900a': STUNPort 65536 is not from -1 to 65535"),
        ({"derp_port": -1}, "region 900, node '900a': DERPPort -1 is not from 0 to 65535"),
        ({"derp_port": 65536}, "region 900, node '900a': DERPPort 65536 is not from 0 to 65535"),
        *(
            (
                {"cert_name": f"sha256-raw:{pin}"},
                "region 900, node '900a': CertName sha256-raw: must have 64 lower-case hex digits "
                "after it",
            )
            for pin in ("", "a" * 63, "A" * 64, "a" * 65, "a" * 64 + "\n")
        ),
    ],
)
def test_an_error_in_a_node_has_its_place(changes: dict[str, Any], error: str) -> None:
    derp_map = changed(**changes)
    assert derp_map.problems().errors == (error,)
    with pytest.raises(InvalidMap) as caught:
        derp_map.check()
    assert str(caught.value) == error


@pytest.mark.parametrize(
    "changes",
    [
        {"stun_port": -1},
        {"stun_port": 65535, "derp_port": 65535},
        {"cert_name": "sha256-raw:" + "0123456789abcdef" * 4},
        {"cert_name": "front.example.com"},
        {"ipv4": "none"},
        {"ipv4": "none", "ipv6": "2001:db8::1"},
        {"ipv4": "203.0.113.5", "ipv6": "none"},
        {"host_name": "2001:db8::1"},
        {"host_name": "", "ipv4": "203.0.113.5", "insecure_for_tests": True},
    ],
)
def test_a_valid_node_has_no_problem(changes: dict[str, Any]) -> None:
    assert changed(**changes).check() == ()


@pytest.mark.parametrize(
    ("key", "region", "error"),
    [
        (0, dataclasses.replace(LAB, region_id=0, nodes=()), "region 0: ids are from 1 to"),
        (2**53, dataclasses.replace(LAB, region_id=2**53), "ids are from 1 to 9007199254740991"),
        (
            900,
            dataclasses.replace(LAB, region_id=901),
            "region 900: its RegionID is 901, and not 900",
        ),
        (900, dataclasses.replace(LAB, nodes=()), "region 900: no nodes"),
    ],
)
def test_an_error_in_a_region_is_found(key: int, region: DERPRegion, error: str) -> None:
    with pytest.raises(InvalidMap, match=error):
        DERPMap(regions={key: region}).check()


def test_all_errors_are_reported() -> None:
    derp_map = changed(host_name="", derp_port=70000)
    with pytest.raises(InvalidMap, match=r"no HostName: .*; .*DERPPort 70000"):
        derp_map.check()


def test_warnings_refuse_nothing() -> None:
    assert LAB_MAP.check() == ("only one region: if it fails, clients have no other",)
    assert changed(ipv4="none", ipv6="203.0.113.5").check() == (
        "region 900, node '900a': both IPv4 and IPv6 are disabled",
    )
    avoided = dataclasses.replace(changed().regions[900], avoid=True)
    derp_map = DERPMap(regions={900: avoided, 901: changed().regions[901]})
    [warning] = derp_map.check()
    assert warning.startswith("region 900: Avoid is deprecated")
