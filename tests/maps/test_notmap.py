"""A file that is not a DERP map is named by what it is."""

from __future__ import annotations

import json

import pytest

from pyderp import DERPMap, InvalidMap

REGION = {"RegionID": 900, "Nodes": [{"Name": "900a", "RegionID": 900, "HostName": "h"}]}
MAP = json.dumps({"Regions": {"900": REGION}})
OTHERS = [
    (f"\ufeff{MAP}", "it begins with a byte order mark"),
    ("", "it is empty: want a DERP map in JSON"),
    (" \n", "it is empty: "),
    ("<!doctype html><html></html>", "this is a web page or XML: "),
    (f"// ours\n{MAP}", "it has comments or trailing commas (HuJSON), which JSON does not allow: "),
    (f"{MAP[:-1]},}}", "it has comments or trailing commas (HuJSON), which JSON does not allow: "),
    ("regions:\n  900:\n    regionid: 900\n", "this is YAML, as headscale reads it: "),
    (f'{{"acls": [], "derpMap": {MAP}}}', "this is a policy file of Tailscale: "),
    ('{"acls": []}', "this is a policy file of Tailscale: "),
    (f'{{"derpMap": {MAP},}}', "this is a policy file of Tailscale, with comments or trailing "),
    (json.dumps(REGION), "it has no Regions, this is one region: "),
    ('{"Name": "900a", "HostName": "h"}', "it has no Regions, this is one node of a region: "),
    ('{"regins": {}}', "it has no Regions: "),
    (MAP[:50], "not JSON: "),
    ("hello", "not JSON: "),
]


@pytest.mark.parametrize(("text", "error"), OTHERS)
def test_other_files_are_named(text: str, error: str) -> None:
    for source in (text, text.encode()):
        with pytest.raises(InvalidMap) as caught:
            DERPMap.from_json(source)
        assert str(caught.value).startswith(error)


def test_utf_16_is_named() -> None:
    with pytest.raises(InvalidMap, match="byte order mark"):
        DERPMap.from_json(MAP.encode("utf-16"))


@pytest.mark.parametrize("document", [{"acls": [], "derpMap": {}}, REGION, {"regins": {}}])
def test_objects_that_are_no_map_are_named_too(document: dict[str, object]) -> None:
    with pytest.raises(InvalidMap, match=r"load_map reads other forms$"):
        DERPMap.from_json(document)


def test_a_map_without_regions_is_an_update_and_not_complete() -> None:
    update = DERPMap.from_json("{}")
    assert update.keep_regions
    with pytest.raises(InvalidMap, match=r"^it has no Regions: only an update of a map may lack"):
        update.check()
