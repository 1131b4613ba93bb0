"""Regions of a DERP map and their nodes (`tailcfg.DERPRegion`, `tailcfg.DERPNode`)."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Final

from pyderp.addresses import ip_literal
from pyderp.maps.mapjson import JSONValue, Reader, folded

__all__ = [
    "MAX_REGION_ID",
    "NODE_NAMES",
    "PIN_PREFIX",
    "REGION_NAMES",
    "DERPNode",
    "DERPRegion",
    "has_no_family",
    "host_errors",
    "node_errors",
    "node_json",
    "read_region",
    "region_json",
]

MAX_REGION_ID: Final = 2**53 - 1
PIN_PREFIX: Final = "sha256-raw:"
"""The start of a `cert_name` that is a pin: the hash of a certificate, and not a name."""
_PIN: Final = re.compile(r"sha256-raw:[0-9a-f]{64}")
_LIKE_A_PIN: Final = re.compile(r"(?i)sha-?256[a-z_-]*[:=/]|(?:[0-9a-f]{2}[: ]?){31}[0-9a-f]{2}\Z")
"""Texts that are probably meant as a pin: a DNS name has no label of 64 characters and no colon."""
_NOT_IN_NAMES: Final = re.compile(r"[\x00-\x2c/:-@\[-^`{-\x7f]")
"""ASCII except letters, digits, `.`, `-` and `_`. Other characters pass: resolvers may use IDNA."""
_LONGEST_LABEL: Final = 63
"""The most characters between two dots (RFC 1035, section 2.3.4)."""


@dataclass(frozen=True, kw_only=True)
class DERPNode:
    """One relay of a region (`tailcfg.DERPNode`)."""

    name: str
    """Unique in the whole map, such as `900a`; not a host name."""

    region_id: int
    """The id of the region that has the node."""

    host_name: str
    """DNS name or IP address, also the name for TLS and HTTP. Several nodes may share it. Empty
    only in tests, with `ipv4` or `ipv6`: the TLS handshake then has no server name."""

    cert_name: str = ""
    """What the certificate must match. Empty: the name `host_name`; a name: that name;
    `sha256-raw:` and 64 lower-case hex digits: the SHA-256 of the certificate (a pin)."""

    ipv4: str = ""
    """The IPv4 address. Empty: clients look up `host_name`; no address (`none`): no IPv4."""

    ipv6: str = ""
    """The IPv6 address. Empty: clients look up `host_name`; no address (`none`): no IPv6."""

    stun_port: int = 0
    """UDP port of STUN; 0: 3478; -1: no STUN."""

    stun_only: bool = False
    """The node answers STUN only; it is not a relay."""

    derp_port: int = 0
    """TCP port of DERP; 0: 443 (without TLS, which only tests use, 3340)."""

    insecure_for_tests: bool = False
    """Clients do not verify the certificate; they still compare it with `cert_name`."""

    stun_test_ip: str = ""
    """For tests: the address that STUN requests go to instead."""

    can_port_80: bool = False
    """The node also answers HTTP on port 80; clients use that to detect captive portals."""

    unknown: Mapping[str, JSONValue] = field(default_factory=dict, compare=False)
    """Members that pyderp does not know, as they were read; they are written again."""

    def derp_port_or(self, default: int) -> int:
        """Return the TCP port of DERP, or `default` if the map has none."""
        return self.derp_port or default


@dataclass(frozen=True, kw_only=True)
class DERPRegion:
    """Relays in one place that forward packets to each other (`tailcfg.DERPRegion`)."""

    region_id: int
    """1 to 2^53-1; 900 to 999 are reserved for relays that users run themselves."""

    region_code: str = ""
    """A short name, such as `nyc`."""

    region_name: str = ""
    """A name to display."""

    latitude: float = 0.0
    """Degrees north; 0 with `longitude` 0: unknown. For display only."""

    longitude: float = 0.0
    """Degrees east."""

    avoid: bool = False
    """Deprecated: clients measure the region less often, but it may still become home."""

    no_measure_no_home: bool = False
    """Clients never measure the region and never choose it as home. They connect to it only to
    reach a peer whose home it is."""

    nodes: tuple[DERPNode, ...] = ()
    """In the order in which a client tries them."""

    unknown: Mapping[str, JSONValue] = field(default_factory=dict, compare=False)
    """Members that pyderp does not know, as they were read; they are written again."""


NODE_NAMES: Final = (
    *("Name", "RegionID", "HostName", "CertName", "IPv4", "IPv6", "STUNPort", "STUNOnly"),
    *("DERPPort", "InsecureForTests", "STUNTestIP", "CanPort80"),
)
"""Members of a node, in Go's order."""
REGION_NAMES: Final = (
    *("RegionID", "RegionCode", "RegionName", "Latitude", "Longitude", "Avoid"),
    *("NoMeasureNoHome", "Nodes"),
)
"""Members of a region, in Go's order."""
_KNOWN_OF_NODE: Final = folded(*NODE_NAMES)
_KNOWN_OF_REGION: Final = folded(*REGION_NAMES)


