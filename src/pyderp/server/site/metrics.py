"""The metrics that only pyderp has, those of the process, and all metrics as text or JSON."""

from __future__ import annotations

import json
import os
import resource
from collections import Counter
from collections.abc import Iterable, Iterator
from typing import Any, Final

from pyderp.relay.counters import Histogram
from pyderp.server.conn.kernel import (
    address_space_limit,
    boot_time,
    network_bytes,
    open_files_now,
)
from pyderp.server.site.degraded import parts_in_use, troubles
from pyderp.server.site.metrics_derper import Number, Series, gather_upstream
from pyderp.server.site.view import RelayView

__all__ = ["CONTENT_TYPE", "exposition", "metrics_text", "own_series", "variables"]

# The attribute of the counters, and the help text.
_RELAY: Final = (
    ("protocol_errors", "Connections closed because the peer broke the protocol."),
    ("watchers_closed", "Mesh peers closed because too many presence changes waited for them."),
    (
        "mesh_keys_not_noted",
        "PeerPresent frames of another relay ignored because it had too many keys.",
    ),
    (
        "peer_gone_not_sent",
        "PeerGone frames not sent because too many other frames waited for a slow client.",
    ),
    (
        "sources_not_noted",
        "Forwarded packets whose new source was not noted because a limit was reached.",
    ),
    (
        "watch_repeats_ignored",
        "WatchConns ignored because a full list waited for that watcher already.",
    ),
)
_ADMISSION: Final = (
    ("allowed", "Clients allowed to log in."),
    ("denied", "Clients refused."),
    ("cache_hits", "Clients decided by a remembered answer."),
    ("queries", "Questions to tailscaled, the admission URL or a function."),
    ("errors", "Questions without a usable answer."),
    ("failed_open", "Clients allowed because the admission URL was unreachable."),
    ("crowded", "Clients refused because too many questions were waiting."),
    ("revoked", "Keys whose connections were closed because they are no longer allowed."),
)


def own_series(view: RelayView) -> Iterator[Series]:
    """Yield the current metrics that only pyderp has, of the parts that the relay has."""
    counters = view.router.counters
    yield Series(
        "gauge_pyderp_connections",
        "Open connections, logged in or not.",
        len(view.protocols),
    )
    yield Series(
        "gauge_pyderp_native",
        "Whether pyderp-fast does TLS and relays packets.",
        int(bool(view.native)),
    )
    yield Series(
        "pyderp_connections_ended_total",
        "Connections that ended, by reason.",
        {(reason.value,): count for reason, count in counters.ends.items()},
        ("reason",),
    )
    for name, help_text in _RELAY:
        value: int = getattr(counters, name)
        yield Series(f"pyderp_{name}_total", help_text, value)
    yield Series(
        "pyderp_connections_shed_total",
        "Connections closed at once because file descriptors ran out.",
        view.accepts.shed,
    )
    if view.limits is not None:
        yield Series(
            "gauge_pyderp_rate_limited_connections",
            "Connections that are not read at the moment because they exceed their limit.",
            len(view.limits.waiting),
        )
    yield from _degraded(view)
    yield from _admission(view)
    yield from _certificates(view)
    yield from _mesh(view)


def _degraded(view: RelayView) -> Iterator[Series]:
    count = Counter(trouble.part for trouble in troubles(view))
    yield Series(
        "gauge_pyderp_degraded",
        "Current troubles of the relay, by the part that does not work; /debug/check lists them.",
        {(part.value,): count[part] for part in sorted({*parts_in_use(view), *count})},
        ("part",),
    )


def _admission(view: RelayView) -> Iterator[Series]:
    if view.admission is not None:
        for name, help_text in _ADMISSION:
            value: int = getattr(view.admission.counters, name)
            yield Series(f"pyderp_admission_{name}_total", help_text, value)


def _certificates(view: RelayView) -> Iterator[Series]:
    expiry: dict[tuple[str, ...], float] = {}
    for certificate in view.certificates():
        end = certificate.not_after.timestamp()
        for name in certificate.names:
            expiry[(name,)] = min(end, expiry.get((name,), end))
    if expiry:
        yield Series(
            "gauge_pyderp_certificate_expiry_timestamp_seconds",
            "When the certificate for a name expires, in seconds since 1970.",
            expiry,
            ("name",),
        )
    states = view.certificate_states()
    if not states:
        return
    yield Series(
        "gauge_pyderp_certificate_missing",
        "1 if there is no certificate for a name, so that every handshake for it fails.",
        {(state.name,): int(state.info is None) for state in states},
        ("name",),
    )
    yield Series(
        "gauge_pyderp_certificate_failures",
        "Failed attempts in a row to obtain or reload the certificate for a name.",
        {(state.name,): state.failures for state in states},
        ("name",),
    )
    due: dict[tuple[str, ...], float] = {
        (state.name,): state.next_try for state in states if state.next_try is not None
    }
    if due:
        yield Series(
            "gauge_pyderp_certificate_next_try_timestamp_seconds",
            "When the authority is asked next for the certificate for a name, in seconds since "
            "1970.",
            due,
            ("name",),
        )


