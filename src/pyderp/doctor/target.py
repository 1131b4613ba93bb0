"""Reads the target of `pyderp doctor`: a relay's URL, a host name, or a DERP map."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from enum import Enum
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

from pyderp.addresses import bracketed, check_host_name, format_address, ip_literal, parse_address
from pyderp.client.config import UrlTarget, node_url, parse_url
from pyderp.defaults import HTTP_PORT, HTTPS_PORT
from pyderp.doctor.examination import Region
from pyderp.doctor.visit import Subject
from pyderp.errors import ConfigError
from pyderp.maps.derpmap import DERPMap
from pyderp.maps.region import DERPNode, DERPRegion
from pyderp.wire.http import DERP_PATH

__all__ = ["Single", "TargetKind", "kind_of", "regions_of", "relay_region"]

_REGION: Final = 900
_MAP_FILE: Final = re.compile(r"(?i)\.(json|hujson|jsonc|ya?ml)$")

_WITH_PATH: Final = re.compile(r"(?i)[^/\\\s.][^/\\\s]*[.:][^/\\\s]+/(.+/)?derp/?$")
"""Host and path of a relay's URL without the scheme."""


class TargetKind(Enum):
    """What a target is."""

    RELAY = "relay"
    MAP = "map"


def kind_of(text: str) -> TargetKind:
    """Return whether a target is a relay (URL or host) or a DERP map (file or URL).

    A URL is that of a relay if its path is empty, `/`, or ends in `/derp`. A target without a
    scheme is a map if it is `-`, has a slash, ends as `.json` or `.yaml`, or is an existing file.
    """
    if re.match(r"(?i)https?://", text):
        path = _path(text)
        return TargetKind.RELAY if path in ("", "/") or path.endswith(DERP_PATH) else TargetKind.MAP
    if "://" in text and not text.startswith("file:"):
        return TargetKind.RELAY  # of an unknown scheme, which `relay_region` refuses
    if _WITH_PATH.match(text) and not Path(text).exists():
        return TargetKind.RELAY  # without its scheme, which `relay_region` refuses
    if text == "-" or "/" in text or _MAP_FILE.search(text) or Path(text).is_file():
        return TargetKind.MAP
    return TargetKind.RELAY


def _path(url: str) -> str:
    """Return the path of a URL; empty also for an invalid URL, which `parse_url` refuses."""
    try:
        return urlsplit(url).path
    except ValueError:
        return ""


@dataclass(frozen=True, kw_only=True)
class Single:
    """The settings of a single relay that a map would have otherwise; flags set them."""

    cert_name: str = ""
    """A name that the certificate is for, instead of the host name, or its pin."""
    insecure: bool = False
    http_port: int = HTTP_PORT
    stun_port: int = 0


def relay_region(text: str, single: Single) -> Region:
    """Return a region of one relay, from its URL or host name.

    Args:
        text: `https://HOST[:PORT][/derp]`, `http://…`, or `HOST[:PORT]`, which means https.

    Raises:
        ConfigError: the text is neither a URL nor a host name.
    """
    if re.match(r"(?i)https?://", text):
        url = text
    elif "://" in text:
        scheme, _, rest = text.partition("://")
        raise ConfigError(
            f"a relay's URL begins with https:// or http://, and not with {scheme}://"
            f": give https://{rest}"
        )
    elif _WITH_PATH.match(text):
        raise ConfigError(f"{text!r} has no scheme, and is not a file: give https://{text}")
    else:
        url = f"https://{_host_and_port(text)}"
    target = _parsed(url)
    if _path(url) in ("", "/"):
        target = _parsed(urlsplit(url)._replace(path=DERP_PATH).geturl())
    if ip_literal(target.host) is None:
        check_host_name(target.host)
    default = HTTPS_PORT if target.tls else HTTP_PORT
    name = bracketed(target.host)
    if target.port != default:
        name = format_address(target.host, target.port)
    node = DERPNode(
        name=name,
        region_id=_REGION,
        host_name=target.host,
        derp_port=target.port,
        cert_name=single.cert_name,
        insecure_for_tests=single.insecure,
        stun_port=single.stun_port,
    )
    subject = Subject(node=node, target=target, http_port=single.http_port)
    return Region(name, (subject,))


def _parsed(url: str) -> UrlTarget:
    """Call `parse_url`, and remove the name of the Go function that its errors begin with."""
    try:
        return parse_url(url)
    except ConfigError as e:
        raise ConfigError(str(e).removeprefix("derphttp.NewClient: ")) from None


def _host_and_port(text: str) -> str:
    if ip_literal(text) is not None:
        return bracketed(text)
    if ":" in text:
        host, port = parse_address(text)
        if not host:
            raise ConfigError(f"{text!r} has no host: give a URL, a DERP map, or HOST[:PORT]")
        return format_address(host, port)
    try:
        check_host_name(text)
    except ConfigError:
        raise ConfigError(
            f"{text!r} is neither a URL nor a host name nor a file: give https://HOST/derp, a DERP "
            "map, or HOST[:PORT]"
        ) from None
    return text


def regions_of(derp_map: DERPMap, wanted: str | None, *, http_port: int) -> list[Region]:
    """Return the regions of a map that have nodes, or one of them.

    Args:
        wanted: id or code of a region; `None`: all.
        http_port: the port of plain HTTP of all nodes.

    Raises:
        ConfigError: the map has no such region, or no nodes at all.
    """
    found = list(derp_map.regions.values())
    if wanted is not None:
        one = derp_map.region(wanted)
        if one is None:
            there = ", ".join(map(_shown, found[:20])) or "none"
            raise ConfigError(f"the DERP map has no region {wanted!r}; its regions: {there}")
        found = [one]
    if not any(region.nodes for region in found):
        raise ConfigError("the DERP map has no nodes, so there is nothing to check")
    names = Counter(node.name for region in found for node in region.nodes)
    return [_region(region, names, http_port) for region in found if region.nodes]


def _shown(region: DERPRegion) -> str:
    code = f" ({region.region_code})" if region.region_code else ""
    return f"{region.region_id}{code}"


def _region(region: DERPRegion, names: Counter[str], http_port: int) -> Region:
    label = f"region {region.region_id}"
    if region.region_code:
        label += f" ({region.region_code})"
    return Region(label, tuple(_subjects(region, names, http_port)))


def _subjects(region: DERPRegion, names: Counter[str], http_port: int) -> Iterator[Subject]:
    for position, node in enumerate(region.nodes):
        if not node.name or names[node.name] > 1:
            node = replace(node, name=f"{region.region_id}[{position}] {node.name}".rstrip())
        yield Subject(
            node=node,
            target=node_url(node, tls=True),
            http_port=http_port,
            wants_port_80=node.can_port_80,
        )
