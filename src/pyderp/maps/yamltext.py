"""Writes a map in headscale's YAML: Go's names in lower case, regions by id."""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Iterator, Mapping
from typing import Final

from pyderp import gojson
from pyderp.maps.derpmap import DERPMap
from pyderp.maps.mapjson import JSONValue
from pyderp.maps.region import NODE_NAMES, REGION_NAMES, DERPRegion, node_json, region_json

__all__ = ["headscale_yaml"]

_PLAIN: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_-]*")
_WORDS: Final = frozenset({"y", "n", "yes", "no", "on", "off", "true", "false", "null"})
"""Words that some readers of YAML read as a boolean or null if they have no quotes."""
_NO_YAML: Final = re.compile("[\x7f-\xa0\xad\u2028\u2029\ufeff\ufffe\uffff]")
"""Characters of a JSON string that YAML forbids, or that are line breaks or invisible in it."""


def headscale_yaml(derp_map: DERPMap) -> str:
    """Return a map as headscale reads it.

    Unknown members are written, too, with their names as they are: only names that headscale knows
    are in lower case. A map without Regions (`keep_regions`) is written with none.
    """
    return "\n".join(_lines(derp_map))


def _lines(derp_map: DERPMap) -> Iterator[str]:
    home = derp_map.home_params
    if home is not None:
        yield "homeparams:" if home.region_score is not None or home.unknown else "homeparams: {}"
        if home.region_score is not None:
            yield "  regionscore:" if home.region_score else "  regionscore: {}"
            for number, score in sorted(home.region_score.items()):
                yield f"    {number}: {_flow(score)}"
        yield from _members(home.unknown, "  ", ())
    yield "regions:" if derp_map.regions else "regions: {}"
    for number, region in sorted(derp_map.regions.items()):
        yield f"  {number}:"
        yield from _region(region)
    if derp_map.omit_default_regions:
        yield "omitdefaultregions: true"
    yield from _members(derp_map.unknown, "", ())


def _region(region: DERPRegion) -> Iterator[str]:
    members = {name: value for name, value in region_json(region).items() if name != "Nodes"}
    yield from _members(members, "    ", REGION_NAMES)
    yield "    nodes:" if region.nodes else "    nodes: []"
    for node in region.nodes:
        first, *others = _members(node_json(node), "", NODE_NAMES)
        yield f"      - {first}"
        yield from (f"        {line}" for line in others)


def _members(
    members: Mapping[str, JSONValue], indent: str, known: Collection[str]
) -> Iterator[str]:
    for name, value in members.items():
        key = name.lower() if name in known else name
        yield f"{indent}{_key(key)}: {_flow(value)}"


def _key(name: str) -> str:
    return name if _PLAIN.fullmatch(name) and name.lower() not in _WORDS else _text(name)


def _flow(value: JSONValue) -> str:
    """Return a value on one line: as JSON, which is YAML but for some characters in strings."""
    if isinstance(value, str):
        return _text(value)
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{_text(name)}: {_flow(v)}" for name, v in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(_flow, value)) + "]"
    return json.dumps(value)


def _text(text: str) -> str:
    # No escapes for characters beyond 16 bits: JSON writes two (\ud83d\ude00), which YAML lacks.
    quoted = json.dumps(gojson.clean(text), ensure_ascii=False)
    return _NO_YAML.sub(lambda found: f"\\u{ord(found[0]):04x}", quoted)
