"""What a run found (`net/netcheck.Report`): its values, and their JSON with Go's names.

Latencies are nanoseconds, integers as in Go. Sans-IO.
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
    """By what a region's latency was measured."""

    STUN = "STUN"
    HTTPS = "HTTPS"
    ICMP = "ICMP"


@dataclass(frozen=True)
class RelayResult:
    """Whether a node relayed a packet between two clients."""

    node: str
    """Its name in the map."""
    relays: bool
    latency: int = 0
    """Nanoseconds from one client through the relay to the other; 0 if it does not relay."""
    error: str = ""
    """Why it does not relay."""


@dataclass(kw_only=True)
class Report:
    """One run. Attributes stand in the order of Go's JSON.

    `None` in a value that else is true or false: not checked.
    """

    now: int = 0
    """When it was finished, nanoseconds since 1970."""
    udp: bool = False
    """A STUN server answered."""
    ipv6: bool = False
    """An IPv6 round trip worked: STUN, or the connection of the HTTPS measurement."""
    ipv4: bool = False
    """As `ipv6`; an answered ICMP echo counts, too."""
    ipv6_can_send: bool = False
    """The kernel took a request by IPv6, or an answer proved it."""
    ipv4_can_send: bool = False
    os_has_ipv6: bool = False
    """This process could bind UDP to `::1`."""
    icmpv4: bool = False
    """An ICMP echo was answered; asked only if UDP is blocked."""
    mapping_varies_by_dest_ip: bool | None = None
    """Two servers saw different addresses of one socket: the NAT is a hard one."""
    preferred_derp: int = 0
    """Region id of the home; 0: unknown."""
    region_latency: dict[int, int] = field(default_factory=dict)
    """Region id → least latency of this run, by any way."""
    region_v4_latency: dict[int, int] = field(default_factory=dict)
    region_v6_latency: dict[int, int] = field(default_factory=dict)
    global_v4_counters: dict[str, int] = field(default_factory=dict)
    """Mapped address `ip:port` → how many answers said it."""
    global_v6_counters: dict[str, int] = field(default_factory=dict)
    global_v4: str = ""
    """The mapped address of the first answer by IPv4."""
    global_v6: str = ""
    """The mapped address of the latest answer by IPv6."""
    captive_portal: bool | None = None

    # Beyond Go's report
    ways: dict[int, set[Way]] = field(default_factory=dict)
    """Region id → what its relays answered."""
    relayed: dict[int, list[RelayResult]] | None = None
    """Region id → whether each node relays; `None`: not checked."""
    notes: list[str] = field(default_factory=list)
    """What could not be checked, and why; a sentence each."""

    def global_addresses(self) -> list[str]:
        """Addresses of this host as seen from outside, `ip:port`.

        The first of each family, then others that more than one answer said.
        """
        found = dict.fromkeys(address for address in (self.global_v4, self.global_v6) if address)
        for counters in (self.global_v4_counters, self.global_v6_counters):
            found |= dict.fromkeys(address for address, count in counters.items() if count > 1)
        return list(found)

    def to_json(self, *, indent: bool = False) -> str:
        """Go's JSON of the report: its names and its order of members.

        What Go's report lacks follows at the end, if it is there: `RegionRelays` and `Notes`.
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
            # Port mapping is not asked for; null is Go's "not checked", too.
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
    """Go sorts the keys of such maps as texts."""
    return dict(sorted((str(region), value) for region, value in values.items()))


def rfc3339(nanoseconds: int) -> str:
    """A time in UTC as Go's JSON has it: zeros at the end of the fraction are left out."""
    seconds, rest = divmod(nanoseconds, _BILLION)
    text = datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%S")
    fraction = f"{rest:09}".rstrip("0")
    return f"{text}.{fraction}Z" if fraction else f"{text}Z"
