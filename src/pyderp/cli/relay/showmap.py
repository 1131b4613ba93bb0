"""The DERP map of a relay, in the forms that Tailscale, headscale and our own tools read."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from typing import Final

from pyderp.addresses import is_loopback, parse_address, parse_ip, unix_path
from pyderp.certs import make_certificates
from pyderp.cli.relay.plan import StartPlan
from pyderp.config import ManualTLS, TLSSettings
from pyderp.config.tls import PUBLIC
from pyderp.defaults import HTTPS_PORT
from pyderp.errors import ConfigError
from pyderp.maps.derpmap import own_map, own_node
from pyderp.maps.region import DERPNode
from pyderp.maps.yamltext import headscale_yaml
from pyderp.server.app.listeners import stun_host

__all__ = ["NO_DERP", "STUN_HIDDEN", "map_command", "node_of", "public_node", "show_map"]
__all__ += ["stun_hidden"]

STUN_HIDDEN: Final = (
    "STUN answers this machine only, so the DERP map says that there is none: give --stun-host=::"
)
NO_DERP: Final = (
    "/derp is not served here (--no-derp): no client can connect; STUN, probes and bootstrap DNS "
    "are answered"
)
_HEADS: Final = {
    "policy": "For the policy file of a tailnet, at its top level",
    "headscale": "For headscale: a file that derp.paths in its config.yaml names",
    "json": "For --derp-map, and other programs",
}


def node_of(plan: StartPlan) -> DERPNode:
    """Returns the map's node for a relay that does not run.

    A self-signed certificate that is missing is made, since the node has its hash.

    Raises:
        ConfigError: clients cannot reach the relay with these settings, or a port is not fixed.
    """
    config = plan.config
    if not plan.public_name:
        raise ConfigError(
            "clients find a relay by its name or IP address: give --hostname, also if something "
            "in front of the relay has the certificate"
        )
    if not config.derp:
        raise ConfigError(
            "clients that read a DERP map connect to /derp, which this relay does not serve: {} is "
            "off",
            settings=("derp",),
        )
    if config.tls is None and plan.public_port is None:
        # Clients use TLS, so a proxy in front must end it, and only the operator knows its port.
        raise ConfigError(
            "clients that read a DERP map connect with TLS, and this relay speaks plain HTTP on "
            "{address} ({reason}): if a proxy in front of it ends TLS, give {}, the port of the "
            "proxy",
            settings=("public-port",),
            address=config.address,
            reason=plan.transport.plain,
        )
    _check_reached(plan)
    cert_name = ""
    if isinstance(config.tls, ManualTLS):
        cert_name = make_certificates(config.tls).cert_name
    on_socket = unix_path(config.address) is not None
    port = HTTPS_PORT if on_socket else parse_address(config.address)[1]
    derp_port = plan.public_port or port
    stun_port = None if stun_hidden(plan) else config.stun_port
    if 0 in (derp_port, stun_port):
        raise ConfigError("port 0 is another one at each start; a map needs fixed ports")
    return own_node(plan.public_name, cert_name=cert_name, derp_port=derp_port, stun_port=stun_port)


def _check_reached(plan: StartPlan) -> None:
    """Refuse a public IP address of a relay that only this machine reaches, without a proxy."""
    public = parse_ip(plan.public_name)
    only_here = is_loopback(plan.config.address) and plan.public_port is None
    if only_here and public is not None and not public.is_loopback:
        raise ConfigError(
            "only this machine reaches {address}, and a DERP map would send clients to {public}: "
            "give an address that clients reach, or {}, the port of a proxy in front",
            settings=("public-port",),
            address=plan.config.address,
            public=plan.public_name,
        )


def public_node(plan: StartPlan, node: DERPNode | None, stun_port: int | None) -> DERPNode | None:
    """Returns the map's node for a relay that runs.

    Args:
        node: the relay's own.
        stun_port: where it answers STUN; `None`: nowhere.

    Returns:
        `None`: the relay serves no DERP, or no setting says what clients connect to.
    """
    if not plan.config.derp:
        return None
    if plan.public_port is None or not plan.public_name:
        return node
    return own_node(
        plan.public_name if node is None else node.host_name,
        cert_name="" if node is None else node.cert_name,
        derp_port=plan.public_port,
        stun_port=None if stun_hidden(plan) else stun_port,
    )


def stun_hidden(plan: StartPlan) -> bool:
    """Whether a relay behind a proxy answers STUN on the loopback only."""
    config = plan.config
    if config.stun_port is None or plan.public_port is None:
        return False
    host = parse_ip(stun_host(config))
    return host is not None and host.is_loopback


def map_command(plan: StartPlan, address: str, stun_port: int | None) -> str:
    """Returns a command line that prints the maps of a relay that runs, as its settings are now.

    It has every setting that a map depends on: the user who runs the command may have another
    environment, and no permission to read the settings. It has no secrets.

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
    if plan.config.tls is None:
        words.append("--no-tls")
    else:
        words += _certificate_words(plan.config.tls)
    # A command line without a place for the key is refused, though --show-map reads no key.
    words.append("--dev" if plan.key_file is None else f"--key-file={plan.key_file.absolute()}")
    return shlex.join(["pyderp", "relay", *words, "--show-map=all"])


def _certificate_words(tls: TLSSettings) -> Iterator[str]:
    if isinstance(tls, ManualTLS) and tls.cert_file and tls.cert_key_file:
        yield f"--cert-file={tls.cert_file.absolute()}"
        yield f"--cert-key-file={tls.cert_key_file.absolute()}"
    else:
        yield f"--certdir={tls.certdir.absolute()}"
    if isinstance(tls, ManualTLS):
        yield "--certmode=manual"
        return
    yield "--certmode=letsencrypt"
    if tls.ip_certs:
        yield "--acme-ip-certs"
    if tls.directory not in PUBLIC:
        yield f"--acme-directory={tls.directory}"


def show_map(node: DERPNode, form: str) -> str:
    """Returns the map of this node alone, in the form `policy`, `headscale`, `json` or `all`."""
    derp_map = own_map(node)
    whole = derp_map.to_json(pretty=True)
    policy = f'"derpMap": {whole},'
    texts = {"policy": policy, "headscale": headscale_yaml(derp_map), "json": whole}
    if form != "all":
        return texts[form]
    return "\n\n".join(f"# {_HEADS[each]}:\n\n{text}" for each, text in texts.items())
