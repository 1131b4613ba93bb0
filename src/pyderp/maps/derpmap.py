"""A whole DERP map (`tailcfg.DERPMap`): read, written, updated, checked; and a relay's own."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Final

from pyderp.addresses import bare_name, parse_ip
from pyderp.defaults import HTTPS_PORT, STUN_PORT
from pyderp.errors import InvalidMap
from pyderp.maps.mapjson import JSONValue, Reader, dump, folded, parse_id
from pyderp.maps.notmap import NO_REGIONS, read_document, refuse_other
from pyderp.maps.region import (
    MAX_REGION_ID,
    DERPNode,
    DERPRegion,
    has_no_family,
    node_errors,
    read_region,
    region_json,
)

__all__ = ["DERPMap", "HomeParams", "MapProblems", "own_map", "own_node"]

_OWN_REGION: Final = 900
"""The first of those that Tailscale keeps free for relays of one's own."""
_KNOWN: Final = folded("HomeParams", "Regions", "omitDefaultRegions")
_KNOWN_OF_HOME: Final = folded("RegionScore")


@dataclass(frozen=True, kw_only=True)
class HomeParams:
    """How a home is chosen (`tailcfg.DERPHomeParams`)."""

    region_score: Mapping[int, float] | None = None
    """Region id → factor on its latency: below 1 favours, above 1 penalises; none is 1; 0 and
    below are ignored. `None`: in an update, keep those of before; empty: reset all."""

    unknown: Mapping[str, JSONValue] = field(default_factory=dict, compare=False)
    """Members that are unknown here, as they were read; they are written again."""


@dataclass(frozen=True)
class MapProblems:
    """What is wrong with a map, a sentence each."""

    errors: tuple[str, ...]
    """It cannot work as it is meant."""

    warnings: tuple[str, ...]
    """It works, but probably not as it is meant."""


@dataclass(frozen=True, kw_only=True)
class DERPMap:
    """All regions (`tailcfg.DERPMap`)."""

    regions: Mapping[int, DERPRegion] = field(default_factory=dict)
    """Region id → region. Ids may have gaps."""

    keep_regions: bool = False
    """An update that says nothing of regions (`Regions` is missing or null): `merge` takes
    those of before. `regions` is then empty."""

    home_params: HomeParams | None = None
    """How a home is chosen. `None`: in an update, as before."""

    omit_default_regions: bool = False
    """The regions of Tailscale are not added. Only a control server looks at this."""

    unknown: Mapping[str, JSONValue] = field(default_factory=dict, compare=False)
    """Members that are unknown here, as they were read; they are written again."""

    @classmethod
    def from_json(cls, source: str | bytes | Mapping[str, object] | None) -> DERPMap:
        """Read a map as Go does: names in any case, null is nothing; unknown members are kept.

        Regions and nodes that are null are left out. What the values say is not checked:
        see `check`.

        Args:
            source: JSON text, or objects that were read from it.

        Raises:
            InvalidMap: not JSON, or of something else than a map, such as a policy file or one
                region: the text says of what. Or a member of a wrong type, a region key that is
                not an integer; the text says where, as `Regions["900"].Nodes[0].DERPPort`.
        """
        value: object = source
        if isinstance(source, (str, bytes)):
            value = read_document(source)
        else:
            refuse_other(source)
        reader = Reader({} if value is None else value)
        return cls(
            regions={
                number: read_region(Reader(region, path))
                for number, region, path in reader.by_id("Regions")
            },
            keep_regions=not reader.has("Regions"),
            home_params=_home(reader.child("HomeParams")) if reader.has("HomeParams") else None,
            omit_default_regions=reader.flag("omitDefaultRegions"),
            unknown=reader.rest(_KNOWN),
        )

    def to_json(self, *, pretty: bool = False) -> str:
        """The bytes of Go's encoder: its order of members, zeros left out, ids sorted as texts.

        Three things cannot be the same: no nodes are `[]`, also where Go had null; scores that
        are empty are written, since leaving them out would mean "as before"; and members that are
        unknown, which Go drops, follow the others.

        Args:
            pretty: a line a member, indented with tabs.

        Raises:
            InvalidMap: a number that is not finite.
        """
        document: dict[str, JSONValue] = {}
        if self.home_params is not None:
            scores = self.home_params.region_score
            home: dict[str, JSONValue] = {} if scores is None else {"RegionScore": _by_text(scores)}
            document["HomeParams"] = home | dict(self.home_params.unknown)
        regions = _by_text({key: region_json(region) for key, region in self.regions.items()})
        document["Regions"] = None if self.keep_regions else regions
        if self.omit_default_regions:
            document["omitDefaultRegions"] = True
        return dump(document | dict(self.unknown), pretty=pretty)

    def merge(self, previous: DERPMap) -> DERPMap:
        """The map after this update of `previous`; what the update does not say stays."""
        merged = self
        if self.keep_regions:
            merged = dataclasses.replace(
                merged,
                regions=previous.regions,
                keep_regions=previous.keep_regions,
                omit_default_regions=previous.omit_default_regions,
            )
        home = self.home_params
        if home is None or (home.region_score is None and previous.home_params is not None):
            merged = dataclasses.replace(merged, home_params=previous.home_params)
        return merged

    def region(self, id_or_code: int | str) -> DERPRegion | None:
        """A region by its id, the text of its id, or its code."""
        number = parse_id(id_or_code) if isinstance(id_or_code, str) else id_or_code
        if number is not None and 1 <= number <= MAX_REGION_ID:
            return self.regions.get(number)
        by_code = (r for r in self.regions.values() if r.region_code == id_or_code)
        return next(by_code, None)

    def problems(self) -> MapProblems:
        """What is wrong in a complete map, beyond what Go's reader refuses."""
        return MapProblems(tuple(_errors(self)), tuple(_warnings(self)))

    def check(self) -> tuple[str, ...]:
        """Refuse a map with errors; returns the warnings.

        Raises:
            InvalidMap: the text has all errors.
        """
        problems = self.problems()
        if problems.errors:
            raise InvalidMap("; ".join(problems.errors))
        return problems.warnings


