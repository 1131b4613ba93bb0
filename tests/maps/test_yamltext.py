"""headscale's YAML as pyderp writes it: names in lower case, except unknown members."""

from __future__ import annotations

import pytest

from pyderp.maps.derpmap import DERPMap
from pyderp.maps.formats import MapKind, read_map_text
from pyderp.maps.yamltext import headscale_yaml

UNKNOWN = {"SomeThing": 1, "another": "x", "No": True, "two words": [1, {"Inner": None}]}


def test_known_names_are_in_lower_case() -> None:
    node = {"Name": "1a", "RegionID": 1, "HostName": "h", "CanPort80": True}
    text = headscale_yaml(
        DERPMap.from_json({"Regions": {"1": {"RegionID": 1, "Avoid": True, "Nodes": [node]}}})
    )
    assert text == text.lower()
    assert "        canport80: true" in text.splitlines()


@pytest.mark.parametrize("level", ["map", "home", "region", "node"])
def test_unknown_names_keep_their_case(level: str) -> None:
    """Also names that are known elsewhere, or that a YAML reader would take for a boolean."""
    more = {**UNKNOWN, "Nodes" if level == "node" else "HostName": "elsewhere"}
    node = {"Name": "1a", "RegionID": 1, "HostName": "h", **(more if level == "node" else {})}
    region = {"RegionID": 1, "Nodes": [node], **(more if level == "region" else {})}
    home = more if level == "home" else {}
    document = {"HomeParams": home, "Regions": {"1": region}, **(more if level == "map" else {})}
    derp_map = DERPMap.from_json(document)
    read = read_map_text(headscale_yaml(derp_map).encode(), MapKind.HEADSCALE)
    assert read.map.to_json() == derp_map.to_json()
    assert '"SomeThing":1' in read.map.to_json()
    assert read.warnings == ()
