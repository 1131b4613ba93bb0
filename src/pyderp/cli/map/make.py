"""`pyderp map new`: a map of one region for relays of one's own."""

from __future__ import annotations

import dataclasses
import re
import string
from typing import Annotated, Final

import typer

from pyderp.addresses import bare_name, check_host_name, ip_literal
from pyderp.cli.connect_options import value
from pyderp.cli.map.source import Target, written
from pyderp.cli.output import print_line
from pyderp.cli.parameters import whole_number
from pyderp.defaults import HTTPS_PORT, STUN_PORT
from pyderp.errors import ConfigError
from pyderp.maps.derpmap import DERPMap, own_node
from pyderp.maps.region import MAX_REGION_ID, PIN_PREFIX, DERPNode, DERPRegion

__all__ = ["NEW_EPILOG", "NEW_HELP", "new"]

NEW_HELP: Final = (
    "Make a DERP map of one region, with a node for each host. It uses no network; "
    "`pyderp map show https://HOST` asks a relay that runs."
)
NEW_EPILOG: Final = """**Examples**

`pyderp map new derp.example.com > map.json`

By IP address, with the pin that the relay logs at its start, for headscale:

`pyderp map new 203.0.113.7 --pin sha256-raw:… --to headscale`

Two relays that share a mesh key, on another port:

`pyderp map new derp1.example.com derp2.example.com --port 8443 --code fra --name Frankfurt`
"""
_PIN: Final = re.compile(r"[0-9a-f]{64}")
_LETTERS: Final = string.ascii_lowercase


def _pin(text: str | None) -> str | None:
    if text is None:
        return None
    pin = text.lower().removeprefix(PIN_PREFIX).replace(":", "")
    if not _PIN.fullmatch(pin):
        raise typer.BadParameter("want 64 hex digits, the SHA-256 of the certificate")
    return PIN_PREFIX + pin


def _address(version: int, text: str) -> str:
    literal = ip_literal(text)
    if text not in ("", "none") and (literal is None or literal.version != version):
        raise typer.BadParameter(f"{text!r} is neither an IPv{version} address nor none")
    return text


def _hosts(texts: list[str]) -> list[str]:
    for text in texts:
        try:
            check_host_name(text)
        except ConfigError as e:
            raise typer.BadParameter(
                f"{e}: give the name alone, and the port as --port"
                if ":" in text or "/" in text
                else str(e)
            ) from None
    if len({bare_name(text) for text in texts}) != len(texts):
        raise typer.BadParameter("a host is given twice")
    return texts


_Hosts = Annotated[
    list[str],
    typer.Argument(
        metavar="HOST...",
        help="Names or IP addresses of the relays, in the order in which clients try them.",
        callback=_hosts,
        show_default=False,
    ),
]
_Port = Annotated[
    int, whole_number("PORT", "TCP port that clients connect to.", "--port", least=1, most=65535)
]
_StunPort = Annotated[
    int, whole_number("PORT", "UDP port of STUN.", "--stun-port", least=1, most=65535)
]
_NoStun = Annotated[
    bool, typer.Option("--no-stun", help="The relays answer no STUN.", show_default=False)
]
_Pin = Annotated[
    str | None,
    value(
        "[sha256-raw:]HEX",
        "SHA-256 of the relay's certificate. Clients then need no authority for it.",
        callback=_pin,
    ),
]
_IPv4 = Annotated[
    str,
    value(
        "ADDRESS|none",
        "IPv4 address, instead of a look-up; none: not by IPv4.",
        callback=lambda text: _address(4, text),
    ),
]
_IPv6 = Annotated[
    str,
    value(
        "ADDRESS|none",
        "IPv6 address, instead of a look-up; none: not by IPv6.",
        callback=lambda text: _address(6, text),
    ),
]
_CanPort80 = Annotated[
    bool,
    typer.Option(
        "--can-port-80",
        help="HTTP on port 80 reaches the relays: for captive portals. Clients ask IPv4 addresses "
        "of the map only, see --ipv4.",
    ),
]
_Region = Annotated[
    int, whole_number("N", "Id of the region; 900 to 999 are free.", least=1, most=MAX_REGION_ID)
]
_Code = Annotated[
    str, value("CODE", "Short name of the region.  [default: the first label of the host]")
]
_Name = Annotated[str, value("TEXT", "Full name of the region.  [default: the first host]")]
_OmitDefaults = Annotated[
    bool,
    typer.Option("--omit-default-regions", help="Without Tailscale's own regions."),
]


def new(
    hosts: _Hosts,
    port: _Port = HTTPS_PORT,
    stun_port: _StunPort = STUN_PORT,
    no_stun: _NoStun = False,
    pin: _Pin = None,
    ipv4: _IPv4 = "",
    ipv6: _IPv6 = "",
    can_port_80: _CanPort80 = False,
    region: _Region = 900,
    code: _Code = "",
    name: _Name = "",
    omit_default_regions: _OmitDefaults = False,
    to: Target = "json",
) -> None:
    """The command; `NEW_HELP` says what it does."""
    if len(hosts) > 1 and (pin or ipv4 not in ("", "none") or ipv6 not in ("", "none")):
        raise typer.BadParameter("--pin, --ipv4 and --ipv6 are of one relay: give one HOST")
    nodes = []
    for index, host in enumerate(hosts):
        node = own_node(
            host,
            cert_name=pin or "",
            derp_port=port,
            stun_port=None if no_stun else stun_port,
        )
        nodes.append(_named(node, region, index, ipv4, ipv6, can_port_80=can_port_80))
    is_address = ip_literal(hosts[0]) is not None
    made = DERPRegion(
        region_id=region,
        region_code=code or ("relay" if is_address else hosts[0].partition(".")[0]),
        region_name=name or hosts[0],
        nodes=tuple(nodes),
    )
    derp_map = DERPMap(regions={region: made}, omit_default_regions=omit_default_regions)
    print_line(written(derp_map, to))


def _named(
    node: DERPNode, region: int, index: int, ipv4: str, ipv6: str, *, can_port_80: bool
) -> DERPNode:
    """Returns the node with a name as is usual, 900a, and the IP address that its host may be."""
    literal = ip_literal(node.host_name)
    own_4 = node.host_name if literal is not None and literal.version == 4 else ""
    own_6 = node.host_name if literal is not None and literal.version == 6 else ""
    return dataclasses.replace(
        node,
        name=f"{region}{_letters(index)}",
        region_id=region,
        ipv4=ipv4 or own_4,
        ipv6=ipv6 or own_6,
        can_port_80=can_port_80,
    )


def _letters(index: int) -> str:
    """Returns a to z, then aa to zz, and so on."""
    letters = ""
    index += 1
    while index:
        index, digit = divmod(index - 1, len(_LETTERS))
        letters = _LETTERS[digit] + letters
    return letters
