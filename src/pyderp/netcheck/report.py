"""The result of a run (`net/netcheck.Report`), and its JSON with Go's names.

Latencies are nanoseconds and integers as in Go. Sans-IO.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from enum import Enum
from typing import Final, TypeVar

__all__ = ["RelayResult", "Report", "Way", "rfc3339"]

V = TypeVar("V")

_BILLION: Final = 1_000_000_000


class Way(Enum):
    """The protocol that a region's latency was measured with."""

    STUN = "STUN"
    HTTPS = "HTTPS"
    ICMP = "ICMP"


@dataclass(frozen=True)
class RelayResult:
    """Whether a node forwarded a packet from one client to another."""

    node: str
    """The name of the node in the map."""
    relays: bool
    latency: int = 0
    """Nanoseconds from one client through the relay to the other; 0 if no packet arrived."""
    error: str = ""
    """Why no packet arrived; empty: it did."""


@dataclass(kw_only=True)
class Report:
    """The result of one run. The attributes are in the order of Go's JSON.

    In attributes that may be true or false, `None` means: not checked.
    """

    now: int = 0
    """When the run ended, nanoseconds since 1970."""
    udp: bool = False
    """A STUN server answered."""
    ipv6: bool = False
    """A round trip by IPv6 worked: STUN, or the connection of the HTTPS measurement."""
    ipv4: bool = False
    """A round trip by IPv4 worked: STUN, HTTPS or an ICMP echo."""
    ipv6_can_send: bool = False
    """The kernel accepted a request by IPv6, or one was answered."""
    ipv4_can_send: bool = False
    os_has_ipv6: bool = False
    """This process could bind UDP to `::1`."""
    icmpv4: bool = False
    """An ICMP echo was answered; a run sends them only if UDP is blocked."""
    mapping_varies_by_dest_ip: bool | None = None
    """Two servers saw different source addresses of one socket: a hard NAT, which makes direct
    paths between peers unlikely."""
    preferred_derp: int = 0
    """Region id of the home; 0: unknown."""
    region_latency: dict[int, int] = field(default_factory=dict)
    """Region id → least latency of this run, by any protocol."""
    region_v4_latency: dict[int, int] = field(default_factory=dict)
    region_v6_latency: dict[int, int] = field(default_factory=dict)
    global_v4_counters: dict[str, int] = field(default_factory=dict)
    """Mapped address `ip:port` → how many STUN answers had it."""
    global_v6_counters: dict[str, int] = field(default_factory=dict)
    global_v4: str = ""
    """The mapped address of the first answer by IPv4."""
    global_v6: str = ""
    """The mapped address of the latest answer by IPv6."""
    captive_portal: bool | None = None
    """A captive portal answered in place of a relay."""

    # These are not in Go's report.
    ways: dict[int, set[Way]] = field(default_factory=dict)
    """Region id → the protocols that its relays answered."""
    relayed: dict[int, list[RelayResult]] | None = None
    """Region id → for each node whether it forwards packets; `None`: not checked."""
    notes: list[str] = field(default_factory=list)
    """What could not be checked, and why; a sentence each."""

    def to_json(self, *, indent: bool = False) -> str:
        """Return the report as Go's JSON: its names, in its order.

        Members that Go does not have follow at the end, if they are set: `RegionRelays` and
        `Notes`.
        """
        pretty = "\t" if indent else None
        separators = None if indent else (",", ":")
        return json.dumps(self._members(), indent=pretty, separators=separators)

    def _members(self) -> dict[str, object]:
        members: dict[str, object] = {
            "Now": rfc3339(self.now),
            "UDP": self.udp,
            "IPv6": self.ipv6,
            "IPv4": self.ipv4,
            "IPv6CanSend": self.ipv6_can_send,
            "IPv4CanSend": self.ipv4_can_send,
            "OSHasIPv6": self.os_has_ipv6,
            "ICMPv4": self.icmpv4,
            "MappingVariesByDestIP": self.mapping_varies_by_dest_ip,
            # pyderp does not check port mapping; Go, too, writes null for "not checked".
            "UPnP": None,
            "PMP": None,
            "PCP": None,
            "PreferredDERP": self.preferred_derp,
            "RegionLatency": _by_text(self.region_latency),
            "RegionV4Latency": _by_text(self.region_v4_latency),
            "RegionV6Latency": _by_text(self.region_v6_latency),
            "GlobalV4Counters": dict(sorted(self.global_v4_counters.items())) or None,
            "GlobalV6Counters": dict(sorted(self.global_v6_counters.items())) or None,
            "GlobalV4": self.global_v4,
            "GlobalV6": self.global_v6,
            "CaptivePortal": self.captive_portal,
        }
        if self.relayed is not None:
            members["RegionRelays"] = {
                region: [_relay_members(result) for result in results]
                for region, results in _by_text(self.relayed).items()
            }
        if self.notes:
            members["Notes"] = self.notes
        return members


def _relay_members(result: RelayResult) -> dict[str, object]:
    members: dict[str, object] = {"Node": result.node, "Relays": result.relays}
    if result.relays:
        members["Latency"] = result.latency
    else:
        members["Error"] = result.error
    return members


def _by_text(values: Mapping[int, V]) -> dict[str, V]:
    """Return a map with its keys sorted as text, as Go's encoder sorts them."""
    return dict(sorted((str(region), value) for region, value in values.items()))


def rfc3339(nanoseconds: int) -> str:
    """Return a time in UTC as Go's JSON has it: without zeros at the end of the fraction."""
    seconds, rest = divmod(nanoseconds, _BILLION)
    text = datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%S")
    fraction = f"{rest:09}".rstrip("0")
    return f"{text}.{fraction}Z" if fraction else f"{text}Z"
