"""`/debug/varz`: all metrics in Prometheus' text format."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Iterator
from typing import Final

from prometheus_client import CollectorRegistry, ProcessCollector
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

from pyderp.relay.counters import Histogram
from pyderp.server.conn.kernel import address_space_limit, network_bytes
from pyderp.server.site.metrics_derper import Series, gather_upstream
from pyderp.server.site.view import RelayView

__all__ = ["CONTENT_TYPE", "Metrics", "exposition", "own_series"]

# attribute of the counters, meaning
_RELAY: Final = (
    ("protocol_errors", "Connections closed as the peer broke the protocol."),
    ("watchers_closed", "Mesh peers closed as too many presence changes waited for them."),
    (
        "mesh_keys_not_noted",
        "PeerPresent of another relay that were not noted, as it had as many keys as it may.",
    ),
    (
        "peer_gone_not_sent",
        "PeerGone frames not sent, as too many other frames waited for a slow client.",
    ),
    (
        "sources_not_noted",
        "Forwarded packets whose new source was not noted, as a bound was reached.",
    ),
    (
        "watch_repeats_ignored",
        "WatchConns ignored as a whole picture waited for that watcher already.",
    ),
)
_ADMISSION: Final = (
    ("allowed", "Clients let in."),
    ("denied", "Clients turned away."),
    ("cache_hits", "Clients that a remembered answer decided about."),
    ("queries", "Questions to tailscaled, the admission URL or a function."),
    ("errors", "Questions that brought no usable answer."),
    ("failed_open", "Clients let in as nobody reached the admission URL."),
    ("crowded", "Clients turned away as too many were asked about at once."),
    ("revoked", "Keys whose connections were closed as they are no longer allowed."),
)


def own_series(view: RelayView) -> Iterator[Series]:
    """All of them, now. Those of a part that the relay does not have are missing."""
    counters = view.router.counters
    yield Series(
        "gauge_pyderp_connections",
        "Open connections, logged in or not.",
        len(view.protocols()),
    )
    yield Series(
        "gauge_pyderp_native",
        "Whether pyderp-fast does TLS and relays packets.",
        int(bool(view.native)),
    )
    yield Series(
        "pyderp_connections_ended_total",
        "Connections that ended, by why.",
        {(reason.value,): count for reason, count in counters.ends.items()},
        ("reason",),
    )
    for name, help_text in _RELAY:
        value: int = getattr(counters, name)
        yield Series(f"pyderp_{name}_total", help_text, value)
    if view.accepts is not None:
        yield Series(
            "pyderp_connections_shed_total",
            "Connections closed at once, as file descriptors ran out.",
            view.accepts.shed,
        )
    if view.limits is not None:
        yield Series(
            "gauge_pyderp_rate_limited_connections",
            "Connections that are not read from at the moment, as they exceed their limit.",
            len(view.limits.waiting),
        )
    yield from _admission(view)
    yield from _certificates(view)
    yield from _mesh(view)


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


def _mesh(view: RelayView) -> Iterator[Series]:
    if view.mesh is None:
        return
    links = [link for link in view.mesh.status() if not link.is_self]
    yield Series(
        "gauge_pyderp_mesh_link_up",
        "Whether the link to another relay is up.",
        {(link.host,): int(link.connected) for link in links},
        ("host",),
    )
    yield Series(
        "gauge_pyderp_mesh_link_peers",
        "Clients of another relay.",
        {(link.host,): link.peers for link in links},
        ("host",),
    )


CONTENT_TYPE: Final = "text/plain; version=0.0.4; charset=utf-8"
_BINARY: Final = "pyderp"


class Metrics:
    """The metrics of one relay and of its process.

    Args:
        view: the relay.
    """

    def __init__(self, view: RelayView) -> None:
        self._view = view
        # A registry of its own: what a program around the relay counts stays its business.
        self._process = CollectorRegistry()
        ProcessCollector(registry=self._process)

    async def text(self) -> bytes:
        """All of them, now."""
        series = [*await gather_upstream(self._view), *own_series(self._view)]
        # The library counts file descriptors one by one, which takes its time, too.
        await asyncio.sleep(0)
        metrics = [
            *self._process.collect(),
            *_more_of_the_process(),
            *map(_metric, sorted(series, key=lambda each: each.name)),
            self._version(),
        ]
        return exposition(metrics)

    def _version(self) -> Metric:
        metric = Metric("version", "Which program this is.", "unknown")
        metric.add_sample("version", {"version": self._view.version, "binary": _BINARY}, 1)
        return metric


def _metric(series: Series) -> Metric:
    name, value = series.name, series.value
    metric = Metric(name, series.help, series.kind)
    if isinstance(value, Histogram):
        for bound, count in value.cumulative():
            metric.add_sample(f"{name}_bucket", {"le": bound}, count)
        metric.add_sample(f"{name}_sum", {}, value.sum)
        metric.add_sample(f"{name}_count", {}, value.count)
    elif isinstance(value, int | float):
        metric.add_sample(name, {}, value)
    else:
        for labels, number in value.items():
            metric.add_sample(name, dict(zip(series.labels, labels, strict=True)), number)
    return metric


def _more_of_the_process() -> Iterator[Metric]:
    """What Go's client library tells of a process and Python's does not."""
    traffic = network_bytes()
    if traffic is not None:
        for what, number in zip(("receive", "transmit"), traffic, strict=True):
            yield CounterMetricFamily(
                f"process_network_{what}_bytes_total",
                "Bytes by IP in the network namespace of the process.",
                value=number,
            )
    yield GaugeMetricFamily(
        "process_virtual_memory_max_bytes",
        "Virtual memory that the process may have, in bytes.",
        value=address_space_limit(),
    )


def exposition(metrics: Iterable[Metric]) -> bytes:
    """Prometheus' text format, version 0.0.4.

    The library's own writer gives every counter a name that ends in `_total`, which those of
    `derper` do not. Here a counter is called what its samples are.
    """
    lines: list[str] = []
    for metric in metrics:
        name = metric.name
        if metric.type == "counter" and metric.samples:
            name = metric.samples[0].name
        kind = "untyped" if metric.type == "unknown" else metric.type
        lines += (f"# HELP {name} {_escape(metric.documentation)}", f"# TYPE {name} {kind}")
        for sample in metric.samples:
            labels = ",".join(f'{k}="{_escape(v, quoted=True)}"' for k, v in sample.labels.items())
            braces = f"{{{labels}}}" if labels else ""
            lines.append(f"{sample.name}{braces} {_number(sample.value)}")
    lines.append("")
    return "\n".join(lines).encode()


def _escape(text: str, *, quoted: bool = False) -> str:
    text = text.replace("\\", r"\\").replace("\n", r"\n")
    return text.replace('"', r"\"") if quoted else text


def _number(value: float) -> str:
    # Whole numbers as such: large ones have more digits than a float keeps.
    return str(value) if isinstance(value, int) else repr(float(value))
