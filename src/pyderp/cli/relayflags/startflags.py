"""Flags for a relay's place, certificate and process. Names are `derper`'s where it has them."""

from __future__ import annotations

from typing import Final

from pyderp import defaults
from pyderp.cli.relayflags.flag import Flag
from pyderp.cli.relayflags.kinds import boolean, choice, folder, integer, path, text

__all__ = ["BASIC_FLAGS", "CERTIFICATE_FLAGS", "PROCESS_FLAGS", "UNBUILT_FLAGS"]

_BASICS: Final = "Basics"
_CERTIFICATE: Final = "Certificate"
_PROCESS: Final = "Process and log"
_NOT_BUILT: Final = "Flags of derper that are not built"
_PORT_OR_NONE: Final = integer(-1, 65535)

BASIC_FLAGS: Final = (
    Flag(
        name="dev",
        kind=boolean,
        panel=_BASICS,
        default=False,
        help="Defaults for trying things out: plain HTTP on 127.0.0.1:3340, a new key in memory. "
        "Every other flag still counts.",
        go_help="For trying things out: listen on :3340 whatever -a says, with a new key in "
        "memory whatever -c says, and take the mesh key from TAILSCALE_DERPER_MESH_KEY only.",
    ),
    Flag(
        name="address",
        also=("-a",),
        go_name="a",
        kind=text("ADDR"),
        panel=_BASICS,
        shown=":443; with --dev 127.0.0.1:3340",
        help="Where to listen: IP:PORT, [IPv6]:PORT, :PORT for all addresses, or unix:/PATH. "
        "TLS if the port is 443 or --certmode is given. Port 0: any free one.",
    ),
    Flag(
        name="hostname",
        kind=text("NAME|IP"),
        panel=_BASICS,
        help="What clients connect to, and the certificate is for. With a name the certificate "
        "comes from Let's Encrypt, for an IP address a self-signed one is made, unless "
        "--certmode says otherwise.",
    ),
    Flag(
        name="public-port",
        kind=integer(1, 65535, metavar="PORT"),
        panel=_BASICS,
        shown="that of --address",
        help="The port that clients use, for the DERP map, if a proxy in front has another.",
    ),
    Flag(
        name="key-file",
        also=("-c", "--config"),
        go_name="c",
        kind=path,
        panel=_BASICS,
        shown="relay.key in $STATE_DIRECTORY, /var/lib/pyderp for root, or "
        "~/.local/state/pyderp; /var/lib/derper/derper.key if root has that; with --dev a new "
        "key in memory",
        help="File of the relay's key, in derper's form; made if missing.",
    ),
    Flag(
        name="config-file",
        kind=path,
        panel=_BASICS,
        in_file=False,
        help="TOML file of these settings, by their names without dashes before. Flags and "
        "environment win over it. Read again on SIGHUP.",
    ),
    Flag(
        name="check",
        kind=boolean,
        panel=_BASICS,
        default=False,
        in_environment=False,
        in_file=False,
        help="Check all settings, files and ports, say what is wrong, and exit. Makes nothing.",
    ),
    Flag(
        name="show-map",
        kind=choice("policy", "headscale", "json", "all"),
        panel=_BASICS,
        in_environment=False,
        in_file=False,
        help="Print the DERP map of this relay and exit: for Tailscale's policy file, for a file "
        "of headscale's derp.paths, or for --derp-map.",
    ),
    Flag(
        name="version",
        kind=boolean,
        panel=_BASICS,
        default=False,
        in_environment=False,
        in_file=False,
        help="Print the version and exit.",
    ),
)

CERTIFICATE_FLAGS: Final = (
    Flag(
        name="certmode",
        kind=choice("manual", "letsencrypt", "gcp"),
        panel=_CERTIFICATE,
        shown="manual if --hostname is an IP address, else letsencrypt",
        help="Where the certificate comes from: files, Let's Encrypt or another authority by "
        "ACME, or Google's.",
    ),
    Flag(
        name="certdir",
        kind=folder,
        panel=_CERTIFICATE,
        shown="certs, beside the default of --key-file",
        help="Directory of HOSTNAME.crt and HOSTNAME.key, or of what ACME brings.",
    ),
    Flag(
        name="http-port",
        kind=_PORT_OR_NONE,
        panel=_CERTIFICATE,
        default=defaults.HTTP_PORT,
        help="Beside TLS: plain HTTP for ACME, captive-portal checks and redirects. -1: none.",
    ),
    Flag(
        name="acme-email",
        kind=text("EMAIL"),
        panel=_CERTIFICATE,
        help="Contact that the authority is told. Needed for gcp.",
    ),
    Flag(
        name="acme-eab-kid",
        kind=text("ID"),
        panel=_CERTIFICATE,
        help="External account binding: the key's id. Needed for gcp.",
    ),
    Flag(
        name="acme-eab-key",
        kind=text("BASE64"),
        panel=_CERTIFICATE,
        help="External account binding: the key. Others see it on a command line; better in the "
        "environment or the TOML file.",
    ),
    Flag(
        name="acme-ip-certs",
        kind=boolean,
        panel=_CERTIFICATE,
        default=False,
        help="Also get short-lived certificates for the IP addresses that clients connect to.",
    ),
    Flag(
        name="acme-directory",
        kind=text("URL"),
        panel=_CERTIFICATE,
        shown="Let's Encrypt's",
        help="The authority's ACME directory.",
    ),
    Flag(
        name="acme-staging",
        kind=boolean,
        panel=_CERTIFICATE,
        default=False,
        help="Let's Encrypt's staging authority, for trying things out: nobody trusts it.",
    ),
    Flag(
        name="acme-ca-file",
        kind=path,
        panel=_CERTIFICATE,
        help="PEM file of who vouches for the ACME server's own HTTPS, beside the system's.",
    ),
)

PROCESS_FLAGS: Final = (
    Flag(
        name="loop",
        kind=choice("auto", "uvloop", "asyncio"),
        panel=_PROCESS,
        default="auto",
        help="The event loop; auto: uvloop if installed.",
    ),
    Flag(
        name="log-level",
        kind=choice("debug", "info", "warning", "error"),
        panel=_PROCESS,
        default="info",
        help="How much is logged, to stderr.",
    ),
    Flag(
        name="log-format",
        kind=choice("text", "json"),
        panel=_PROCESS,
        default="text",
        help="Lines of text, or a JSON object a line.",
    ),
)

UNBUILT_FLAGS: Final = (
    Flag(
        name="secrets-url",
        kind=text("URL"),
        panel=_NOT_BUILT,
        help="The mesh key from a setec server; use --mesh-psk-file.",
    ),
    Flag(
        name="secrets-path-prefix",
        kind=text("PREFIX"),
        panel=_NOT_BUILT,
        help="Goes with --secrets-url; without it, it does nothing.",
    ),
    Flag(
        name="secrets-cache-dir",
        kind=folder,
        panel=_NOT_BUILT,
        help="Goes with --secrets-url; without it, it does nothing.",
    ),
    Flag(
        name="ace",
        kind=boolean,
        panel=_NOT_BUILT,
        default=False,
        help="A CONNECT proxy to Tailscale's control servers.",
    ),
)
