"""Reads headscale's YAML: maps of regions, and the section `derp` of its `config.yaml`.

headscale knows Go's names in lower case and ignores all other keys; region ids are integers. The
values are turned into the objects that JSON would have, so that one reader is enough for both.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final
from urllib.parse import urlsplit

from pyderp import gojson
from pyderp.errors import InvalidMap
from pyderp.maps.derpmap import DERPMap
from pyderp.maps.mapjson import parse, parse_id
from pyderp.maps.region import NODE_NAMES, REGION_NAMES, DERPNode, DERPRegion
from pyderp.maps.yamltree import Tree, YamlList, YamlMapping, YamlScalar

__all__ = ["HeadscaleConfig", "map_tree", "read_config"]

_MAX_VALUES: Final = 1_000_000
"""The most values of a map; an alias counts with all its values. 10,000 nodes have 100,000."""
_MAX_DEPTH: Final = 64
_HTTPS: Final = 443
_HTTP: Final = 80

_FLAGS: Final = {"omitdefaultregions", "avoid", "nomeasurenohome", "stunonly", "canport80"}
_FLAGS.add("insecurefortests")
_NUMBERS: Final = {"regionid", "latitude", "longitude", "stunport", "derpport"}
_OF_MAP: Final = {n.lower(): n for n in ("HomeParams", "Regions", "omitDefaultRegions")}
_OF_HOME: Final = {"regionscore": "RegionScore"}
_OF_REGION: Final = {name.lower(): name for name in REGION_NAMES}
_OF_NODE: Final = {name.lower(): name for name in NODE_NAMES}
_TRUE: Final = frozenset({"y", "Y", "yes", "Yes", "YES", "on", "On", "ON"})
_FALSE: Final = frozenset({"n", "N", "no", "No", "NO", "off", "Off", "OFF"})
"""Words besides true and false that headscale's reader accepts as the value of a boolean."""


@dataclass(frozen=True, kw_only=True)
class HeadscaleConfig:
    """The sources of headscale's map, in its order: a later region replaces an earlier one."""

    paths: tuple[str, ...] = ()
    urls: tuple[str, ...] = ()
    own_region: Mapping[str, object] | None = None
    """The region of the embedded relay in the shape of its JSON; `None`: there is none."""


def map_tree(root: Tree | None) -> tuple[object, list[str]]:
    """Return a map in YAML as the objects that its JSON would have, and warnings.

    Raises:
        InvalidMap: a region's id is not an integer, or there are too many values; the error has the
            line. `DERPMap.from_json` checks the other values.
    """
    converter = _Converter()
    if root is None or (isinstance(root, YamlScalar) and root.is_null):
        return None, converter.warnings
    return converter.members(root, "", _OF_MAP), converter.warnings


class _Converter:
    """Turns YAML values into objects of JSON, and counts them."""

    def __init__(self) -> None:
        self.warnings: list[str] = []
        self._left = _MAX_VALUES

    def members(self, value: Tree, path: str, names: Mapping[str, str]) -> object:
        """Convert a mapping. Keys in `names` get Go's spelling; others are kept as they are."""
        if not isinstance(value, YamlMapping):
            return self.anything(value)
        self._count(value)
        pairs: list[tuple[str, object]] = []
        for key, member in value.items.items():
            name = names.get(key)
            where = f"{path}.{key}" if path else key
            if name is None and gojson.same_name(key) in names:
                right = gojson.same_name(key)
                self.warnings.append(
                    f"{where}: headscale ignores keys that are not in lower case: write {right}"
                )
            elif name is None:
                pairs.append((key, self.anything(member)))
            else:
                pairs.append((name, self._known(name, key, member, where)))
        return gojson.Object(pairs)

    def _known(self, name: str, key: str, value: Tree, path: str) -> object:
        if isinstance(value, YamlScalar) and value.is_null:
            return None
        readers: Mapping[str, Callable[[Tree, str], object]] = {
            "Regions": lambda each, at: self._by_id(each, at, self._region),
            "HomeParams": lambda each, at: self.members(each, at, _OF_HOME),
            "RegionScore": lambda each, at: self._by_id(each, at, lambda v, _: self.anything(v)),
            "Nodes": self._nodes,
        }
        if name in readers:
            return readers[name](value, path)
        if not isinstance(value, YamlScalar):
            return self.anything(value)
        self._count(value)
        if key in _FLAGS:
            return value.text in _TRUE if value.text in _TRUE | _FALSE else value.value
        return value.value if key in _NUMBERS else value.text

    def _region(self, value: Tree, path: str) -> object:
        return self.members(value, path, _OF_REGION)

    def _nodes(self, value: Tree, path: str) -> object:
        if not isinstance(value, YamlList):
            return self.anything(value)
        self._count(value)
        return [
            None
            if isinstance(item, YamlScalar) and item.is_null
            else self.members(item, f"{path}[{index}]", _OF_NODE)
            for index, item in enumerate(value.items)
        ]

    def _by_id(self, value: Tree, path: str, read: Callable[[Tree, str], object]) -> object:
        if not isinstance(value, YamlMapping):
            return self.anything(value)
        self._count(value)
        pairs: list[tuple[str, object]] = []
        for key, member in value.items.items():
            null = isinstance(member, YamlScalar) and member.is_null
            where = f"{path}[{json.dumps(key)}]"
            number = parse_id(key)
            if number is None:
                raise InvalidMap(
                    f"line {member.line}, {where}: the key is not an integer of 64 bits"
                )
            pairs.append((str(number), None if null else read(member, where)))
        return gojson.Object(pairs)

    def anything(self, value: Tree, depth: int = _MAX_DEPTH) -> object:
        """Convert a value of any type."""
        self._count(value)
        if isinstance(value, YamlScalar):
            return value.value
        if isinstance(value, YamlList):
            return [self.anything(item, depth - 1) for item in value.items]
        return gojson.Object(
            [(key, self.anything(item, depth - 1)) for key, item in value.items.items()]
        )

    def _count(self, value: Tree) -> None:
        self._left -= 1
        if self._left < 0:
            raise InvalidMap(
                f"line {value.line}: more than {_MAX_VALUES:,} values; an alias counts with all of "
                "its values"
            )


