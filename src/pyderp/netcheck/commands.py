"""The commands that a run hands to its shell, and the options of a run. Sans-IO."""

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
    """Look up the probe's node and send it a request; then call `on_sent`, and later `on_answer`.

    A request that cannot be sent, or has no answer, needs no call.
    """

    probe: Probe


@dataclass(frozen=True, slots=True)
class MeasureHTTPS:
    """Measure how long a request to the region's relay takes; then call `on_https` once."""

    region: DERPRegion


@dataclass(frozen=True, slots=True)
class MeasureICMP:
    """Measure how long an ICMP echo to the region's first node takes; then call `on_icmp` once."""

    region: DERPRegion


@dataclass(frozen=True, slots=True)
class StopICMP:
    """Cancel all `MeasureICMP` commands that have not ended: their time is over."""


@dataclass(frozen=True, slots=True)
class CheckCaptive:
    """Ask the endpoints as in `captive`; then call `on_captive` once."""

    endpoints: tuple[Endpoint, ...]


Command: TypeAlias = SendProbe | MeasureHTTPS | MeasureICMP | StopICMP | CheckCaptive


@dataclass(frozen=True, kw_only=True)
class RunOptions:
    """What a run may measure, and which addresses and interfaces this host has."""

    have_v4: bool = True
    """This host has an IPv4 address that is neither loopback nor link-local."""
    have_v6: bool = True
    """This host has a global or unique local IPv6 address."""
    os_has_ipv6: bool = True
    """This process can bind UDP to `::1`."""
    have_interface: bool = True
    """An interface is up behind which there may be a captive portal."""
    only_stun: bool = False
    """Use no HTTPS and no ICMP, and do not check for a captive portal."""
    only_tcp_443: bool = False
    """Use no STUN and no ICMP."""
    all_regions: bool = False
    """Wait for up to 100 regions instead of the three fastest, as `verbose` does."""
    verbose: bool = False
    """As `all_regions`, and always finish the check for a captive portal."""
