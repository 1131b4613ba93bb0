"""`/debug/vars`: all metrics as JSON, in the form of Go's `expvar`."""

from __future__ import annotations

import json
from typing import Any

from pyderp.relay.histogram import Histogram
from pyderp.server.site.metrics_derper import gather_upstream
from pyderp.server.site.metrics_pyderp import own_series
from pyderp.server.site.series import Number, Series
from pyderp.server.site.view import RelayView

__all__ = ["variables"]


async def variables(view: RelayView) -> bytes:
    """All of them, now. Names are raw ones, with `gauge_` and `counter_` before them."""
    top: dict[str, Any] = {"version": view.version, "derp": {"version": view.version}}
    for series in [*await gather_upstream(view), *own_series(view)]:
        group = top.setdefault(series.group, {}) if series.group else top
        group[series.raw] = _value(series)
    ordered = {
        name: dict(sorted(value.items())) if name == "derp" else value
        for name, value in sorted(top.items())
    }
    return json.dumps(ordered, indent=1).encode() + b"\n"


def _value(series: Series) -> object:
    value = series.value
    if isinstance(value, Histogram):
        return {**dict(value.cumulative()), "sum": value.sum, "count": value.count}
    if isinstance(value, int | float):
        return value
    nested: dict[str, Any] = {}
    for labels, number in value.items():
        _put(nested, labels, number)
    return nested


def _put(into: dict[str, Any], labels: tuple[str, ...], number: Number) -> None:
    for label in labels[:-1]:
        into = into.setdefault(label, {})
    into[labels[-1]] = number
