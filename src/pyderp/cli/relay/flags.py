"""The relay's flags: one table, from which options, environment, settings file and help are made.

A new flag for the attribute of `RelayConfig` with the same name needs that attribute and a line
here: the default is read from the attribute, and `plan` passes the value on.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import KW_ONLY, MISSING, dataclass, fields, replace
from typing import Any, Final

from pyderp import defaults
from pyderp.cli.relay.values import (
    Kind,
    boolean,
    choice,
    depth,
    duration,
    exact_names,
    folder,
    integer,
    names,
    native_use,
    networks,
    number,
    path,
    port_or_none,
    recipients,
    text,
)
from pyderp.config import ACMETLS, AdmissionConfig, BootstrapDNSConfig, DebugAccess, RelayConfig

__all__ = ["BY_NAME", "DERPER_HOSTNAME", "FLAGS", "PARTS", "Flag", "flag_of"]

DERPER_HOSTNAME: Final = "derp.tailscale.com"
"""`derper`'s default; only Tailscale gets certificates for it."""
PARTS: Final = {
    "admission": AdmissionConfig,
    "bootstrap_dns": BootstrapDNSConfig,
    "debug": DebugAccess,
    "tls": ACMETLS,
}
"""Attributes of `RelayConfig` that have settings of their own."""
_DEFAULTS: Final = {
    prefix + field.name: None if field.default is MISSING else field.default
    for prefix, kind in {
        "": RelayConfig,
        **{f"{name}.": part for name, part in PARTS.items()},
    }.items()
    for field in fields(kind)
}
_OF_SETTING: Final = "of its setting"


@dataclass(frozen=True)
class Flag:
    """One flag: `--NAME`, `PYDERP_NAME` in the environment, `NAME` in the TOML file."""

    name: str
    kind: Kind
    help: str
    _: KW_ONLY
    setting: str = ""
    """The attribute of `RelayConfig` that it sets, dotted; empty: that of its name, or none."""
    default: Any = _OF_SETTING
    panel: str = ""
    """Heading in the help."""
    shown: str = ""
    """How help shows the default, if not by its value."""
    instead: str = ""
    """What may be used in its place; for the error that it is missing."""
    also: Sequence[str] = ()
    """More spellings, with dashes."""
    go_name: str = ""
    """What `derper` calls it, if not by name."""
    go_variable: str = ""
    """Environment variable of `derper` for the same setting."""
    go_help: str = ""
    """What it does with `pyderp derper`, if something else."""
    in_environment: bool = True
    in_file: bool = True

    def __post_init__(self) -> None:
        """Fill in the setting of its name, and the setting's default."""
        of_its_name = self.parameter in _DEFAULTS and self.parameter not in PARTS
        setting = self.setting or (self.parameter if of_its_name else "")
        object.__setattr__(self, "setting", setting)
        if self.default is _OF_SETTING:
            object.__setattr__(self, "default", _DEFAULTS.get(setting))

    @property
    def parameter(self) -> str:
        """The name with underscores, as Python's parameters have it."""
        return self.name.replace("-", "_")

    @property
    def variable(self) -> str:
        """Environment variable; empty: none."""
        return f"PYDERP_{self.parameter.upper()}" if self.in_environment else ""

    @property
    def shown_default(self) -> str:
        """The default as help shows it; empty: not at all."""
        if self.shown or self.default is None or self.default == ():
            return self.shown
        if isinstance(self.default, bool):
            return "on" if self.default else ""
        return f"{self.default:g}" if isinstance(self.default, float) else str(self.default)


