"""Captive portals: networks that answer HTTP requests themselves until the user has logged in.

A relay answers `/generate_204` on port 80 with 204 and repeats a challenge. Any other answer is
taken for that of a captive portal (`net/captivedetection`). Sans-IO.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from pyderp.addresses import ip_literal
from pyderp.maps.derpmap import DERPMap
from pyderp.wire.httpreply import HttpReply

__all__ = ["Endpoint", "captive_endpoints", "is_captive"]

MAX_ENDPOINTS: Final = 5
"""How many relays are asked at the same time. One answer of a captive portal is enough."""
_CHALLENGE: Final = "X-Tailscale-Challenge"
_RESPONSE: Final = "x-tailscale-response"
_NO_CONTENT: Final = 204


@dataclass(frozen=True, slots=True)
class Endpoint:
    """Port 80 of a relay."""

    address: str
    """IPv4 address; also the host of the URL."""

    @property
    def challenge(self) -> str:
        """The text that a relay repeats in its answer."""
        return f"ts_{self.address}"

    def target(self, seconds: int) -> str:
        """Return path and query of the request.

        Args:
            seconds: the time since 1970, so that caches do not answer.
        """
        return f"/generate_204?t={seconds}"

    @property
    def headers(self) -> list[tuple[str, str]]:
        """The headers of the request besides `Host`."""
        return [
            ("Cache-Control", "no-cache, no-store, must-revalidate, no-transform, max-age=0"),
            ("Connection", "close"),
            (_CHALLENGE, self.challenge),
        ]


def captive_endpoints(derp_map: DERPMap, home: int) -> tuple[Endpoint, ...]:
    """Return the relays to ask, those of the home region first; empty if no node has CanPort80.

    Go also asks two hosts of Tailscale. pyderp does not: the map may be one of other relays only.

    Args:
        home: region id; 0: none.
    """
    regions = [
        region
        for region in derp_map.regions.values()
        if not region.avoid and not region.no_measure_no_home
    ]
    regions.sort(key=lambda region: region.region_id != home)
    addresses = dict.fromkeys(
        node.ipv4
        for region in regions
        for node in region.nodes
        if node.can_port_80 and _is_ipv4(node.ipv4)
    )
    return tuple(Endpoint(address) for address in list(addresses)[:MAX_ENDPOINTS])


def _is_ipv4(text: str) -> bool:
    literal = ip_literal(text)
    return literal is not None and literal.version == 4


def is_captive(endpoint: Endpoint, reply: HttpReply) -> bool:
    """Return whether an answer is not that of a relay."""
    expected = f"response {endpoint.challenge}"
    return reply.status != _NO_CONTENT or reply.header(_RESPONSE) != expected
