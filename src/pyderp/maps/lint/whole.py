"""Rules about a map as a whole: its regions together, and values that must be unique in it."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import Final

from pyderp.addresses import bare_name
from pyderp.maps.derpmap import DERPMap
from pyderp.maps.formats import MapKind
from pyderp.maps.lint.finding import Finding, node_path, region_path, unknown_members
from pyderp.maps.lint.regions import is_tailscales
from pyderp.maps.region import PIN_PREFIX, DERPNode

__all__ = ["of_map", "of_names"]

_TOP_NAMES: Final = ("HomeParams", "Regions", "omitDefaultRegions")


def of_map(
    derp_map: DERPMap, kind: MapKind | None = None, urls: Sequence[str] | None = None
) -> Iterator[Finding]:
    """Yield the findings about all regions together; the arguments are those of `lint`."""
    regions = derp_map.regions
    if not regions:
        yield Finding(
            rule="no-regions",
            path="Regions",
            text="no regions: a client with this map has no relay",
            advice="add a region; `pyderp map new HOST` makes one",
        )
        return
    if len(regions) == 1:
        yield Finding(
            rule="one-region",
            path="Regions",
            text="only one region: if it fails, clients have no other",
            advice="add a second region elsewhere, or keep Tailscale's own",
        )
    of_config = kind is MapKind.HEADSCALE and urls is not None
    yield from _omits(derp_map, of_config=of_config)
    if kind is MapKind.POLICY:
        has_others = not derp_map.omit_default_regions
    else:
        has_others = kind is MapKind.HEADSCALE and not of_config
    if not has_others and all(region.no_measure_no_home for region in regions.values()):
        yield Finding(
            rule="no-home",
            path="Regions",
            text="all regions have NoMeasureNoHome, so no client has a home",
            advice="remove it from at least one region",
        )
    nodes = [node for region in regions.values() for node in region.nodes]
    if nodes and not any(node.can_port_80 for node in nodes):
        yield Finding(
            rule="port-80",
            path="Regions",
            text="no node has CanPort80: clients cannot use these relays to detect captive portals",
            advice='set "CanPort80": true and IPv4, the address, on nodes that answer HTTP on port '
            "80",
        )
    yield from _scores(derp_map)
    yield from unknown_members(derp_map.unknown, "", _TOP_NAMES)


def _omits(derp_map: DERPMap, *, of_config: bool) -> Iterator[Finding]:
    """Yield a finding if clients do not get Tailscale's regions.

    A flag leaves them out, or none of headscale's sources has them.
    """
    count = len(derp_map.regions)
    regions = "the one region" if count == 1 else f"the {count} regions"
    text = (
        f"clients have no relays but those of {regions} here: peers without a direct path reach "
        "each other by these or not at all"
    )
    if of_config and not any(is_tailscales(region) for region in derp_map.regions.values()):
        yield Finding(
            rule="omits-default-regions",
            path="derp.urls",
            text=text,
            advice="add the URL of Tailscale's map to derp.urls, unless clients must not use its "
            "relays",
        )
    elif derp_map.omit_default_regions and not of_config:
        yield Finding(
            rule="omits-default-regions",
            path="omitDefaultRegions",
            text=text,
            advice="remove omitDefaultRegions, unless clients must not use Tailscale's relays",
        )


def _scores(derp_map: DERPMap) -> Iterator[Finding]:
    home = derp_map.home_params
    for number, score in (home.region_score or {}).items() if home is not None else ():
        path = f'HomeParams.RegionScore["{number}"]'
        if number not in derp_map.regions:
            yield Finding(
                rule="score",
                path=path,
                text="a score for a region that is not in the map",
                advice="correct the id, or remove the score; keep it if Tailscale has the region",
            )
        elif score <= 0:
            yield Finding(
                rule="score",
                path=path,
                text=f"clients ignore the score {score:g}: only those above 0 count",
                advice="write a factor on the latency: below 1 favours the region",
            )


def of_names(derp_map: DERPMap) -> Iterator[Finding]:
    """Yield the findings about codes, names, relays and pins that must be unique in a map."""
    names: dict[str, str] = {}
    codes: dict[str, int] = {}
    relays: dict[tuple[str, ...], str] = {}
    hosts: dict[tuple[str, int], list[tuple[DERPNode, str]]] = defaultdict(list)
    for number, region in derp_map.regions.items():
        if region.region_code and codes.setdefault(region.region_code, number) != number:
            yield Finding(
                rule="duplicate-code",
                path=f"{region_path(number)}.RegionCode",
                text=f"{region.region_code!r} is the code of region {codes[region.region_code]}, "
                "too: commands that take a code use that one",
                advice="give each region a code of its own",
            )
        for index, node in enumerate(region.nodes):
            path = node_path(number, index)
            other = names.setdefault(node.name, path) if node.name else path
            if other != path:
                yield Finding(
                    rule="duplicate-name",
                    path=f"{path}.Name",
                    text=f"{node.name!r} is the name of {other}, too: measurements of one count for"
                    " the other, and derpprobe refuses the map",
                    advice=f"give each node a name that is unique in the map, such as {number}b",
                )
            yield from _same_relay(node, path, relays)
            if node.host_name:
                hosts[bare_name(node.host_name), node.derp_port_or(443)].append((node, path))
    for (host, port), nodes in hosts.items():
        yield from _pins(host, port, nodes)


def _pins(host: str, port: int, nodes: list[tuple[DERPNode, str]]) -> Iterator[Finding]:
    """Yield a finding if nodes with one host and port have different pins."""
    names = {node.cert_name: path for node, path in nodes}
    pinned = [path for name, path in names.items() if name.startswith(PIN_PREFIX)]
    addresses = {(node.ipv4, node.ipv6) for node, _ in nodes}
    # Nodes with different addresses are different machines, which may each have a certificate.
    if pinned and len(names) > 1 and len(addresses) < len(nodes):
        yield Finding(
            rule="pin-conflict",
            path=f"{pinned[-1]}.CertName",
            text=f"{host} port {port} has {len(names)} different CertNames in this map; a relay "
            "presents one certificate, so at most one of them is right",
            advice="write the pin that `pyderp map show https://HOST:PORT` shows into all of them",
        )


def _same_relay(node: DERPNode, path: str, relays: dict[tuple[str, ...], str]) -> Iterator[Finding]:
    key = (bare_name(node.host_name), str(node.derp_port_or(443)), node.ipv4, node.ipv6)
    other = relays.setdefault(key, path)
    if other != path and node.host_name and not node.stun_only:
        yield Finding(
            rule="same-relay",
            path=path,
            text=f"this is the same relay as {other}: if that fails, this node fails, too",
            advice="remove one of them, or give it the address of another machine",
        )
