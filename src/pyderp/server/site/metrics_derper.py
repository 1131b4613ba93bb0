"""The metrics of a relay that `derper` has too, so that dashboards made for it work."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Final, TypeAlias

from pyderp.relay.counters import Counters, Histogram
from pyderp.server.conn.kernel import boot_time, open_files_now
from pyderp.server.services.stun import StunCounters
from pyderp.server.site.view import RelayView, slices

__all__ = ["Labelled", "Number", "Series", "gather_upstream"]

Number: TypeAlias = int | float
Labelled: TypeAlias = Mapping[tuple[str, ...], Number]
"""The values of the labels → number."""


@dataclass(frozen=True, slots=True)
class Series:
    """A metric and its current value.

    As with Go's `expvar` names, the prefix of the raw name is the type: `gauge_x`, `counter_x`.
    Without a prefix it is a counter.
    """

    raw: str
    """The name in JSON, within its group."""

    help: str
    """What it counts, in one line."""

    value: Number | Histogram | Labelled

    labels: tuple[str, ...] = ()
    """The names of the labels; empty if it has none."""

    group: str = ""
    """The JSON object that contains it; for Prometheus a prefix of its name."""

    untyped: bool = False
    """Whether `derper` exports it without a type."""

    @property
    def name(self) -> str:
        """The name for Prometheus."""
        name = self.raw.removeprefix("gauge_").removeprefix("counter_")
        return f"{self.group}_{name}" if self.group else name

    @property
    def kind(self) -> str:
        """The type for Prometheus."""
        if isinstance(self.value, Histogram):
            return "histogram"
        if self.untyped:
            return "untyped"
        return "gauge" if self.raw.startswith("gauge_") else "counter"


_derp: Final = partial(Series, group="derp")
_DISPOSITIONS: Final = ("not_stun", "read_error", "success", "write_error")
_FAMILIES: Final = ("ipv4", "ipv6")

# The raw name, the attribute of the counters, and the help text.
_COUNTERS: Final = (
    ("accepts", "derp_accepts", "Connections handed to DERP."),
    ("bytes_received", "bytes_received", "Bytes of packets that clients sent."),
    ("bytes_sent", "bytes_sent", "Bytes of packets sent to clients."),
    ("packets_received", "packets_received", "Packets that clients sent."),
    ("packets_sent", "packets_sent", "Packets sent to clients."),
    ("got_ping", "got_ping", "Pings received."),
    ("sent_pong", "sent_pong", "Pongs sent."),
    ("home_moves_in", "home_moves_in", "Clients that made this relay their home."),
    ("home_moves_out", "home_moves_out", "Clients that chose another home."),
    ("unknown_frames", "unknown_frames", "Frames of unknown types."),
    (
        "peer_gone_disconnected_frames",
        "peer_gone_disconnected",
        "PeerGone frames about clients that left.",
    ),
    (
        "peer_gone_not_here_frames",
        "peer_gone_not_here",
        "PeerGone frames about keys that are not connected to this relay.",
    ),
    ("packets_forwarded_in", "packets_forwarded_in", "Packets received from the mesh."),
    ("packets_forwarded_out", "packets_forwarded_out", "Packets forwarded to the mesh."),
    (
        "multiforwarder_created",
        "multiforwarder_created",
        "Times that a key became known at a second relay of the mesh.",
    ),
    (
        "multiforwarder_deleted",
        "multiforwarder_deleted",
        "Times that a key was known at several relays, and then at only one.",
    ),
    (
        "packet_forwarder_delete_other_value",
        "forwarder_delete_other_value",
        "Removals of a relay for a key that was not known at that relay.",
    ),
    (
        "sclient_write_timeouts",
        "write_timeouts",
        "Connections closed because no byte could be written for too long.",
    ),
    (
        "counter_total_dup_client_conns",
        "dup_client_conn_total",
        "Connections of a key that was connected already.",
    ),
    ("counter_buffered_write_frames", "buffered_write_frames", "Frames in one write to a client."),
    (
        "counter_mesh_update_batch_size",
        "mesh_update_batch_size",
        "Presence changes in one write to a watcher.",
    ),
    (
        "counter_mesh_update_loop_count",
        "mesh_update_loop_count",
        "Writes until a watcher had all presence changes.",
    ),
)


def _by_one(values: Mapping[str, int]) -> Labelled:
    return {(label,): values[label] for label in sorted(values)}


async def gather_upstream(view: RelayView) -> list[Series]:
    """Return the current metrics that `derper` has too."""
    by_version: Counter[str] = Counter()
    for some in slices(view.protocols):
        by_version.update(protocol.tls_version for protocol in some)
        await asyncio.sleep(0)
    del by_version[""]
    return [
        *_relay(view),
        *_rates(view),
        *_drops(view.router.counters),
        *_bootstrap(view),
        *_tls(view, by_version),
        *_stun(view),
        *_process(view),
    ]


def _relay(view: RelayView) -> Iterator[Series]:
    counters = view.router.counters
    for raw, attribute, help_text in _COUNTERS:
        value: int | Histogram = getattr(counters, attribute)
        yield _derp(raw, help_text, value)
    disco = counters.disco_received
    kinds = _by_one({"disco": disco, "other": counters.packets_received - disco})
    yield _derp(
        "average_queue_duration_ms",
        "Average time that recent packets waited in a queue, in milliseconds.",
        float(counters.average_queue_ms),
        untyped=True,
    )
    yield _derp("counter_packets_received_kind", "Packets received by kind.", kinds, ("kind",))
    yield _derp(
        "counter_tcp_rtt",
        "Samples of TCP round-trip times, by the smallest bound that they are within.",
        _by_one(counters.tcp_rtt),
        ("le",),
    )
    for raw, (value, help_text) in _gauges(view).items():
        yield _derp(f"gauge_{raw}", help_text, value)
    yield Series(
        "derp_websocket_accepts", "Websockets accepted for DERP.", counters.websocket_accepts
    )


def _gauges(view: RelayView) -> dict[str, tuple[int, str]]:
    registry = view.router.registry
    remote = _remote_keys(view)
    local = len(registry.active)
    return {
        "watchers": (len(registry.watchers), "Mesh peers that get presence changes."),
        "current_connections": (registry.size, "Connections that are logged in."),
        "current_home_connections": (
            view.router.counters.home_connections,
            "Connections of clients that have this relay as their home.",
        ),
        "current_notideal_connections": (
            registry.not_ideal,
            "Connections of clients that would prefer another node of the region.",
        ),
        "clients_total": (local + remote, "Keys connected to any relay of the mesh."),
        "clients_local": (local, "Keys connected to this relay."),
        "clients_remote": (remote, "Keys connected only to other relays of the mesh."),
        "current_dup_client_keys": (
            len(registry.duplicates),
            "Keys that have several connections.",
        ),
        "current_dup_client_conns": (
            sum(len(each.members) for each in registry.duplicates.values()),
            "Connections that share a key.",
        ),
        "current_file_descriptors": (open_files_now(), "Open file descriptors."),
        "memstats_sys0": (view.memory_at_start, "Memory of the process at its start, in bytes."),
    }


def _remote_keys(view: RelayView) -> int:
    forwarders = view.router.forwarders
    if not len(forwarders):
        return 0  # without a mesh, do not go through all keys
    return len(forwarders) - sum(key in forwarders for key in view.router.registry.active)


def _rates(view: RelayView) -> Iterator[Series]:
    if view.limits is None:
        return
    limit = view.limits.config.default
    rate, burst = (0, 0) if limit is None else (limit.bytes_per_second, limit.burst_bytes)
    yield _derp(
        "rate_limit_per_client_bytes_per_second",
        "Rate limit of a client, in bytes a second; 0: none.",
        rate,
        untyped=True,
    )
    yield _derp(
        "rate_limit_per_client_burst_bytes",
        "Bytes that a client may send at once, above the rate limit.",
        burst,
        untyped=True,
    )
    yield _derp(
        "rate_limit_per_client_waited",
        "Times that reading from a client stopped because of its rate limit.",
        view.limits.waited,
    )


def _drops(counters: Counters) -> Iterator[Series]:
    for index, what in enumerate(("packets", "bytes")):
        values = {
            (reason.value, kind): series[index] for (reason, kind), series in counters.drops.items()
        }
        yield Series(
            f"derp_{what}_dropped",
            f"DERP {what} dropped by reason and by kind.",
            dict(sorted(values.items())),
            ("reason", "kind"),
        )


def _bootstrap(view: RelayView) -> Iterator[Series]:
    for name, help_text in (
        ("requests", "Requests for bootstrap DNS."),
        ("published_hits", "Requests for a published name."),
        ("published_misses", "Requests for a published name that has no address."),
        ("unpublished_hits", "Requests for an unpublished name that has an address."),
        ("unpublished_misses", "Requests for a name that is unknown or withheld from the client."),
        (
            "unpublished_percent_misses",
            "Requests for an unpublished name that is withheld from the client.",
        ),
        ("queried_domains", "Different names in recent requests."),
    ):
        value: int = getattr(view.bootstrap, name)
        yield Series(f"counter_bootstrap_dns_{name}", help_text, value)


def _tls(view: RelayView, by_version: Counter[str]) -> Iterator[Series]:
    yield Series(
        "derper_tls_request_version",
        "HTTP requests by TLS version.",
        _by_one(view.tls_requests),
        ("version",),
        untyped=True,
    )
    yield Series(
        "gauge_derper_tls_active_version",
        "Open connections by TLS version.",
        _by_one(by_version),
        ("version",),
    )
    yield Series(
        "counter_accepted_connections",
        "Connections accepted by the main listener.",
        view.accepts.accepted,
        group="tls_listener",
    )
    yield Series(
        "counter_rejected_connections",
        "Connections closed at once because of the accept limit.",
        view.accepts.rejected,
        group="tls_listener",
    )


def _stun(view: RelayView) -> Iterator[Series]:
    stun = view.stun or StunCounters()
    for raw, label, names, help_text in (
        ("counter_requests", "disposition", _DISPOSITIONS, "UDP packets by result."),
        ("counter_addrfamily", "family", _FAMILIES, "Valid requests by address family."),
    ):
        values = {name: int(getattr(stun, name)) for name in names}
        yield Series(raw, help_text, _by_one(values), (label,), group="stun")
    yield Series(
        "counter_no_local_addr",
        "Valid requests for which the kernel did not report the destination address.",
        stun.no_local_addr,
        group="stun",
    )


def _process(view: RelayView) -> Iterator[Series]:
    yield Series("counter_uptime_sec", "Seconds since the start.", int(view.uptime))
    yield Series(
        "process_start_unix_time",
        "When the relay started, in seconds since 1970.",
        int(view.started),
        untyped=True,
    )
    boot = boot_time()
    if boot:
        yield Series(
            "node_boot_time_seconds",
            "When the machine started, in seconds since 1970.",
            boot,
            untyped=True,
        )