# fmt: off
_TABLE: Final = {
    "Basics": (
        Flag("dev", boolean,
             "Defaults to try things out: plain HTTP on 127.0.0.1:3340, a new key in memory. "
             "Every other flag still counts.",
             go_help="To try things out: listen on :3340 whatever -a says, with a new key "
             "in memory whatever -c says, and take the mesh key from TAILSCALE_DERPER_MESH_KEY "
             "only."),
        Flag("address", text("ADDR"),
             "Where to listen: HOST:PORT, with an IP address or a name of this machine, "
             "[IPv6]:PORT, :PORT for all addresses, or unix:/PATH. Port 0: any free one.",
             default=None,
             also=("-a",), go_name="a", shown=":443; with --dev 127.0.0.1:3340"),
        Flag("hostname", text("NAME|IP"),
             "Name or IP address that clients connect to, and that the certificate is for. For a "
             "name the certificate comes from Let's Encrypt, for an IP address a self-signed one "
             "is made, unless --certmode says otherwise.", setting="tls.hostname"),
        Flag("public-port", integer(1, 65535, metavar="PORT"),
             "The port that clients use, for the DERP map, if a proxy in front has another one.",
             shown="that of --address"),
        Flag("key-file", path, "File of the relay's key, in derper's form; made if missing.",
             setting="private_key", also=("-c", "--config"), go_name="c",
             shown="relay.key in $STATE_DIRECTORY, /var/lib/pyderp for root, or "
             "~/.local/state/pyderp; /var/lib/derper/derper.key if root has that; with --dev a "
             "new key in memory"),
        Flag("config-file", path,
             "TOML file of these settings, each by the flag's name without the dashes in front. "
             "Flags and environment win over it. Read again on SIGHUP.", in_file=False),
        Flag("check", boolean,
             "Check all settings, files and ports, print what is wrong, and exit. Makes nothing. "
             "With --show-map, print the map as well.",
             in_environment=False, in_file=False),
        Flag("show-map", choice("policy", "headscale", "json", "all"),
             "Print the DERP map of this relay and exit: for Tailscale's policy file, for a file "
             "of headscale's derp.paths, or for --derp-map.", in_environment=False, in_file=False),
        Flag("version", boolean, "Print the version and exit.", in_environment=False,
             in_file=False),
    ),
    "Certificate": (
        Flag("tls", boolean,
             "Speak TLS, or plain HTTP for a proxy in front that ends TLS.", default=None,
             shown="TLS; plain HTTP with --dev, on a loopback address or on a Unix socket, unless "
             "--certmode is given",
             go_help="Speak TLS, or plain HTTP. If it is not given, as derper: TLS on port 443 or "
             "with -certmode=manual."),
        Flag("certmode", choice("manual", "letsencrypt", "gcp"),
             "Where the certificate comes from: files, Let's Encrypt or another authority by "
             "ACME, or Google's.",
             shown="manual if --hostname is an IP address, else letsencrypt"),
        Flag("certdir", folder,
             "Directory of HOSTNAME.crt and HOSTNAME.key, or for the certificates from ACME.",
             setting="tls.certdir", shown="certs, beside the default of --key-file"),
        Flag("cert-file", path,
             "File of the certificate chain, PEM, in place of one in --certdir; as certbot's "
             "fullchain.pem or Kubernetes' tls.crt. Read again when it changes. It means "
             "--certmode=manual."),
        Flag("cert-key-file", path,
             "File of its private key, PEM; as certbot's privkey.pem or Kubernetes' tls.key."),
        Flag("any-server-name", boolean,
             "With --certmode=manual: present the certificate to a client that asks for another "
             "name (SNI) or for none."),
        Flag("http-port", port_or_none,
             "Beside TLS: plain HTTP for ACME, captive-portal checks and redirects. -1: none.",
             setting="tls.http_port"),
        Flag("acme-email", text("EMAIL"), "Contact for the authority. Needed for gcp.",
             setting="tls.email"),
        Flag("acme-eab-kid", text("ID"), "External account binding: the key's id. Needed for gcp.",
             setting="tls.eab_kid"),
        Flag("acme-eab-key", text("BASE64"),
             "External account binding: the key. Other users can see it on a command line; better "
             "put it into the environment or the TOML file.", setting="tls.eab_key"),
        Flag("acme-ip-certs", boolean,
             "Also get short-lived certificates for the IP addresses that clients connect to.",
             setting="tls.ip_certs"),
        Flag("acme-directory", text("URL"), "The authority's ACME directory.",
             setting="tls.directory", default=None, shown="Let's Encrypt's"),
        Flag("acme-staging", boolean,
             "Let's Encrypt's staging authority, to try things out: no client trusts it."),
        Flag("acme-ca-file", path,
             "PEM file of authorities to trust for the ACME server's own HTTPS, beside the "
             "system's.",
             setting="tls.ca_file"),
    ),
    "Admission of clients": (
        Flag("verify-clients", boolean, "Admit clients that the tailscaled of this machine knows.",
             setting="admission.tailscaled"),
        Flag("socket", path, "Socket of that tailscaled.", setting="admission.tailscaled_socket",
             shown="where the system has it"),
        Flag("verify-client-url", text("URL"),
             "URL of an admission controller, which the relay asks about each client.",
             setting="admission.url"),
        Flag("verify-client-url-fail-open", boolean,
             "Admit clients while the controller cannot be reached.",
             setting="admission.url_fail_open"),
        Flag("allow-keys-file", path,
             "Allow file: allowed node keys, one a line, each with an optional label. Read again "
             "when it changes.", setting="admission.keys_file"),
        Flag("deny-keys-file", path,
             "Deny file: node keys that are refused even if all else admits them, one a line, each "
             "with an optional label. Read again when it changes; connected clients in it are "
             "closed.",
             setting="admission.deny_file"),
        Flag("disallow-app-names", exact_names("NAME,…"),
             "Refuse clients that send exactly one of these as the name of their program. "
             "An empty item is dropped, with a warning. Mesh peers are exempt."),
        Flag("admission-remember", duration,
             "How long an answer holds for further connections of a key. 0: ask each time.",
             setting="admission.remember"),
        Flag("admission-recheck", duration,
             "How often to ask again about connected clients, and close those refused now. 0: "
             "never.", setting="admission.recheck"),
        Flag("rate-config", path, "JSON file of rate limits, also per key. Read again on SIGHUP."),
        Flag("accept-connection-limit", number(),
             "Connections that are accepted a second; further ones are closed at once.",
             setting="accept_limit"),
        Flag("accept-connection-burst", integer(0),
             "Connections that may exceed that limit for a moment.", setting="accept_burst"),
    ),
    "Mesh": (
        Flag("mesh-psk-file", path,
             "File of the mesh key, 64 hex digits. A client that has it may watch, forward and "
             "close other clients.",
             setting="mesh_key",
             instead="for development TAILSCALE_DERPER_MESH_KEY in the environment"),
        Flag("mesh-with", names("HOST,…"),
             "Relays to mesh with; this one may be among them. HOST, HOST:PORT, either with "
             "/DIAL-HOST, or a URL."),
    ),
    "What it serves": (
        Flag("derp", boolean,
             "Serve /derp. Without it, only STUN, probes and bootstrap DNS are served."),
        Flag("stun", boolean,
             "Answer STUN, by UDP. On 127.0.0.1 and ::1 the relay runs without STUN if the port is "
             "taken, unless this, --stun-host or --stun-port is given.", default=True),
        Flag("stun-host", text("IP"),
             "IP address for STUN; :: for all. For a relay behind a proxy, since STUN does not go "
             "through the proxy.",
             shown="that of --address; all for a Unix socket"),
        Flag("stun-port", integer(0, 65535), "UDP port for STUN. 0: any free one.",
             default=defaults.STUN_PORT),
        Flag("home", text("blank|URL"), "What is at /: a blank page, or a redirect.",
             shown="a description"),
        Flag("health", recipients,
             "Which clients get reports of problems, which `tailscale status` shows: those known "
             "to accept such frames, all, or none. --no-health: none."),
        Flag("bootstrap-dns-names", names("NAME,…"),
             "Host names whose addresses /bootstrap-dns returns to every client.",
             setting="bootstrap_dns.published"),
        Flag("unpublished-bootstrap-dns-names", names("NAME[/TXT],…"),
             "Host names whose addresses /bootstrap-dns returns only to clients that ask for the "
             "name; with TXT, to the percentage of them in that TXT record.",
             setting="bootstrap_dns.unpublished"),
        Flag("metrics-address", text("HOST:PORT"),
             "Serve /debug/ with its metrics there, by plain HTTP, and not on the relay's own "
             "ports: HOST:PORT, [IPv6]:PORT, or :PORT. The rules for access are the same."),
        Flag("debug-allow-ip", text("IP"),
             "One more IP address that may see /debug/, beside this machine and Tailscale's.",
             setting="debug.allow_ip", go_variable="TS_ALLOW_DEBUG_IP"),
        Flag("debug-trusted", networks(), "Networks that may see /debug/.",
             setting="debug.trusted", go_variable="TS_DEBUG_TRUSTED_CIDRS"),
        Flag("debug-hosts", names("HOST,…"),
             "Host names by which requests may ask for /debug/, beside IP addresses, localhost, "
             "the machine's name and those of the certificate.", setting="debug.hosts"),
        Flag("debug-key-file", path,
             "File of a secret. A request with ?debugkey=SECRET may see /debug/.",
             setting="debug.key", default=None, go_variable="TS_DEBUG_KEY_PATH"),
        Flag("sender-cardinality", boolean,
             "Show in /debug/traffic and /debug/clients/ how many keys have sent to a client.",
             go_variable="TS_DERP_SENDER_CARDINALITY"),
        Flag("rtt-stats", boolean, "Sample the round-trip times of connections for the metrics."),
    ),
    "Connections": (
        Flag("trusted-proxy", networks(),
             "Proxies from which the relay takes the client's address: X-Forwarded-For, PROXY "
             "header.",
             setting="trusted_proxies"),
        Flag("proxy-protocol", boolean,
             "Every connection begins with a PROXY header, v1 or v2, from a --trusted-proxy."),
        Flag("login-timeout", duration,
             "Close a client that has not logged in this long after the accept, TLS and HTTP "
             "included. More than 0."),
        Flag("tcp-keepalive-time", duration, "Idle time before TCP keep-alive probes. 0: none."),
        Flag("tcp-user-timeout", duration,
             "End a connection if the client's kernel acknowledges nothing for this long. 0: the "
             "system's time."),
        Flag("tcp-write-timeout", duration,
             "Close a client that takes no byte for this long. 0: never.", setting="write_timeout"),
        Flag("send-queue-depth", depth,
             "Packets that wait for a client in each of its two queues, disco and data, before "
             "the oldest is dropped. 0 and less: the default.",
             go_variable="TS_DEBUG_DERP_PER_CLIENT_SEND_QUEUE_DEPTH"),
        Flag("tcp-notsent-lowat", integer(0, metavar="BYTES"),
             "Bytes that the kernel may hold unsent for a client before packets wait here, "
             "where old ones are dropped. 0: the system's."),
        Flag("reuse-port", boolean,
             "Let a second relay listen on the same port, to take over from this one."),
        Flag("drain", duration,
             "When stopping, spread the closing of connections over this time. 0: all at once."),
    ),
    "Process and log": (
        Flag("loop", choice("auto", "uvloop", "asyncio"),
             "The event loop; auto: uvloop if installed.", default="auto"),
        Flag("native", native_use,
             "Have pyderp-fast do TLS and relay packets, which needs less CPU. auto: if it is "
             "installed; on: it must be installed."),
        Flag("log-level", choice("debug", "info", "warning", "error"),
             "How much is logged, to stderr.", default="info"),
        Flag("log-format", choice("text", "json"), "Lines of text, or a JSON object a line.",
             default="text"),
    ),
    "Flags of derper that are not built": (
        Flag("secrets-url", text("URL"),
             "Not built: the mesh key from a setec server; use --mesh-psk-file."),
        Flag("secrets-path-prefix", text("PREFIX"),
             "Goes with --secrets-url; without it, it does nothing."),
        Flag("secrets-cache-dir", folder, "Goes with --secrets-url; without it, it does nothing."),
        Flag("ace", boolean, "Not built: a CONNECT proxy to Tailscale's control servers."),
    ),
}
# fmt: on

FLAGS: Final = tuple(
    replace(flag, panel=panel) for panel, flags in _TABLE.items() for flag in flags
)
"""All flags, in the order of the help."""

BY_NAME: Final = {flag.name: flag for flag in FLAGS}
_BY_SETTING: Final = {flag.setting: flag for flag in FLAGS if flag.setting}


def flag_of(setting: str) -> Flag | None:
    """Returns the flag for a setting, by the name of either; `None`: there is none."""
    return _BY_SETTING.get(setting) or BY_NAME.get(setting)
