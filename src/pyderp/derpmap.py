"""DERP maps: regions, their nodes, and how each is reached (`tailcfg.DERPMap`)."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from ipaddress import AddressValueError, IPv4Address, IPv6Address
from typing import Final

from pyderp.errors import InvalidMap
from pyderp.mapjson import JSONValue, Reader, dump, parse, parse_id

__all__ = ["DERPMap", "DERPNode", "DERPRegion", "HomeParams", "MapProblems"]

MAX_REGION_ID: Final = 2**53 - 1
PIN_PREFIX: Final = "sha256-raw:"
_PIN: Final = re.compile(r"sha256-raw:[0-9a-f]{64}")


@dataclass(frozen=True, kw_only=True)
class DERPNode:
    """One relay of a region (`tailcfg.DERPNode`)."""

    name: str
    """Unique in the whole map, such as `900a`; not a host name."""

    region_id: int
    """The region that it belongs to."""

    host_name: str
    """DNS name or IP address: the name for TLS and HTTP. Several nodes may share it."""

    cert_name: str = ""
    """What the certificate must be for: empty: `host_name`; another name: that one;
    `sha256-raw:` and 64 lower-case hex digits: the SHA-256 of the certificate."""

    ipv4: str = ""
    """An IPv4 address instead of a look-up; empty: look up; else, such as `none`: no IPv4."""

    ipv6: str = ""
    """An IPv6 address instead of a look-up; empty: look up; else, such as `none`: no IPv6."""

    stun_port: int = 0
    """UDP port of STUN; 0: 3478; -1: no STUN."""

    stun_only: bool = False
    """No DERP here, only STUN."""

    derp_port: int = 0
    """TCP port of DERP; 0: 443 (without TLS, which only tests do, 3340)."""

    insecure_for_tests: bool = False
    """The certificate is not verified; `cert_name` still is."""

    stun_test_ip: str = ""
    """For tests: where STUN requests go instead."""

    can_port_80: bool = False
    """HTTP on port 80 is open, too: good for finding captive portals."""

    def derp_port_or(self, default: int) -> int:
        """The TCP port of DERP, if none is given `default`."""
        return self.derp_port or default


@dataclass(frozen=True, kw_only=True)
class DERPRegion:
    """Relays that stand together and know of each other's clients (`tailcfg.DERPRegion`)."""

    region_id: int
    """1 to 2^53-1; 900 to 999 are reserved for relays of one's own."""

    region_code: str = ""
    """A short name, such as `nyc`."""

    region_name: str = ""
    """A name for people."""

    latitude: float = 0.0
    """Degrees north; 0 with `longitude` 0: not told. For display only."""

    longitude: float = 0.0
    """Degrees east."""

    avoid: bool = False
    """Deprecated: measured less, but may still become home."""

    no_measure_no_home: bool = False
    """Never measured and never home; dialled only for a peer whose home it is."""

    nodes: tuple[DERPNode, ...] = ()
    """In the order in which this client tries them."""


@dataclass(frozen=True, kw_only=True)
class HomeParams:
    """How a home is chosen (`tailcfg.DERPHomeParams`)."""

    region_score: Mapping[int, float] | None = None
    """Region id → factor on its latency: below 1 favours, above 1 penalises; none is 1; 0 and
    below are ignored. `None`: in an update, keep those of before; empty: reset all."""


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

    @classmethod
    def from_json(cls, source: str | bytes | Mapping[str, object] | None) -> DERPMap:
        """Read a map as Go does: names in any case, unknown ones ignored, null is nothing.

        Regions and nodes that are null are left out. What the values say is not checked:
        see `check`.

        Args:
            source: JSON text, or objects that were read from it.

        Raises:
            InvalidMap: not JSON, a member of a wrong type, a region key that is not an
                integer; the text says where, as `Regions["900"].Nodes[0].DERPPort`.
        """
        value = parse(source) if isinstance(source, (str, bytes)) else source
        reader = Reader({} if value is None else value)
        return cls(
            regions={
                number: _region(Reader(region, path))
                for number, region, path in reader.by_id("Regions")
            },
            keep_regions=not reader.has("Regions"),
            home_params=_home(reader.child("HomeParams")) if reader.has("HomeParams") else None,
            omit_default_regions=reader.flag("omitDefaultRegions"),
        )

    def to_json(self, *, pretty: bool = False) -> str:
        """The bytes of Go's encoder: its order of members, zeros left out, ids sorted as texts.

        Two things cannot be the same: no nodes are `[]`, also where Go had null; and
        scores that are empty are written, since leaving them out would mean "as before".

        Args:
            pretty: a line a member, indented with tabs.

        Raises:
            InvalidMap: a number that is not finite.
        """
        document: dict[str, JSONValue] = {}
        if self.home_params is not None:
            scores = self.home_params.region_score
            document["HomeParams"] = {} if scores is None else {"RegionScore": _by_text(scores)}
        regions = _by_text({key: _region_json(region) for key, region in self.regions.items()})
        document["Regions"] = None if self.keep_regions else regions
        if self.omit_default_regions:
            document["omitDefaultRegions"] = True
        return dump(document, pretty=pretty)

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
        """Refuse a map with errors; gives the warnings.

        Raises:
            InvalidMap: the text has all errors.
        """
        problems = self.problems()
        if problems.errors:
            raise InvalidMap("; ".join(problems.errors))
        return problems.warnings


