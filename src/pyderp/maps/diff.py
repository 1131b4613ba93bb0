"""What the change from one DERP map to another means for clients."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields
from typing import Final

from pyderp.defaults import HTTPS_PORT, STUN_PORT
from pyderp.maps.derpmap import DERPMap
from pyderp.maps.lint import families, node_path, region_path
from pyderp.maps.region import NODE_NAMES, PIN_PREFIX, DERPNode, DERPRegion
from pyderp.text import counted

__all__ = ["Change", "diff"]

_FAMILIES: Final = ("IPv4", "IPv6")
_RECONNECT: Final = "clients close their connections to it, measure it again and reconnect"
_ATTRIBUTES: Final = dict(
    zip(NODE_NAMES, (f.name for f in fields(DERPNode) if f.name != "unknown"), strict=True)
)
"""Go's name of a node's member → attribute."""


@dataclass(frozen=True, kw_only=True)
class Change:
    """One difference between two maps."""

    path: str
    """Where the member is: in the new map, or in the old one if it was removed."""
    text: str
    """What has changed, and what clients do because of it."""


def diff(old: DERPMap, new: DERPMap) -> list[Change]:
    """Return all changes in the order of region ids; an empty list: the maps are the same.

    Unknown members are compared, too. The order of regions in the map makes no difference.
    """
    if new.keep_regions and not old.keep_regions:
        text = "the new map has no Regions: clients keep the regions of the old one"
        return [Change(path="Regions", text=text), *_of_home(old, new)]
    found: list[Change] = []
    for number in sorted(old.regions.keys() | new.regions.keys()):
        before, after = old.regions.get(number), new.regions.get(number)
        if before is None and after is not None:
            found.append(_added(number, after))
        elif after is None and before is not None:
            found.append(_gone(number, before, new))
        elif before is not None and after is not None:
            found += _of_region(number, before, after)
    return [*found, *_of_defaults(old, new), *_of_home(old, new), *_of_unknown(old, new)]


def _label(number: int, region: DERPRegion) -> str:
    return f"region {number}" + (f" ({region.region_code})" if region.region_code else "")


def _added(number: int, region: DERPRegion) -> Change:
    text = f"{_label(number, region)} is new, with {counted(len(region.nodes), 'node')}: "
    if region.no_measure_no_home:
        text += "clients use it only to reach peers whose home it is"
    elif not any(_relays(region)):
        text += "clients cannot connect to it, as no node is a relay"
    else:
        text += "clients measure it, and those that are nearest to it choose it as home"
    return Change(path=region_path(number), text=text)


def _gone(number: int, region: DERPRegion, new: DERPMap) -> Change:
    text = f"{_label(number, region)} is gone: clients whose home it is choose another"
    if not new.regions:
        text = f"{_label(number, region)} is gone, and no other is left: clients have no relay"
    elif region.no_measure_no_home:
        text = f"{_label(number, region)} is gone: peers that have it as home cannot be reached"
    return Change(path=region_path(number), text=text)


def _relays(region: DERPRegion) -> list[DERPNode]:
    return [node for node in region.nodes if not node.stun_only]


def _of_region(number: int, old: DERPRegion, new: DERPRegion) -> Iterator[Change]:
    path, label = region_path(number), _label(number, new)
    if old != new:
        yield Change(path=path, text=f"{label} has changed: {_RECONNECT}")
    yield from _reach(path, label, old, new)
    yield from _order(path, label, old, new)
    yield from _nodes(number, label, old, new)
    yield from _flags(path, label, old, new)
    if dict(old.unknown) != dict(new.unknown):
        yield Change(path=path, text=f"{label}: unknown members have changed")


def _reach(path: str, label: str, old: DERPRegion, new: DERPRegion) -> Iterator[Change]:
    """Yield the relays, address families and STUN that a whole region gained or lost."""
    nodes = f"{path}.Nodes"
    if _relays(old) and not _relays(new):
        yield Change(
            path=nodes,
            text=f"{label} loses its last relay: clients cannot connect to it any more, and those "
            "whose home it was lose their peers until they choose another",
        )
    elif _relays(new) and not _relays(old):
        yield Change(path=nodes, text=f"{label} has a relay now: clients can connect to it")
    for at, family in enumerate(_FAMILIES):
        before = [node for node in _relays(old) if families(node)[at]]
        after = [node for node in _relays(new) if families(node)[at]]
        other = _FAMILIES[1 - at]
        if before and not after and _relays(new):
            which = f"only {family} node" if len(before) == 1 else f"{family} nodes"
            yield Change(
                path=nodes,
                text=f"{label} loses its {which}: clients with {family} alone cannot reach it, "
                f"others use {other}",
            )
        elif after and not before and _relays(old):
            yield Change(path=nodes, text=f"{label} can be reached by {family} now")
    before_stun, after_stun = (
        any(node.stun_port >= 0 for node in region.nodes) for region in (old, new)
    )
    if before_stun and not after_stun:
        yield Change(
            path=nodes,
            text=f"{label} loses STUN: clients measure it by HTTPS only, if at all, and rarely "
            "choose it as home",
        )
    elif after_stun and not before_stun:
        yield Change(path=nodes, text=f"{label} answers STUN now: clients measure it by UDP")


def _order(path: str, label: str, old: DERPRegion, new: DERPRegion) -> Iterator[Change]:
    before, after = ([node.name for node in _relays(region)] for region in (old, new))
    if before and after and before[0] != after[0]:
        yield Change(
            path=f"{path}.Nodes[{[n.name for n in new.nodes].index(after[0])}]",
            text=f"{label}: clients connect to {after[0]!r} first, and no longer to {before[0]!r}",
        )
    elif before != after and sorted(before) == sorted(after):
        yield Change(
            path=f"{path}.Nodes",
            text=f"{label}: clients now try its nodes in the order {', '.join(after)}",
        )


def _nodes(number: int, label: str, old: DERPRegion, new: DERPRegion) -> Iterator[Change]:
    before = {node.name: (at, node) for at, node in enumerate(old.nodes)}
    after = {node.name: (at, node) for at, node in enumerate(new.nodes)}
    for name, (at, node) in before.items():
        if name not in after:
            yield Change(
                path=node_path(number, at),
                text=f"{label} loses the node {name!r} ({node.host_name}): clients on it move to "
                "another",
            )
    for name, (at, node) in after.items():
        if name not in before:
            what = "for STUN only" if node.stun_only else f"({node.host_name})"
            yield Change(path=node_path(number, at), text=f"{label} has a new node {name!r} {what}")
        else:
            yield from _members(node_path(number, at), f"{label}, {name}", before[name][1], node)


def _members(path: str, label: str, old: DERPNode, new: DERPNode) -> Iterator[Change]:
    for name, attribute in _ATTRIBUTES.items():
        before, after = getattr(old, attribute), getattr(new, attribute)
        if before != after:
            yield Change(
                path=f"{path}.{name}",
                text=f"{label}: {name} {_shown(before)} becomes {_shown(after)}"
                f"{_meaning(name, old, new)}",
            )
    if dict(old.unknown) != dict(new.unknown):
        yield Change(path=path, text=f"{label}: unknown members have changed")


def _shown(value: object) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        return repr(value) if value else "(none)"
    return str(value) if value else "(default)"


def _meaning(name: str, old: DERPNode, new: DERPNode) -> str:
    """Return what the change of one member means, as the end of a sentence; may be empty."""
    if name == "CertName":
        if old.cert_name.startswith(PIN_PREFIX) and new.cert_name.startswith(PIN_PREFIX):
            return (
                ": clients with the old map refuse the new certificate, and those with the new map "
                "the old one: change both at the same time"
            )
        if new.cert_name.startswith(PIN_PREFIX):
            return ": clients accept only the pinned certificate"
        wanted = new.cert_name or new.host_name
        return f": the certificate must be for {wanted!r}, from an authority that clients trust"
    if (name == "DERPPort" and old.derp_port_or(HTTPS_PORT) == new.derp_port_or(HTTPS_PORT)) or (
        name == "STUNPort" and (old.stun_port or STUN_PORT) == (new.stun_port or STUN_PORT)
    ):
        return ": the same port"
    if name == "STUNPort" and (old.stun_port < 0) != (new.stun_port < 0):
        return ": it answers no STUN any more" if new.stun_port < 0 else ": it answers STUN now"
    if name == "InsecureForTests" and new.insecure_for_tests:
        return ": clients do not verify its certificate"
    if name == "STUNOnly":
        return ": clients do not connect to it" if new.stun_only else ": clients connect to it, too"
    if name in _FAMILIES:
        at = _FAMILIES.index(name)
        had, has = families(old)[at], families(new)[at]
        if had != has:
            return f": clients {'now reach' if has else 'no longer reach'} it by {name}"
    return ""


def _flags(path: str, label: str, old: DERPRegion, new: DERPRegion) -> Iterator[Change]:
    if old.no_measure_no_home != new.no_measure_no_home:
        text = "is no longer measured, and cannot be home"
        if old.no_measure_no_home:
            text = "may be home again"
        yield Change(path=f"{path}.NoMeasureNoHome", text=f"{label} {text}")
    if old.avoid != new.avoid:
        text = "is no longer avoided" if old.avoid else "is avoided: clients measure it less often"
        yield Change(path=f"{path}.Avoid", text=f"{label} {text}")
    for name, before, after in (
        ("RegionID", old.region_id, new.region_id),
        ("RegionCode", old.region_code, new.region_code),
        ("RegionName", old.region_name, new.region_name),
        ("Latitude", old.latitude, new.latitude),
        ("Longitude", old.longitude, new.longitude),
    ):
        if before != after:
            text = f"{label}: {name} {_shown(before)} becomes {_shown(after)}"
            yield Change(path=f"{path}.{name}", text=text)


def _of_defaults(old: DERPMap, new: DERPMap) -> Iterator[Change]:
    if old.omit_default_regions != new.omit_default_regions:
        text = "Tailscale's own regions are added to those of this map again"
        if new.omit_default_regions:
            text = "Tailscale's own regions are left out: clients have only those of this map"
        yield Change(path="omitDefaultRegions", text=text)


def _of_home(old: DERPMap, new: DERPMap) -> Iterator[Change]:
    before, after = _scores(old), _scores(new)
    if after is None:
        return  # A map without scores is not a change: clients keep those they have.
    for number in sorted({*(before or {}), *after}):
        was, now = (before or {}).get(number, 1.0), after.get(number, 1.0)
        if was != now:
            text = f"region {number}: clients multiply its latency by {now:g} instead of {was:g}"
            yield Change(path=f'HomeParams.RegionScore["{number}"]', text=text)


def _scores(derp_map: DERPMap) -> Mapping[int, float] | None:
    return None if derp_map.home_params is None else derp_map.home_params.region_score


def _of_unknown(old: DERPMap, new: DERPMap) -> Iterator[Change]:
    before, after = (
        (dict(m.unknown), dict(m.home_params.unknown) if m.home_params is not None else {})
        for m in (old, new)
    )
    if before != after:
        yield Change(path="", text="unknown members of the map have changed")
