"""The DERP map of a relay, as those take it who tell clients: Tailscale, headscale, our tools."""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterator, Mapping
from typing import Any, Final

from pyderp.addresses import parse_ip
from pyderp.certs import make_certificates
from pyderp.certs.check import PUBLIC
from pyderp.cli.relayflags.certificate import is_loopback
from pyderp.cli.relayflags.plan import Plan
from pyderp.config import ManualTLS, RelayConfig, TLSSettings
from pyderp.defaults import HTTPS_PORT, STUN_PORT
from pyderp.errors import ConfigError
from pyderp.server.app.listeners import stun_host
from pyderp.server.conn.sockets import parse_address, unix_path

__all__ = ["STUN_HIDDEN", "map_command", "node_of", "public_node", "show_map", "stun_hidden"]

STUN_HIDDEN: Final = (
    "STUN answers this machine only, so the DERP map says that there is none: give --stun-host=::"
)
_REGION: Final = 900
"""The first of those that Tailscale keeps free for relays of others."""
_HEADS: Final = {
    "policy": "For the policy file of a tailnet, at its top level",
    "headscale": "For headscale: a file that derp.paths in its config.yaml names",
    "json": "For --derp-map, and other programs",
}


def node_of(plan: Plan) -> dict[str, Any]:
    """The map's node for a relay that does not run. A missing self-signed certificate is made.

    Raises:
        ConfigError: clients cannot reach it as it is, or a port is not fixed.
    """
    config = plan.config
    node: dict[str, Any] = {"HostName": plan.public_name, "DERPPort": HTTPS_PORT}
    if not plan.public_name:
        raise ConfigError(
            "clients find a relay by its name or IP address: give --hostname, also if something "
            "in front of the relay has the certificate"
        )
    if isinstance(config.tls, ManualTLS):
        certificates = make_certificates(config.tls)
        node |= certificates.map_node() or {}
    node["DERPPort"] = plan.public_port or _port(config)
    node["STUNPort"] = -1 if config.stun_port is None or stun_hidden(plan) else config.stun_port
    if 0 in (node["DERPPort"], node["STUNPort"]):
        raise ConfigError("port 0 is another one at each start; a map needs fixed ports")
    return node


def public_node(
    plan: Plan, node: Mapping[str, object] | None, stun_port: int
) -> dict[str, object] | None:
    """The map's node for a relay that runs; `None`: nobody said what clients connect to.

    Args:
        node: as the relay has it.
        stun_port: where it answers STUN; -1: nowhere.
    """
    if plan.public_port is None or not plan.public_name:
        return None if node is None else dict(node)
    public = {
        "DERPPort": (plan.public_port, HTTPS_PORT),
        "STUNPort": (-1 if stun_hidden(plan) else stun_port, STUN_PORT),
    }
    node = node or {"Name": "custom", "RegionID": _REGION, "HostName": plan.public_name}
    kept = {name: value for name, value in node.items() if name not in public}
    return kept | {name: port for name, (port, usual) in public.items() if port != usual}


def stun_hidden(plan: Plan) -> bool:
    """Whether clients cannot reach STUN, though the relay answers it.

    So it is on the loopback of a relay that a proxy stands before.
    """
    config = plan.config
    if config.stun_port is None or plan.public_port is None:
        return False
    host = parse_ip(stun_host(config))
    return host is not None and host.is_loopback


def map_command(plan: Plan, address: str, stun_port: int | None) -> str:
    """A command line for the maps of a relay that runs, as its settings are now.

    It says all that a map depends on: whoever runs it may have another environment, and not
    the right to read the settings. No secret is in it.

    Args:
        address: where the relay listens.
        stun_port: where it answers STUN.
    """
    words = [f"--hostname={plan.public_name}", f"--address={address}"]
    if plan.public_port is not None:
        words.append(f"--public-port={plan.public_port}")
    words.append("--no-stun" if stun_port is None else f"--stun-port={stun_port}")
    if stun_port is not None and plan.config.stun_host is not None:
        words.append(f"--stun-host={plan.config.stun_host}")
    if plan.config.tls is not None:
        words += _certificate_words(plan.config.tls)
    # A command line without a place for the key is refused, though here none is read.
    words.append("--dev" if plan.key_file is None else f"--key-file={plan.key_file.absolute()}")
    return shlex.join(["pyderp", "relay", *words, "--show-map=all"])


def _certificate_words(tls: TLSSettings) -> Iterator[str]:
    yield f"--certdir={tls.certdir.absolute()}"
    if isinstance(tls, ManualTLS):
        yield "--certmode=manual"
        return
    yield "--certmode=letsencrypt"
    if tls.ip_certs:
        yield "--acme-ip-certs"
    if tls.directory not in PUBLIC:
        yield f"--acme-directory={tls.directory}"


def _port(config: RelayConfig) -> int:
    # What only this machine reaches, and without TLS, has a proxy in front.
    if unix_path(config.address) is not None or (
        config.tls is None and is_loopback(config.address)
    ):
        return HTTPS_PORT
    return parse_address(config.address)[1]


def _region(node: Mapping[str, Any]) -> dict[str, Any]:
    host = str(node["HostName"])
    full: dict[str, Any] = {"Name": f"{_REGION}a", "RegionID": _REGION, "HostName": host}
    if node.get("CertName"):
        full["CertName"] = node["CertName"]
    if parse_ip(host) is not None:
        full["IPv6" if ":" in host else "IPv4"] = host
    if node.get("STUNPort", STUN_PORT) != STUN_PORT:
        full["STUNPort"] = node["STUNPort"]
    if node.get("DERPPort", HTTPS_PORT) != HTTPS_PORT:
        full["DERPPort"] = node["DERPPort"]
    code = "relay" if parse_ip(host) is not None else host.partition(".")[0]
    return {
        "RegionID": _REGION,
        "RegionCode": code,
        "RegionName": host,
        "Nodes": [full],
    }


def show_map(node: Mapping[str, Any], form: str) -> str:
    """The map with one region of one node.

    Args:
        node: `HostName`, and where they are not usual `CertName`, `DERPPort`, `STUNPort`.
        form: `policy`, `headscale`, `json` or `all`.
    """
    region = _region(node)
    document = {"Regions": {str(_REGION): region}}
    whole = json.dumps(document, indent="\t")
    texts = {
        "policy": f'"derpMap": {whole},',
        "headscale": _yaml(region),
        "json": whole,
    }
    if form != "all":
        return texts[form]
    return "\n\n".join(f"# {_HEADS[each]}:\n\n{text}" for each, text in texts.items())


def _yaml(region: Mapping[str, Any]) -> str:
    # headscale's names are Go's in lower case; text in JSON's form is YAML, too.
    (node,) = region["Nodes"]
    lines = ["regions:", f"  {_REGION}:"]
    lines += [f"    {k.lower()}: {json.dumps(v)}" for k, v in region.items() if k != "Nodes"]
    fields = [f"{k.lower()}: {json.dumps(v)}" for k, v in node.items()]
    lines += [
        "    nodes:",
        *(("      - " if not i else "        ") + f for i, f in enumerate(fields)),
    ]
    return "\n".join(lines)
