"""Draws plots of the results, as SVG."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.figure import Figure

from .figures import FAST, PURE, REFERENCE, Result, evaluate
from .raw import Raw
from .rows import CPU, CURVE_PEERS, P99, ROWS, Group, Metric, Row, curve

_COLOURS = {REFERENCE: "#7f7f7f", PURE: "#1f77b4", FAST: "#d62728"}
_OTHERS = "#2ca02c"
_WIDEST = 2.0
"""Larger ratios have a bar of this length, with the figure beside it."""

_SETTINGS: dict[Any, Any] = {
    "svg.hashsalt": "pyderp",  # so that equal figures make equal files
    "svg.fonttype": "none",
    "font.size": 9,
    "axes.grid": True,
    "grid.alpha": 0.3,
}


def draw(raw: Raw, folder: Path) -> list[tuple[str, str]]:
    """Draw all plots that the results suffice for; return title and file name of each."""
    folder.mkdir(parents=True, exist_ok=True)
    out = []
    with mpl.rc_context(_SETTINGS):
        for metric, name in ((CPU, "curve-cpu.svg"), (P99, "curve-p99.svg")):
            figure = _curve(raw, metric)
            if figure is not None:
                _save(figure, folder / name)
                out.append((f"{metric.unit} by the number of peers, 10,000 packets/s", name))
        figure = _ratios(raw)
        if figure is not None:
            _save(figure, folder / "ratios.svg")
            out.append(("Ratios to derper: left of the line is better", "ratios.svg"))
    return out


def _save(figure: Figure, path: Path) -> None:
    figure.savefig(path, format="svg", metadata={"Date": None, "Creator": None})
    # matplotlib leaves blanks at the ends of lines
    lines = path.read_text(encoding="utf-8").splitlines()
    path.write_text("\n".join(line.rstrip() for line in lines) + "\n", encoding="utf-8")


def _curve(raw: Raw, metric: Metric) -> Figure | None:
    """Draw a figure over the number of peers, without TLS and with it."""
    figure = Figure(figsize=(9, 3.6), layout="constrained")
    axes: Any = figure.subplots(1, 2, sharey=True)
    drawn = False
    for ax, tls in zip(axes, (False, True), strict=True):
        results = {n: evaluate(raw, Row(curve(n, tls=tls), metric)) for n in CURVE_PEERS}
        for relay in raw.header.relays:
            at = [n for n, r in results.items() if relay in r.cells]
            if not at:
                continue
            spreads = [results[n].cells[relay].value for n in at]
            middle = [s.median for s in spreads]
            bars = [
                [s.median - s.low for s in spreads],
                [s.high - s.median for s in spreads],
            ]
            colour = _COLOURS.get(relay, _OTHERS)
            ax.errorbar(at, middle, yerr=bars, label=relay, color=colour, marker="o", capsize=2)
            drawn = True
        ax.set_xlim(1.5, 7000)
        ax.set_xscale("log")
        ax.set_xticks(CURVE_PEERS, [f"{n:,}" for n in CURVE_PEERS])
        ax.minorticks_off()
        ax.set_xlabel("peers")
        ax.set_title("TLS 1.3" if tls else "no TLS")
        if metric is P99:
            ax.set_yscale("log")
    if not drawn:
        return None
    if metric is not P99:
        axes[0].set_ylim(0)  # after both are drawn, since they share the axis
    axes[0].set_ylabel(metric.unit)
    next(ax for ax in axes if ax.containers).legend()
    return figure


def _ratios(raw: Raw) -> Figure | None:
    """Draw each row's ratio as a bar, but for the curve, which has plots of its own."""
    engines = [name for name in raw.header.relays if name != REFERENCE]
    rows = [row for row in ROWS if row.scenario.group is not Group.CURVE]
    results = [r for r in (evaluate(raw, row) for row in rows) if _compared(r, engines)]
    if not results:
        return None
    figure = Figure(figsize=(9, 1.2 + 0.34 * len(results)), layout="constrained")
    ax: Any = figure.subplots()
    height = 0.8 / len(engines)
    for i, name in enumerate(engines):
        places = [y + (i - (len(engines) - 1) / 2) * height for y in range(len(results))]
        ratios = [r.badness(name) for r in results]
        colour = _COLOURS.get(name, _OTHERS)
        shown = [min(ratio, _WIDEST) for ratio in ratios]
        ax.barh(places, shown, height=height, label=name, color=colour)
        for place, ratio in zip(places, ratios, strict=True):
            if ratio > _WIDEST:
                ax.text(_WIDEST, place, f" {ratio:.1f}", va="center", fontsize=7)
    ax.axvline(1, color="black", linewidth=1)
    ax.set_yticks(range(len(results)), [_label(r) for r in results], fontsize=7)
    ax.invert_yaxis()
    ax.grid(visible=False, axis="y")
    ax.set_xlabel("ratio to derper (of packets/s its inverse): less is better")
    ax.legend()
    return figure


def _compared(result: Result, engines: list[str]) -> bool:
    return any(result.badness(name) for name in engines)


def _label(result: Result) -> str:
    title = result.row.scenario.title
    short = title if len(title) <= 60 else title[:57] + "…"
    return f"{short}: {result.row.metric.unit}"
