"""Text that holds a map: its form, its errors, and their places."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyderp.errors import InvalidMap, MissingExtra
from pyderp.maps.derpmap import DERPMap
from pyderp.maps.formats import MAX_MAP, MapKind, read_map_text
from pyderp.maps.mapjson import JSONValue
from pyderp.maps.region import DERPNode, DERPRegion
from pyderp.maps.yamltext import headscale_yaml

from .test_derpmap import maps, quick, texts

NODE = DERPNode(name="900a", region_id=900, host_name="derp.example.com", stun_port=-1)
LAB = DERPMap(
    regions={
        900: DERPRegion(region_id=900, region_code="no", region_name="Lab", nodes=(NODE,)),
    },
    omit_default_regions=True,
)
JSON = LAB.to_json(pretty=True)
HUJSON = JSON.replace("}\n", "}, // the last one\n", 1).replace("{", "/* a */ {", 1)


@pytest.mark.parametrize(
    ("text", "kind", "has_comments"),
    [
        (JSON, MapKind.JSON, False),
        (f" \n{JSON}\n", MapKind.JSON, False),
        (HUJSON, MapKind.JSON, True),
        (f'{{"acls": [], "derpMap": {JSON}}}', MapKind.POLICY, False),
        (f'{{"DERPMAP": {HUJSON},\n"ssh": [],}}', MapKind.POLICY, True),
        (f'"derpMap": {JSON},', MapKind.POLICY, True),
        (f'// mine\n"derpMap": {JSON}', MapKind.POLICY, True),
        (headscale_yaml(LAB), MapKind.HEADSCALE, False),
        (f"# mine\n---\n{headscale_yaml(LAB)}\n", MapKind.HEADSCALE, False),
    ],
)
def test_the_form_is_detected(text: str, kind: MapKind, has_comments: bool) -> None:
    read = read_map_text(text.encode())
    assert (read.map, read.kind, read.has_comments) == (LAB, kind, has_comments)
    assert read.warnings == ()
    again = read_map_text(text.encode(), MapKind.POLICY if kind is MapKind.POLICY else None)
    assert again.map == LAB


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("", "neither JSON nor YAML with regions: want a DERP map: "),
        ("hello", "neither JSON nor YAML with regions"),
        ("<html></html>", "neither JSON nor YAML with regions"),
        ("\ufeff{}", "it begins with a byte order mark"),
        ("[]", "the map: want an object, got an array"),
        ('"x"', "the map: want an object, got a string"),
        ('{"regins": {}}', "it has no Regions: want a DERP map"),
        ('{"acls": []}', "this policy file has no derpMap"),
        ('{"derpMap": []}', "derpMap: want an object, got an array"),
        (
            '{"derpMap": {"Regions": {"1": {"Nodes": {}}}}}',
            'derpMap.Regions["1"].Nodes: want an array, got an object',
        ),
        (
            '{"Regions": [\n',
            "not JSON: expecting value in line 2, column 1: want a DERP map: JSON, headscale's",
        ),
        ('{"Regions": {"1": {},}', "line 1, column 1: unterminated object"),
        ('{\n  // a\n  "Regions": {,}\n}', "line 3, column 15: expecting key"),
        ('"derpMap": {\n "Regions": [1,,]}', "line 2, column 16: expecting value"),
        ('"derpMap": {]', "line 1, column 13: expecting key"),
        ('{"a": 1 /* x', "line 1, column 9: unterminated comment"),
        ("[" * 100_000, "not JSON: nested too deep: want a DERP map"),
        ("1" * 5000 + ",", "neither"),
        ("[" + "1" * 5000 + ",]", "an integer has thousands of digits"),
        ("regions: [", "line 2, column 1: not YAML: "),
        ("regions:\n  900: {}\n  900: {}", "line 3, column 3: the mapping has the key '900' twice"),
        ("regions: {x: {}}", 'line 1, regions["x"]: the key is not an integer of 64 bits'),
        ("regions: []", "Regions: want an object, got an array"),
        (
            "regions:\n  900:\n    nodes:\n    - stunport: x",
            'Regions["900"].Nodes[0].STUNPort: want an integer, got a string',
        ),
        ("regions:\n  900: *x", "line 2, column 8: there is no anchor &x before this alias"),
        ("regions: {[1]: 2}", "line 1, column 11: the key is a mapping or a list"),
        ("regions: " + "[" * 70 + "]" * 70, "line 1, column 73: nested too deeply"),
        ("regions: " + "[" * 100_000, "line 1, column 1009: not YAML: exceeded maximum nesting"),
        ("regions: \x01", "not YAML: "),
    ],
)
def test_an_error_has_its_place(text: str, error: str) -> None:
    with pytest.raises(InvalidMap) as caught:
        read_map_text(text.encode())
    assert str(caught.value).startswith(error)


def test_a_requested_form_is_the_only_one_read() -> None:
    with pytest.raises(InvalidMap, match=r"^not JSON: .*line 1, column 1"):
        read_map_text(HUJSON.encode(), MapKind.JSON)
    with pytest.raises(InvalidMap, match="the policy has no derpMap"):
        read_map_text(JSON.encode(), MapKind.POLICY)
    # JSON is YAML, but its names are not those of headscale, which finds no region.
    read = read_map_text(JSON.encode(), MapKind.HEADSCALE)
    assert read.map.regions == {}
    assert read.warnings[0].startswith("Regions: headscale ignores keys that are not in lower")


@pytest.mark.parametrize(("module", "text"), [("yaml", "regions: {}"), ("jsonyx", "{} // x")])
def test_a_missing_library_is_named(
    module: str, text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Plain JSON needs no library."""
    monkeypatch.setitem(sys.modules, module, None)
    assert read_map_text(JSON.encode()).map == LAB
    with pytest.raises(MissingExtra, match=rf"need the package {module}.*pyderp\[cli\]"):
        read_map_text(text.encode())


