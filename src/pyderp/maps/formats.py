"""Reads the text of a DERP map in any of its forms, and finds out which form it is."""

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
    is_hujson,
    is_map,
    is_policy,
    refuse_other,
)
from pyderp.maps.policy import map_in_policy, parse_hujson
from pyderp.maps.yamltree import parse_yaml

__all__ = ["MAX_MAP", "MapKind", "MapText", "read_map_text"]

MAX_MAP: Final = 16 * 1024 * 1024
"""The most bytes of a map's text that are read; a map with 10,000 nodes has 2 MiB."""
_WANTED: Final = "want a DERP map: JSON, headscale's YAML or a policy file with derpMap"
_TOP_OF_YAML: Final = re.compile(r"(?m)^(regions|derp)[ \t]*:")


class MapKind(Enum):
    """The forms of a map's text, and a running relay as a source of a map."""

    JSON = "json"
    """The JSON that Go and `pyderp relay --show-map=json` write."""
    POLICY = "policy"
    """A policy file of a tailnet, with the member `derpMap`; or only that member."""
    HEADSCALE = "headscale"
    """A YAML file for `derp.paths`, or headscale's `config.yaml`."""
    RELAY = "relay"
    """No text: pyderp makes the map from the answers of a running relay."""


@dataclass(frozen=True, kw_only=True)
class MapText:
    """What `read_map_text` found in a text."""

    kind: MapKind
    map: DERPMap
    tree: object
    """The map as Python objects, of the shape that its JSON has; objects are `gojson.Object`."""
    warnings: tuple[str, ...] = ()
    has_comments: bool = False
    """The text has comments or trailing commas, which are not part of JSON."""
    config: HeadscaleConfig | None = field(default=None)
    """Set if the text is headscale's `config.yaml`. It names the sources of the map, which the
    caller fetches; `map` is empty."""


def read_map_text(data: bytes, kind: MapKind | None = None) -> MapText:
    """Read a map.

    Args:
        data: the bytes of a file, or of a server's answer.
        kind: its form; `None`: find it out.

    Raises:
        InvalidMap: the text is not in the form `kind`, or in none of them, or is not a map. The
            error has the line and column of a syntax error, or the path of a wrong member.
    """
    if len(data) > MAX_MAP:
        raise InvalidMap(f"larger than {MAX_MAP // 2**20} MiB, the limit for a map")
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
        try:
            document = parse_hujson(text)
        except InvalidMap:
            if is_hujson(text) or not text.lstrip().startswith(("{", "[")):
                raise
            # Plain JSON: the same words as for a map that may have no other form.
            raise InvalidMap(f"not JSON: {gojson.mistake(e)}: {_WANTED}") from None
        has_comments = True
    return dataclasses.replace(_read_json(document, kind), has_comments=has_comments)


def _looks_like_yaml(text: str) -> bool:
    # JSON and the derpMap member of a policy begin with a bracket, a quote or a `/` comment.
    start = text.lstrip()[:1]
    return start not in ("{", "[", '"', "/", "") and _TOP_OF_YAML.search(text) is not None


def _read_json(document: object, kind: MapKind | None) -> MapText:
    names = {gojson.same_name(n) for n in document} if isinstance(document, gojson.Object) else ()
    if kind is MapKind.POLICY or (kind is None and "derpmap" in names):
        tree = map_in_policy(document)
        if tree is None:
            raise InvalidMap("the policy has no derpMap, so its tailnet uses Tailscale's relays")
        return MapText(kind=MapKind.POLICY, map=_map(tree, "derpMap"), tree=tree)
    if names and not is_map(document):
        if is_policy(document):
            raise InvalidMap("this policy file has no derpMap, the member that holds a DERP map")
        raise InvalidMap(f"{NO_REGIONS}: {_WANTED}")
    return MapText(kind=MapKind.JSON, map=_map(document, ""), tree=document)


def _map(tree: object, path: str) -> DERPMap:
    if tree is not None:
        # Raises if the tree is not an object: `from_json` would parse a string as JSON.
        Reader(tree, path)
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
