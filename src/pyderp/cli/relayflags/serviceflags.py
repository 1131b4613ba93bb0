"""Flags for whom a relay serves, with what and how. Names are `derper`'s where it has them."""

from __future__ import annotations

import math
from typing import Final

from pyderp import defaults
from pyderp.cli.relayflags.flag import Flag
from pyderp.cli.relayflags.kinds import (
    boolean,
    depth,
    duration,
    exact_names,
    integer,
    names,
    networks,
    number,
    path,
    recipients,
    text,
)
from pyderp.config import HealthRecipients

__all__ = ["ADMISSION_FLAGS", "CONNECTION_FLAGS", "MESH_FLAGS", "SERVED_FLAGS"]

_ADMISSION: Final = "Who may use it"
_MESH: Final = "Mesh"
_SERVED: Final = "What it serves"
_CONNECTIONS: Final = "Connections"
_PORT: Final = integer(0, 65535)

ADMISSION_FLAGS: Final = (
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
        help="Let in clients while nobody reaches the controller.",
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
        name="disallow-app-names",
        kind=exact_names("NAME,…"),
        panel=_ADMISSION,
        default=(),
        setting="disallow_app_names",
        help="Refuse clients that give one of these as the name of their program, exactly so. An "
        "empty item is dropped, with a warning. Mesh peers are exempt.",
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

MESH_FLAGS: Final = (
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

SERVED_FLAGS: Final = (
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
        help="Answer STUN, by UDP. On 127.0.0.1 and ::1 the relay runs without if the port is "
        "taken, unless this, --stun-host or --stun-port is given.",
    ),
    Flag(
        name="stun-host",
        kind=text("IP"),
        panel=_SERVED,
        setting="stun_host",
        shown="that of --address; all for a Unix socket",
        help="IP address for STUN; :: for all. For a relay behind a proxy, which STUN passes by.",
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
        kind=recipients,
        panel=_SERVED,
        default=HealthRecipients.KNOWN,
        setting="health",
        help="Which clients are told of trouble, as `tailscale status` shows it: those known to "
        "take such frames, all, or none. --no-health: none.",
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
        name="debug-hosts",
        kind=names("HOST,…"),
        panel=_SERVED,
        default=(),
        setting="debug.hosts",
        help="Names under which /debug/ may be asked for, beside IP addresses, localhost, the "
        "machine's name and those of the certificate.",
    ),
    Flag(
        name="debug-key-file",
        kind=path,
        panel=_SERVED,
        go_variable="TS_DEBUG_KEY_PATH",
        help="File of a secret that opens /debug/ as ?debugkey=SECRET.",
    ),
    Flag(
        name="sender-cardinality",
        kind=boolean,
        panel=_SERVED,
        default=True,
        go_variable="TS_DERP_SENDER_CARDINALITY",
        setting="sender_cardinality",
        help="Tell in /debug/traffic and /debug/clients/ how many keys have written to a client.",
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

CONNECTION_FLAGS: Final = (
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
        help="End connections whose kernel acknowledges nothing for so long. 0: the system's time.",
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
        name="send-queue-depth",
        kind=depth,
        panel=_CONNECTIONS,
        default=defaults.SEND_QUEUE_DEPTH,
        go_variable="TS_DEBUG_DERP_PER_CLIENT_SEND_QUEUE_DEPTH",
        setting="send_queue_depth",
        help="Packets that wait for a client in each of its two queues, disco and data, before the "
        "oldest is dropped. 0 and less: the default.",
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
