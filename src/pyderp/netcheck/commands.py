"""What a run asks of its shell, and what it may use. Sans-IO."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

from pyderp.maps.region import DERPRegion
from pyderp.netcheck.captive import Endpoint
from pyderp.netcheck.plan import Probe

__all__ = [
    "CheckCaptive",
    "Command",
    "MeasureHTTPS",
    "MeasureICMP",
    "RunOptions",
    "SendProbe",
    "StopICMP",
]


@dataclass(frozen=True, slots=True)
class SendProbe:
    """Look up the probe's node, send a request; report `on_sent`, and `on_answer` if it comes."""

    probe: Probe


@dataclass(frozen=True, slots=True)
class MeasureHTTPS:
    """Time a request to the region's relay; report `on_https`, once."""

    region: DERPRegion


@dataclass(frozen=True, slots=True)
class MeasureICMP:
    """Time an ICMP echo to the region's first node; report `on_icmp`, once."""

    region: DERPRegion


@dataclass(frozen=True, slots=True)
class StopICMP:
    """Their time is up: what has no answer gets none."""


@dataclass(frozen=True, slots=True)
class CheckCaptive:
    """Ask the endpoints, see `captive`; report `on_captive`, once."""

    endpoints: tuple[Endpoint, ...]


Command: TypeAlias = SendProbe | MeasureHTTPS | MeasureICMP | StopICMP | CheckCaptive


@dataclass(frozen=True, kw_only=True)
class RunOptions:
    """What a run may use, and what is known of this host."""

    have_v4: bool = True
    """This host has an IPv4 address beyond loopback and link-local."""
    have_v6: bool = True
    os_has_ipv6: bool = True
    have_interface: bool = True
    """An interface is up that may lead to the Internet; without one no captive portal is."""
    only_stun: bool = False
    """No HTTPS, no ICMP, no captive portal."""
    only_tcp_443: bool = False
    """No STUN and no ICMP."""
    all_regions: bool = False
    """Measure more than the three fastest regions, as `verbose` does."""
    verbose: bool = False
    """Measure more regions, and always finish the check for a captive portal."""
