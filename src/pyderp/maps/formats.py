"""The text of a DERP map in any of its forms: which one it is, and the map in it."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import Final, cast

from pyderp import gojson
from pyderp.errors import InvalidMap
from pyderp.maps.derpmap import DERPMap
from pyderp.maps.headscale import HeadscaleConfig, map_tree, read_config
from pyderp.maps.mapjson import Reader
from pyderp.maps.notmap import (
    BYTE_ORDER_MARK,
    NO_REGIONS,
    has_mark,
    is_map,
    is_policy,
    refuse_other,
)
from pyderp.maps.policy import map_in_policy, parse_hujson
from pyderp.maps.yamltree import parse_yaml

__all__ = ["MAX_MAP", "MapKind", "MapText", "read_map_text"]

MAX_MAP: Final = 16 * 1024 * 1024
"""Bytes of a map's text; one with 10,000 nodes has 2 MiB."""
_WANTED: Final = "want a DERP map: JSON, headscale's YAML or a policy file with derpMap"
_TOP_OF_YAML: Final = re.compile(r"(?m)^(regions|derp)[ \t]*:")


class MapKind(Enum):
    """Forms in which a map is kept, and a relay, which has one to offer."""

    JSON = "json"
    """As Go writes it, and `pyderp relay --show-map=json`."""
    POLICY = "policy"
    """A policy file of a tailnet, with the member `derpMap`; or only that member."""
    HEADSCALE = "headscale"
    """A YAML file for `derp.paths`, or headscale's `config.yaml`."""
    RELAY = "relay"
    """Made for a relay that runs, from what it answers."""


@dataclass(frozen=True, kw_only=True)
class MapText:
    """What a text has."""

    kind: MapKind
    map: DERPMap
    tree: object
    """The map's JSON, or what would be it, in Python objects; objects are `gojson.Object`."""
    warnings: tuple[str, ...] = ()
    has_comments: bool = False
    """It has comments or trailing commas, which JSON has not."""
    config: HeadscaleConfig | None = field(default=None)
    """The text is headscale's `config.yaml`: the map is still to be fetched; `map` is empty."""


def read_map_text(data: bytes, kind: MapKind | None = None) -> MapText:
    """Read a map.

    Args:
        data: as a file or a server has it.
        kind: its form; `None`: found out.

    Raises:
        InvalidMap: it is in none of the forms, or not in this one, or is no map. The text has the
            line and column of a mistake in the form, or the path of a member.
    """
    if len(data) > MAX_MAP:
        raise InvalidMap(f"more than {MAX_MAP // 2**20} MiB")
    if has_mark(data):
        raise InvalidMap(BYTE_ORDER_MARK)
    text = data.decode("utf-8", "replace")
    if kind is MapKind.HEADSCALE or (kind is None and _looks_like_yaml(text)):
        return _read_yaml(text)
    has_comments = False
    try:
        document = gojson.parse(text)
    except ValueError as e:
        if kind is MapKind.JSON:
            raise InvalidMap(f"not JSON: {gojson.mistake(e)}") from None
        if text.lstrip()[:1] not in ("{", "[", '"', "/"):
            raise InvalidMap(f"neither JSON nor YAML with regions: {_WANTED}") from None
        document = parse_hujson(text)
        has_comments = True
    return dataclasses.replace(_read_json(document, kind), has_comments=has_comments)


def _looks_like_yaml(text: str) -> bool:
    # JSON and a snippet of a policy begin with a bracket, a quote or a comment of theirs.
    start = text.lstrip()[:1]
    return start not in ("{", "[", '"', "/", "") and _TOP_OF_YAML.search(text) is not None


def _read_json(document: object, kind: MapKind | None) -> MapText:
    names = {gojson.same_name(n) for n in document} if isinstance(document, gojson.Object) else ()
    if kind is MapKind.POLICY or (kind is None and "derpmap" in names):
        tree = map_in_policy(document)
        if tree is None:
            raise InvalidMap("the policy has no derpMap, so its tailnet has Tailscale's relays")
        return MapText(kind=MapKind.POLICY, map=_map(tree, "derpMap"), tree=tree)
    if names and not is_map(document):
        if is_policy(document):
            raise InvalidMap("this policy file has no derpMap, the member that holds a DERP map")
        raise InvalidMap(f"{NO_REGIONS}: {_WANTED}")
    return MapText(kind=MapKind.JSON, map=_map(document, ""), tree=document)


def _map(tree: object, path: str) -> DERPMap:
    if tree is not None:
        Reader(tree, path)  # `from_json` would read a text as JSON once more
    try:
        refuse_other(tree, _WANTED)
    except InvalidMap as e:
        raise InvalidMap(f"{path}: {e}" if path else str(e)) from None
    try:
        return DERPMap.from_json(cast("Mapping[str, object] | None", tree))
    except InvalidMap as e:
        raise InvalidMap(f"{path}.{e}" if path else str(e)) from None


def _read_yaml(text: str) -> MapText:
    root = parse_yaml(text)
    config = read_config(root)
    if config is not None:
        return MapText(kind=MapKind.HEADSCALE, map=DERPMap(), tree=None, config=config)
    tree, warnings = map_tree(root)
    return MapText(kind=MapKind.HEADSCALE, map=_map(tree, ""), tree=tree, warnings=tuple(warnings))
