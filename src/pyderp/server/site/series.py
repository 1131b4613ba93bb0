"""Metrics by the names that `derper` gives them, each once for JSON and for Prometheus."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, TypeAlias

from pyderp.relay.histogram import Histogram

__all__ = ["Labelled", "Number", "Series"]

Number: TypeAlias = int | float
Labelled: TypeAlias = Mapping[tuple[str, ...], Number]
"""Values of the labels → number."""

_PREFIXES: Final = ("gauge_", "counter_")


@dataclass(frozen=True, slots=True)
class Series:
    """A metric and what it is now.

    Its raw name says what it is, as Go's `expvar` names do: `gauge_x`, `counter_x`; without
    a prefix it is a counter.
    """

    raw: str
    """The name in JSON, within its group."""

    help: str
    """What it counts, in one line."""

    value: Number | Histogram | Labelled

    labels: tuple[str, ...] = ()
    """Names of the labels; empty: it has none."""

    group: str = ""
    """The object in JSON that it stands in; Prometheus has it as a prefix."""

    untyped: bool = False
    """`derper` gives it no type."""

    @property
    def name(self) -> str:
        """The name for Prometheus."""
        name = self.raw
        for prefix in _PREFIXES:
            name = name.removeprefix(prefix)
        return f"{self.group}_{name}" if self.group else name

    @property
    def kind(self) -> str:
        """The type for Prometheus."""
        if isinstance(self.value, Histogram):
            return "histogram"
        if self.untyped:
            return "unknown"
        return "gauge" if self.raw.startswith("gauge_") else "counter"