def _mesh(view: RelayView) -> Iterator[Series]:
    if view.mesh is None:
        return
    links = [link for link in view.mesh.status() if not link.is_self]
    yield Series(
        "gauge_pyderp_mesh_link_up",
        "1 if the mesh link to another relay is up.",
        {(link.host,): int(link.connected) for link in links},
        ("host",),
    )
    yield Series(
        "gauge_pyderp_mesh_link_peers",
        "Clients that are connected to another relay of the mesh.",
        {(link.host,): link.peers for link in links},
        ("host",),
    )


CONTENT_TYPE: Final = "text/plain; version=0.0.4; charset=utf-8"


async def metrics_text(view: RelayView) -> bytes:
    """Return all current metrics of a relay and of its process, as text for Prometheus."""
    series = [*await gather_upstream(view), *own_series(view)]
    version = Series(
        "version",
        "Version and name of the program.",
        {(view.version, "pyderp"): 1},
        ("version", "binary"),
        untyped=True,
    )
    by_name = sorted(series, key=lambda each: each.name)
    return exposition([*_process(), *_limits_of_the_process(), *by_name, version])


def _process() -> Iterator[Series]:
    """Yield the metrics of the process that Prometheus' client libraries have, with their texts."""
    try:
        with open("/proc/self/stat", "rb") as stat:
            # The program's name is in parentheses, and may itself have spaces and parentheses.
            fields = stat.read().rpartition(b")")[2].split()
    except OSError:
        return  # not Linux
    ticks = os.sysconf("SC_CLK_TCK")
    memory = float(fields[21]) * os.sysconf("SC_PAGE_SIZE")
    started = boot_time() + int(fields[19]) / ticks
    cpu = (int(fields[11]) + int(fields[12])) / ticks
    max_fds = float(resource.getrlimit(resource.RLIMIT_NOFILE)[0])
    for raw, help_text, value in (
        ("gauge_process_virtual_memory_bytes", "Virtual memory size in bytes.", float(fields[20])),
        ("gauge_process_resident_memory_bytes", "Resident memory size in bytes.", memory),
        (
            "gauge_process_start_time_seconds",
            "Start time of the process since unix epoch in seconds.",
            started,
        ),
        ("process_cpu_seconds_total", "Total user and system CPU time spent in seconds.", cpu),
        ("gauge_process_open_fds", "Number of open file descriptors.", open_files_now()),
        ("gauge_process_max_fds", "Maximum number of open file descriptors.", max_fds),
    ):
        yield Series(raw, help_text, value)


def _limits_of_the_process() -> Iterator[Series]:
    """Yield the metrics of the process that only Go's client library has."""
    traffic = network_bytes()
    if traffic is not None:
        for what, number in zip(("receive", "transmit"), traffic, strict=True):
            yield Series(
                f"process_network_{what}_bytes_total",
                "IP bytes in the network namespace of the process.",
                number,
            )
    yield Series(
        "gauge_process_virtual_memory_max_bytes",
        "Virtual memory that the process may have, in bytes.",
        address_space_limit(),
    )


def exposition(metrics: Iterable[Series]) -> bytes:
    """Return metrics in Prometheus' text format, version 0.0.4.

    Prometheus' library is not used for it: it ends the name of every counter in `_total`, unlike
    `derper`, and writes large numbers without their last digits.
    """
    lines: list[str] = []
    for series in metrics:
        name = series.name
        lines += (f"# HELP {name} {_escape(series.help)}", f"# TYPE {name} {series.kind}")
        lines += (f"{sample} {_number(value)}" for sample, value in _samples(series))
    lines.append("")
    return "\n".join(lines).encode()


def _samples(series: Series) -> Iterator[tuple[str, Number]]:
    name, value = series.name, series.value
    if isinstance(value, Histogram):
        for bound, count in value.cumulative():
            yield f'{name}_bucket{{le="{bound}"}}', count
        yield f"{name}_sum", value.sum
        yield f"{name}_count", value.count
    elif isinstance(value, int | float):
        yield name, value
    else:
        for labels, number in value.items():
            pairs = zip(series.labels, labels, strict=True)
            text = ",".join(f'{label}="{_escape(each, quoted=True)}"' for label, each in pairs)
            yield f"{name}{{{text}}}", number


def _escape(text: str, *, quoted: bool = False) -> str:
    text = text.replace("\\", r"\\").replace("\n", r"\n")
    return text.replace('"', r"\"") if quoted else text


def _number(value: float) -> str:
    # Integers are not converted to float, which would lose digits of large ones.
    return str(value) if isinstance(value, int) else repr(float(value))


async def variables(view: RelayView) -> bytes:
    """Return all current metrics as JSON, under their raw names with `gauge_` and `counter_`."""
    derp: dict[str, Any] = {"version": view.version}
    top: dict[str, Any] = {"version": view.version, "derp": derp}
    for series in [*await gather_upstream(view), *own_series(view)]:
        group = top.setdefault(series.group, {}) if series.group else top
        group[series.raw] = _nested(series)
    top["derp"] = dict(sorted(derp.items()))
    return json.dumps(dict(sorted(top.items())), indent=1).encode() + b"\n"


def _nested(series: Series) -> object:
    """Return the value of a metric, with an object for each label."""
    value = series.value
    if isinstance(value, Histogram):
        return {**dict(value.cumulative()), "sum": value.sum, "count": value.count}
    if isinstance(value, int | float):
        return value
    nested: dict[str, Any] = {}
    for labels, number in value.items():
        into = nested
        for label in labels[:-1]:
            into = into.setdefault(label, {})
        into[labels[-1]] = number
    return nested