def test_the_size_is_bounded() -> None:
    with pytest.raises(InvalidMap, match="larger than 16 MiB"):
        read_map_text(b" " * (MAX_MAP + 1))


def test_aliases_are_bounded() -> None:
    """Ten lines of aliases would become ten thousand million values."""
    lines = ["a0: &a0 [x,x,x,x,x,x,x,x,x,x]"]
    lines += [f"a{n}: &a{n} [{','.join([f'*a{n - 1}'] * 10)}]" for n in range(1, 10)]
    text = "\n".join(["regions: {}", *lines])
    with pytest.raises(InvalidMap, match=r"line \d+: more than 1,000,000 values; an alias counts"):
        read_map_text(text.encode())


@quick
@given(
    st.binary(max_size=80)
    | st.text("{}[],:\"/*\n -&a*|>'#!?0r", max_size=60).map(lambda t: f"regions:{t}".encode()),
    st.none() | st.sampled_from([MapKind.JSON, MapKind.POLICY, MapKind.HEADSCALE]),
)
def test_any_bytes_are_a_map_or_an_error(data: bytes, kind: MapKind | None) -> None:
    with contextlib.suppress(InvalidMap):
        read_map_text(data, kind)


values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | texts | st.floats(-1e9, 1e9),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(texts, inner, max_size=2),
    max_leaves=4,
)


@quick
@given(maps, st.dictionaries(st.sampled_from(["a", "new-member", "no", "x.y", "é"]), values))
def test_every_form_can_hold_every_map(derp_map: DERPMap, unknown: dict[str, JSONValue]) -> None:
    """Unknown members are kept as well."""
    node = DERPNode(name="n", region_id=1, host_name="h", unknown=unknown)
    regions = {**derp_map.regions, 1: DERPRegion(region_id=1, nodes=(node,), unknown=unknown)}
    whole = dataclasses.replace(derp_map, regions=regions, unknown=unknown)
    wanted = DERPMap.from_json(whole.to_json())
    for text in (
        whole.to_json(),
        f'{{"derpMap": {whole.to_json(pretty=True)},}}',
        headscale_yaml(whole),
    ):
        read = read_map_text(text.encode()).map
        assert read == wanted
        assert read.unknown == wanted.unknown
        assert read.regions[1].unknown == wanted.regions[1].unknown
        assert read.regions[1].nodes[0].unknown == wanted.regions[1].nodes[0].unknown


def test_ten_thousand_nodes_are_read_in_time() -> None:
    """In all forms, within the time that every test has."""
    nodes = [
        {"Name": f"{n}a", "RegionID": n, "HostName": f"derp{n}.example.com", "IPv4": "192.0.2.1"}
        for n in range(1, 10_001)
    ]
    regions = {str(n["RegionID"]): {"RegionID": n["RegionID"], "Nodes": [n]} for n in nodes}
    derp_map = DERPMap.from_json({"Regions": regions})
    for text in (
        json.dumps({"Regions": regions}),
        f'{{"derpMap": {json.dumps({"Regions": regions})},}}',
        headscale_yaml(derp_map),
    ):
        assert read_map_text(text.encode()).map == derp_map
