"""All flags of the relay. Names, and what they do, are `derper`'s where it has them."""

from __future__ import annotations

import math
from typing import Final

from pyderp import defaults

from .flag import Flag
from .kinds import boolean, choice, duration, folder, integer, names, networks, number, path, text

__all__ = ["BY_NAME", "FLAGS"]

_BASICS: Final = "Basics"
_CERTIFICATE: Final = "Certificate"
_ADMISSION: Final = "Who may use it"
_MESH: Final = "Mesh"
_SERVED: Final = "What it serves"
_CONNECTIONS: Final = "Connections"
_PROCESS: Final = "Process and log"
_NOT_BUILT: Final = "Flags of derper that are not built"

_PORT: Final = integer(0, 65535)
_PORT_OR_NONE: Final = integer(-1, 65535)

_BASIC_FLAGS: Final = (
    Flag(
        name="dev",
        kind=boolean,
        panel=_BASICS,
        default=False,
        help="Defaults for trying things out: plain HTTP on 127.0.0.1:3340, a new key in memory. "
        "Every other flag still counts.",
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

_CERTIFICATE_FLAGS: Final = (
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

_ADMISSION_FLAGS: Final = (
    Flag(
        name="verify-clients",
        kind=boolean,
        panel=_ADMISSION,
        default=False,
        setting="admission.tailscaled",
        help="Let in whom the tailscaled of this machine knows.",
    ),
    Flag(
        name="socket",
        kind=path,
        panel=_ADMISSION,
        shown="where the system has it",
        setting="admission.tailscaled_socket",
        help="Socket of that tailscaled.",
    ),
    Flag(
        name="verify-client-url",
        kind=text("URL"),
        panel=_ADMISSION,
        default="",
        setting="admission.url",
        help="Ask an admission controller about each client.",
    ),
    Flag(
        name="verify-client-url-fail-open",
        kind=boolean,
        panel=_ADMISSION,
        default=True,
        setting="admission.url_fail_open",
        help="Let in whom the controller could not be asked about.",
    ),
    Flag(
        name="allow-keys-file",
        kind=path,
        panel=_ADMISSION,
        setting="admission.keys_file",
        help="File of allowed node keys, one a line, each with an optional label. Read again "
        "when it changes.",
    ),
    Flag(
        name="admission-remember",
        kind=duration,
        panel=_ADMISSION,
        default=defaults.ADMISSION_REMEMBER,
        setting="admission.remember",
        help="An answer is good for so long for further connections of a key. 0: ask each time.",
    ),
    Flag(
        name="admission-recheck",
        kind=duration,
        panel=_ADMISSION,
        default=defaults.ADMISSION_RECHECK,
        setting="admission.recheck",
        help="How often to ask about connected clients again, and close whom is refused now. "
        "0: never.",
    ),
    Flag(
        name="rate-config",
        kind=path,
        panel=_ADMISSION,
        setting="rate_config",
        help="JSON file of rate limits, also per key. Read again on SIGHUP.",
    ),
    Flag(
        name="accept-connection-limit",
        kind=number(),
        panel=_ADMISSION,
        default=math.inf,
        setting="accept_limit",
        help="Connections a second; what exceeds it is closed at once.",
    ),
    Flag(
        name="accept-connection-burst",
        kind=integer(0),
        panel=_ADMISSION,
        default=2**31,
        setting="accept_burst",
        help="Connections that may exceed that limit for a moment.",
    ),
)

_MESH_FLAGS: Final = (
    Flag(
        name="mesh-psk-file",
        kind=path,
        panel=_MESH,
        help="The mesh key, 64 hex digits. Who has it may watch, forward and close clients.",
    ),
    Flag(
        name="mesh-with",
        kind=names("HOST,…"),
        panel=_MESH,
        default=(),
        setting="mesh_with",
        help="Relays to mesh with, this one may be among them: HOST, HOST:PORT, either with "
        "/DIAL-HOST, or a URL.",
    ),
)

_SERVED_FLAGS: Final = (
    Flag(
        name="derp",
        kind=boolean,
        panel=_SERVED,
        default=True,
        setting="derp",
        help="Serve /derp. Without, only STUN, probes and bootstrap DNS are served.",
    ),
    Flag(
        name="stun",
        kind=boolean,
        panel=_SERVED,
        default=True,
        help="Answer STUN, by UDP on the same IP address. On 127.0.0.1 and ::1 the relay runs "
        "without if the port is taken, unless this or --stun-port is given.",
    ),
    Flag(
        name="stun-port",
        kind=_PORT,
        panel=_SERVED,
        default=defaults.STUN_PORT,
        help="UDP port for STUN. 0: any free one.",
    ),
    Flag(
        name="home",
        kind=text("blank|URL"),
        panel=_SERVED,
        default="",
        shown="a description",
        setting="home",
        help="What is at /: a blank page, or a redirect.",
    ),
    Flag(
        name="health",
        kind=boolean,
        panel=_SERVED,
        default=True,
        setting="health",
        help="Tell clients of trouble, which `tailscale status` shows.",
    ),
    Flag(
        name="bootstrap-dns-names",
        kind=names("NAME,…"),
        panel=_SERVED,
        default=(),
        setting="bootstrap_dns.published",
        help="Host names whose addresses /bootstrap-dns tells.",
    ),
    Flag(
        name="unpublished-bootstrap-dns-names",
        kind=names("NAME[/TXT],…"),
        panel=_SERVED,
        default=(),
        setting="bootstrap_dns.unpublished",
        help="As that, but told only to who asks by name; with TXT to the percentage in that "
        "TXT record.",
    ),
    Flag(
        name="debug-allow-ip",
        kind=text("IP"),
        panel=_SERVED,
        default="",
        go_variable="TS_ALLOW_DEBUG_IP",
        setting="debug.allow_ip",
        help="One more IP address that may see /debug/, beside this machine and Tailscale's.",
    ),
    Flag(
        name="debug-trusted",
        kind=networks(),
        panel=_SERVED,
        default=(),
        go_variable="TS_DEBUG_TRUSTED_CIDRS",
        setting="debug.trusted",
        help="Networks that may see /debug/.",
    ),
    Flag(
        name="debug-key-file",
        kind=path,
        panel=_SERVED,
        go_variable="TS_DEBUG_KEY_PATH",
        help="File of a secret that opens /debug/ as ?debugkey=SECRET.",
    ),
    Flag(
        name="rtt-stats",
        kind=boolean,
        panel=_SERVED,
        default=True,
        setting="rtt_stats",
        help="Sample the round-trip times of connections for the metrics.",
    ),
)

_CONNECTION_FLAGS: Final = (
    Flag(
        name="trusted-proxy",
        kind=networks(),
        panel=_CONNECTIONS,
        default=(),
        setting="trusted_proxies",
        help="Proxies whose word on a client's address is taken: X-Forwarded-For, PROXY headers.",
    ),
    Flag(
        name="proxy-protocol",
        kind=boolean,
        panel=_CONNECTIONS,
        default=False,
        setting="proxy_protocol",
        help="Every connection begins with a PROXY header, v1 or v2, of a --trusted-proxy.",
    ),
    Flag(
        name="tcp-keepalive-time",
        kind=duration,
        panel=_CONNECTIONS,
        default=float(defaults.TCP_KEEPALIVE_TIME),
        setting="tcp_keepalive_time",
        help="Silence before TCP keepalive probes. 0: none.",
    ),
    Flag(
        name="tcp-user-timeout",
        kind=duration,
        panel=_CONNECTIONS,
        default=defaults.TCP_USER_TIMEOUT,
        setting="tcp_user_timeout",
        help="TCP_USER_TIMEOUT of connections. 0: the system's.",
    ),
    Flag(
        name="tcp-write-timeout",
        kind=duration,
        panel=_CONNECTIONS,
        default=defaults.WRITE_TIMEOUT,
        setting="write_timeout",
        help="Close a client that takes no byte for so long. 0: never.",
    ),
    Flag(
        name="tcp-notsent-lowat",
        kind=integer(0, metavar="BYTES"),
        panel=_CONNECTIONS,
        default=defaults.TCP_NOTSENT_LOWAT,
        setting="tcp_notsent_lowat",
        help="Bytes that the kernel may hold unsent for a client before packets wait here, where "
        "old ones are dropped. 0: the system's.",
    ),
    Flag(
        name="reuse-port",
        kind=boolean,
        panel=_CONNECTIONS,
        default=False,
        setting="reuse_port",
        help="Let a second relay listen on the same port, to take over from this one.",
    ),
    Flag(
        name="drain",
        kind=duration,
        panel=_CONNECTIONS,
        default=defaults.DRAIN,
        setting="drain",
        help="When stopping, spread the closing of connections over so long. 0: at once.",
    ),
)

_PROCESS_FLAGS: Final = (
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

_UNBUILT_FLAGS: Final = (
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

FLAGS: Final = (
    *_BASIC_FLAGS,
    *_CERTIFICATE_FLAGS,
    *_ADMISSION_FLAGS,
    *_MESH_FLAGS,
    *_SERVED_FLAGS,
    *_CONNECTION_FLAGS,
    *_PROCESS_FLAGS,
    *_UNBUILT_FLAGS,
)

BY_NAME: Final = {flag.name: flag for flag in FLAGS}
