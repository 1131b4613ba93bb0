"""The node and the region of a relay in the DERP map that its operator hands out."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Final

from pyderp.addresses import parse_ip
from pyderp.defaults import HTTPS_PORT, STUN_PORT
from pyderp.maps.derpmap import DERPMap
from pyderp.maps.region import DERPNode, DERPRegion, node_json, region_json

__all__ = ["headscale_yaml", "own_map", "own_node"]

_REGION: Final = 900
"""The first of those that Tailscale keeps free for relays of one's own."""


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
        region_id=_REGION,
        host_name=host if address is None else str(address),
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
    named = replace(
        node,
        name=f"{_REGION}a",
        ipv4=host if address is not None and address.version == 4 else "",
        ipv6=host if address is not None and address.version == 6 else "",
    )
    region = DERPRegion(
        region_id=_REGION,
        region_code="relay" if address is not None else host.partition(".")[0],
        region_name=host,
        nodes=(named,),
    )
    return DERPMap(regions={_REGION: region})


def headscale_yaml(derp_map: DERPMap) -> str:
    """A map as headscale reads it: Go's names in lower case, regions by id."""
    lines = ["regions:"]
    for key, region in derp_map.regions.items():
        lines.append(f"  {key}:")
        members = {name: value for name, value in region_json(region).items() if name != "Nodes"}
        # JSON's form of text is YAML, too.
        lines += [f"    {name.lower()}: {json.dumps(value)}" for name, value in members.items()]
        lines.append("    nodes:")
        for node in region.nodes:
            fields = [f"{name.lower()}: {json.dumps(v)}" for name, v in node_json(node).items()]
            lines += [f"      - {fields[0]}", *(f"        {field}" for field in fields[1:])]
    return "\n".join(lines)