def _without_zeros(members: dict[str, JSONValue]) -> dict[str, JSONValue]:
    return {name: value for name, value in members.items() if value}


def _by_text(by_id: Mapping[int, JSONValue]) -> dict[str, JSONValue]:
    return dict(sorted((str(number), value) for number, value in by_id.items()))


def _region_json(region: DERPRegion) -> JSONValue:
    optional: dict[str, JSONValue] = {
        "Latitude": region.latitude,
        "Longitude": region.longitude,
        "Avoid": region.avoid,
        "NoMeasureNoHome": region.no_measure_no_home,
    }
    return {
        "RegionID": region.region_id,
        "RegionCode": region.region_code,
        "RegionName": region.region_name,
        **_without_zeros(optional),
        "Nodes": [_node_json(node) for node in region.nodes],
    }


def _node_json(node: DERPNode) -> JSONValue:
    optional: dict[str, JSONValue] = {
        "CertName": node.cert_name,
        "IPv4": node.ipv4,
        "IPv6": node.ipv6,
        "STUNPort": node.stun_port,
        "STUNOnly": node.stun_only,
        "DERPPort": node.derp_port,
        "InsecureForTests": node.insecure_for_tests,
        "STUNTestIP": node.stun_test_ip,
        "CanPort80": node.can_port_80,
    }
    return {
        "Name": node.name,
        "RegionID": node.region_id,
        "HostName": node.host_name,
        **_without_zeros(optional),
    }


def _home(reader: Reader) -> HomeParams:
    scores = reader.numbers_by_id("RegionScore")
    return HomeParams(region_score=scores if reader.has("RegionScore") else None)


def _region(reader: Reader) -> DERPRegion:
    return DERPRegion(
        region_id=reader.integer("RegionID"),
        region_code=reader.text("RegionCode"),
        region_name=reader.text("RegionName"),
        latitude=reader.number("Latitude"),
        longitude=reader.number("Longitude"),
        avoid=reader.flag("Avoid"),
        no_measure_no_home=reader.flag("NoMeasureNoHome"),
        nodes=tuple(_node(node) for node in reader.items("Nodes")),
    )


def _node(reader: Reader) -> DERPNode:
    return DERPNode(
        name=reader.text("Name"),
        region_id=reader.integer("RegionID"),
        host_name=reader.text("HostName"),
        cert_name=reader.text("CertName"),
        ipv4=reader.text("IPv4"),
        ipv6=reader.text("IPv6"),
        stun_port=reader.integer("STUNPort"),
        stun_only=reader.flag("STUNOnly"),
        derp_port=reader.integer("DERPPort"),
        insecure_for_tests=reader.flag("InsecureForTests"),
        stun_test_ip=reader.text("STUNTestIP"),
        can_port_80=reader.flag("CanPort80"),
    )


def _errors(derp_map: DERPMap) -> Iterator[str]:
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
            yield from (f"{where}: {error}" for error in _node_errors(node, key))


def _node_errors(node: DERPNode, key: int) -> Iterator[str]:
    if node.region_id != key:
        yield f"its RegionID is {node.region_id}"
    if not node.host_name:
        yield "no HostName"
    if not -1 <= node.stun_port <= 65535:
        yield f"STUNPort {node.stun_port} is not from -1 to 65535"
    if not 0 <= node.derp_port <= 65535:
        yield f"DERPPort {node.derp_port} is not from 0 to 65535"
    if node.cert_name.startswith(PIN_PREFIX) and _PIN.fullmatch(node.cert_name) is None:
        yield f"CertName {PIN_PREFIX} wants 64 lower-case hex digits"


def _warnings(derp_map: DERPMap) -> Iterator[str]:
    if len(derp_map.regions) == 1:
        yield "only one region: when it fails there is no other"
    for key, region in derp_map.regions.items():
        if region.avoid:
            yield f"region {key}: Avoid is deprecated, NoMeasureNoHome says it better"
        for node in region.nodes:
            if _disabled(node.ipv4, IPv4Address) and _disabled(node.ipv6, IPv6Address):
                yield f"region {key}, node {node.name!r}: both IPv4 and IPv6 are disabled"


def _disabled(address: str, family: type[IPv4Address | IPv6Address]) -> bool:
    if not address:
        return False
    try:
        family(address)
    except AddressValueError:
        return True
    return False
