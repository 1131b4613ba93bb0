"""A whole DERP map (`tailcfg.DERPMap`): read, write, merge and check it; the map of one relay."""

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
"""Tailscale reserves the region ids 900 to 999 for relays that users run themselves."""
_KNOWN: Final = folded("HomeParams", "Regions", "omitDefaultRegions")
_KNOWN_OF_HOME: Final = folded("RegionScore")


@dataclass(frozen=True, kw_only=True)
class HomeParams:
    """How a client chooses its home (`tailcfg.DERPHomeParams`)."""

    region_score: Mapping[int, float] | None = None
    """Region id → factor on its latency: below 1 favours the region, above 1 penalises it. Regions
    without a score have 1; 0 and below are ignored. `None`: an update keeps the earlier scores;
    empty: it resets all of them."""

    unknown: Mapping[str, JSONValue] = field(default_factory=dict, compare=False)
    """Members that pyderp does not know, as they were read; `to_json` writes them again."""


@dataclass(frozen=True)
class MapProblems:
    """What is wrong with a map, a sentence each."""

    errors: tuple[str, ...]
    """Clients cannot use what the sentence names."""

    warnings: tuple[str, ...]
    """Clients can use it, but probably not as it is meant."""


@dataclass(frozen=True, kw_only=True)
class DERPMap:
    """All regions (`tailcfg.DERPMap`)."""

    regions: Mapping[int, DERPRegion] = field(default_factory=dict)
    """Region id → region. Ids may have gaps."""

    keep_regions: bool = False
    """The map is an update without `Regions` (missing or null): `merge` keeps the earlier
    regions. `regions` is then empty."""

    home_params: HomeParams | None = None
    """How a client chooses its home. `None`: an update keeps the earlier parameters."""

    omit_default_regions: bool = False
    """The control server does not add Tailscale's regions. Clients ignore this."""

    unknown: Mapping[str, JSONValue] = field(default_factory=dict, compare=False)
    """Members that pyderp does not know, as they were read; `to_json` writes them again."""

    @classmethod
    def from_json(cls, source: str | bytes | Mapping[str, object] | None) -> DERPMap:
        """Read a map as Go does: names in any case, a null member as if it were missing.

        Regions and nodes that are null are left out, and unknown members are kept. The values
        themselves are not checked: see `check`.

        Args:
            source: JSON text, or objects that were read from it.

        Raises:
            InvalidMap: the source is not JSON; or it is something else than a map, such as a policy
                file or one region, which the error names; or a member has a wrong type or a region
                key is not an integer, with its path, such as `Regions["900"].Nodes[0].DERPPort`.
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
        """Return the JSON that Go's encoder writes: its member order, no zeros, ids sorted as text.

        Three things differ from Go: a region without nodes has `[]`, also where Go writes null;
        empty scores are written, since a missing member would mean "keep the earlier scores"; and
        unknown members, which Go drops, follow the others.

        Args:
            pretty: write one member per line, indented with tabs.

        Raises:
            InvalidMap: a number is not finite.
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
        """Return the map that results when this one updates `previous`, as clients merge it.

        Members that the update does not have keep their earlier values.
        """
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
        """Return a region by its id, the text of its id, or its code; `None`: there is none."""
        number = parse_id(id_or_code) if isinstance(id_or_code, str) else id_or_code
        if number is not None and 1 <= number <= MAX_REGION_ID:
            return self.regions.get(number)
        by_code = (r for r in self.regions.values() if r.region_code == id_or_code)
        return next(by_code, None)

    def problems(self) -> MapProblems:
        """Return what is wrong with a complete map that `from_json` accepts."""
        return MapProblems(tuple(_errors(self)), tuple(_warnings(self)))

    def check(self) -> tuple[str, ...]:
        """Raise an error if the map has errors, else return the warnings.

        Raises:
            InvalidMap: the map has errors; the error lists them all.
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
            yield f"region {key}: its RegionID is {region.region_id}, and not {key}"
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
        yield "only one region: if it fails, clients have no other"
    for key, region in derp_map.regions.items():
        if region.avoid:
            yield f"region {key}: Avoid is deprecated: write NoMeasureNoHome instead"
        for node in region.nodes:
            if has_no_family(node):
                yield f"region {key}, node {node.name!r}: both IPv4 and IPv6 are disabled"


def own_node(host: str, *, cert_name: str = "", derp_port: int, stun_port: int | None) -> DERPNode:
    """Return the node that describes a relay, named as `derper` names it in its log.

    Args:
        host: name or IP address that clients connect to.
        cert_name: the pin (`sha256-raw:…`), if the certificate is self-signed.
        derp_port: TCP port that clients connect to.
        stun_port: UDP port of STUN; `None`: the relay does not answer STUN.
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
    """Return a map of one region with one relay.

    Args:
        node: as `own_node` returns it. If its host is an IP address, the map also has it as IPv4
            or IPv6, so that clients do not look it up.
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