def read_config(root: Tree | None) -> HeadscaleConfig | None:
    """Read the section `derp` of headscale's `config.yaml`; returns `None` if there is none.

    Raises:
        InvalidMap: a member has a wrong type; the error has its line and path.
    """
    section = root.items.get("derp") if isinstance(root, YamlMapping) else None
    if not isinstance(root, YamlMapping) or section is None:
        return None
    if not isinstance(section, YamlMapping):
        raise InvalidMap(f"line {section.line}, derp: want a mapping")
    server = section.items.get("server")
    own = None
    if (
        isinstance(server, YamlMapping)
        and _flag(server, "enabled", default=False)
        and _flag(server, "automatically_add_embedded_derp_region", default=True)
    ):
        own = _own_region(server, root)
    return HeadscaleConfig(
        paths=_texts(section, "paths"), urls=_texts(section, "urls"), own_region=own
    )


def _texts(section: YamlMapping, key: str) -> tuple[str, ...]:
    value = section.items.get(key)
    if value is None or (isinstance(value, YamlScalar) and value.is_null):
        return ()
    if not isinstance(value, YamlList):
        raise InvalidMap(f"line {value.line}, derp.{key}: want a list")
    for index, item in enumerate(value.items):
        if not isinstance(item, YamlScalar):
            raise InvalidMap(f"line {item.line}, derp.{key}[{index}]: want a text")
    return tuple(item.text for item in value.items if isinstance(item, YamlScalar))


def _flag(section: YamlMapping, key: str, *, default: bool) -> bool:
    value = section.items.get(key)
    if value is None:
        return default
    if not isinstance(value, YamlScalar) or not isinstance(value.value, bool):
        raise InvalidMap(f"line {value.line}, derp.server.{key}: want true or false")
    return value.value


def _text(section: YamlMapping, key: str) -> str:
    value = section.items.get(key)
    return value.text if isinstance(value, YamlScalar) and not value.is_null else ""


def _own_region(server: YamlMapping, root: YamlMapping) -> Mapping[str, object]:
    """Return the region that headscale makes for its embedded relay.

    It has one node, whose name is the region's id.
    """
    number = parse_id(_text(server, "region_id") or "999")
    if number is None:
        raise InvalidMap(f"line {server.line}, derp.server.region_id: want an integer")
    url = _text(root, "server_url")
    try:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port
    except ValueError:
        host, port = None, None
    if not host:
        raise InvalidMap(
            f"server_url: {url!r} has no host, which the node of the embedded relay needs"
        )
    node = DERPNode(
        name=str(number),
        region_id=number,
        host_name=host,
        derp_port=port or (_HTTPS if parts.scheme == "https" else _HTTP),
        stun_port=parse_id(_text(server, "stun_listen_addr").rpartition(":")[2]) or -1,
        ipv4=_text(server, "ipv4"),
        ipv6=_text(server, "ipv6"),
    )
    region = DERPRegion(
        region_id=number,
        region_code=_text(server, "region_code"),
        region_name=_text(server, "region_name"),
        nodes=(node,),
    )
    document = parse(DERPMap(regions={number: region}).to_json())
    assert isinstance(document, dict)
    own: Mapping[str, object] = document["Regions"][str(number)]
    return own
