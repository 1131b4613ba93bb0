"""`/debug/varz`: all metrics in Prometheus' text format."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Iterator
from typing import Final

from prometheus_client import CollectorRegistry, ProcessCollector
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

from pyderp.relay.histogram import Histogram
from pyderp.server.site.metrics_derper import gather_upstream
from pyderp.server.site.metrics_pyderp import own_series
from pyderp.server.site.process import address_space_limit, network_bytes
from pyderp.server.site.series import Series
from pyderp.server.site.view import RelayView

__all__ = ["CONTENT_TYPE", "Metrics", "exposition"]

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