def _by_text(by_id: Mapping[int, JSONValue]) -> dict[str, JSONValue]:
    return dict(sorted((str(number), value) for number, value in by_id.items()))


def _home(reader: Reader) -> HomeParams:
    scores = reader.numbers_by_id("RegionScore")
    return HomeParams(
        region_score=scores if reader.has("RegionScore") else None,
        unknown=reader.rest(_KNOWN_OF_HOME),
    )


def _errors(derp_map: DERPMap) -> Iterator[str]:
    if derp_map.keep_regions:
        yield f"{NO_REGIONS}: only an update of a map may lack them"
    names: set[str] = set()
    for key, region in derp_map.regions.items():
        if not 1 <= key <= MAX_REGION_ID:
            yield f"region {key}: ids are from 1 to {MAX_REGION_ID}"
        if region.region_id != key:
            yield f"region {key}: its RegionID is {region.region_id}"
        if not region.nodes:
            yield f"region {key}: no nodes"
        for node in region.nodes:
            where = f"region {key}, node {node.name!r}"
            if node.name in names:
                yield f"{where}: another node has the same name"
            names.add(node.name)
            yield from (f"{where}: {error}" for error in node_errors(node, key))


def _warnings(derp_map: DERPMap) -> Iterator[str]:
    if len(derp_map.regions) == 1:
        yield "only one region: when it fails there is no other"
    for key, region in derp_map.regions.items():
        if region.avoid:
            yield f"region {key}: Avoid is deprecated, NoMeasureNoHome says it better"
        for node in region.nodes:
            if has_no_family(node):
                yield f"region {key}, node {node.name!r}: both IPv4 and IPv6 are disabled"


def own_node(host: str, *, cert_name: str = "", derp_port: int, stun_port: int | None) -> DERPNode:
    """The node of a relay, named as `derper` names it in its log.

    Args:
        host: name or IP address that clients connect to.
        cert_name: the pin, if the certificate is self-signed.
        derp_port: TCP port that clients connect to.
        stun_port: UDP port; `None`: clients get no answer to STUN.
    """
    address = parse_ip(host)
    if stun_port is None:
        stun_port = -1
    return DERPNode(
        name="custom",
        region_id=_OWN_REGION,
        host_name=bare_name(host) if address is None else str(address),
        cert_name=cert_name,
        stun_port=0 if stun_port == STUN_PORT else stun_port,
        derp_port=0 if derp_port == HTTPS_PORT else derp_port,
    )


def own_map(node: DERPNode) -> DERPMap:
    """A map of one region with one relay.

    Args:
        node: as `own_node` makes it. An IP address stands in the map as one, so that no client
            looks it up.
    """
    host = node.host_name
    address = parse_ip(host)
    named = dataclasses.replace(
        node,
        name=f"{_OWN_REGION}a",
        ipv4=host if address is not None and address.version == 4 else "",
        ipv6=host if address is not None and address.version == 6 else "",
    )
    region = DERPRegion(
        region_id=_OWN_REGION,
        region_code="relay" if address is not None else host.partition(".")[0],
        region_name=host,
        nodes=(named,),
    )
    return DERPMap(regions={_OWN_REGION: region})