def read_region(reader: Reader) -> DERPRegion:
    """Read a region from its JSON.

    Raises:
        InvalidMap: a member has a wrong type.
    """
    return DERPRegion(
        region_id=reader.integer("RegionID"),
        region_code=reader.text("RegionCode"),
        region_name=reader.text("RegionName"),
        latitude=reader.number("Latitude"),
        longitude=reader.number("Longitude"),
        avoid=reader.flag("Avoid"),
        no_measure_no_home=reader.flag("NoMeasureNoHome"),
        nodes=tuple(_node(node) for node in reader.items("Nodes")),
        unknown=reader.rest(_KNOWN_OF_REGION),
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
        unknown=reader.rest(_KNOWN_OF_NODE),
    )


def region_json(region: DERPRegion) -> Mapping[str, JSONValue]:
    """Return a region as Go writes it (its member order, no zeros), then the unknown members."""
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
        "Nodes": [node_json(node) for node in region.nodes],
        **region.unknown,
    }


def node_json(node: DERPNode) -> Mapping[str, JSONValue]:
    """Return a node as Go writes it (its member order, no zeros), then the unknown members."""
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
        **node.unknown,
    }


def _without_zeros(members: dict[str, JSONValue]) -> dict[str, JSONValue]:
    return {name: value for name, value in members.items() if value}


def node_errors(node: DERPNode, region_id: int) -> Iterator[str]:
    """Yield why clients cannot use a node, a sentence each.

    Args:
        region_id: the key of the region that has the node.
    """
    if node.region_id != region_id:
        yield f"its RegionID is {node.region_id}, and not {region_id}"
    yield from host_errors(node)
    if not -1 <= node.stun_port <= 65535:
        yield f"STUNPort {node.stun_port} is not from -1 to 65535"
    if not 0 <= node.derp_port <= 65535:
        yield f"DERPPort {node.derp_port} is not from 0 to 65535"
    if _LIKE_A_PIN.match(node.cert_name) and _PIN.fullmatch(node.cert_name) is None:
        if node.cert_name.startswith(PIN_PREFIX):
            yield f"CertName {PIN_PREFIX} must have 64 lower-case hex digits after it"
        else:
            yield (
                f"clients take CertName {node.cert_name[:80]!r} for a name: a pin is {PIN_PREFIX} "
                "and 64 lower-case hex digits"
            )


def host_errors(node: DERPNode) -> Iterator[str]:
    """Yield what is wrong with a node's HostName: clients need it to connect and for TLS."""
    host = node.host_name
    if not host:
        # Go's client connects to the address, without a server name in the TLS handshake.
        addresses = (ip_literal(node.ipv4), ip_literal(node.ipv6))
        if not (node.insecure_for_tests and any(addresses)):
            yield "no HostName: only a node with InsecureForTests and IPv4 or IPv6 works without"
    elif "://" in host or "/" in host:
        yield f"HostName {host!r} is a URL: write the name alone, and the port in DERPPort"
    elif host.startswith("[") or (":" in host and ip_literal(host) is None):
        yield (
            f"HostName {host!r} has a port or brackets: write the name or address alone, and "
            "the port in DERPPort"
        )
    elif ip_literal(host) is None:
        yield from _name_errors(host)


def _name_errors(host: str) -> Iterator[str]:
    wrong = _NOT_IN_NAMES.search(host) or next((c for c in host if c.isspace()), None)
    if wrong:
        character = wrong if isinstance(wrong, str) else wrong[0]
        yield f"HostName {host!r} has {character!r}, which no host name can have"
        return
    labels = host.removesuffix(".").split(".")
    if not all(labels):
        yield f"HostName {host!r} has two dots in a row, or one at its start"
    if any(len(label) > _LONGEST_LABEL for label in labels):
        yield f"HostName {host!r} has more than {_LONGEST_LABEL} characters between two dots"


def has_no_family(node: DERPNode) -> bool:
    """Return whether both IPv4 and IPv6 are turned off, so that clients cannot reach the node."""
    return _turned_off(node.ipv4, 4) and _turned_off(node.ipv6, 6)


def _turned_off(address: str, version: int) -> bool:
    # Clients take any text that is not an address of the family as "off"; "none" is usual.
    literal = ip_literal(address)
    return bool(address) and (literal is None or literal.version != version)
