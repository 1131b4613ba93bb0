"""Writes results as a Markdown page."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence

from .figures import (
    FAST,
    PURE,
    REFERENCE,
    Cell,
    Outcome,
    Result,
    Spread,
    evaluate,
    outcome,
    samples_of,
)
from .raw import Raw
from .rows import ROWS, SCENARIOS, TARGETS, Group, Scenario, Target

INTRO = """\
Medians, in brackets the lowest and the highest of {rounds} rounds of {seconds:g} s; a fresh relay
for every run, the relays in turn. CPU is user + system time of the relay's processes for each
delivered packet. A ratio is that of the medians to {reference}'s, in brackets the lowest and the
highest of the rounds' own ratios; below 1 is better than {reference}, but for packets/s, where
above 1 is. A note names each relay that lost 0.1 % of the packets or more; where one lost 1 %, the
row is void. [How to read this](README.md#how-to-read-the-results)."""

_CEILING = """\
The rate is raised by a quarter until a relay fails at it twice, and the last step is halved two
times. "loss": it lost more than 0.1 %. "back-pressure": it did not read as fast as the generator
wanted to write. "The generator's lack of CPU": the machine's cores, which both share, were busy, so
the relay may be able to do more, and the ratio says little."""

_CONTEXT = """\
Medians; of the loss, the worst run. Wall-clock figures belong to this machine and its
other guests: they only show that the load was alike, and which relay was short of CPU. "sent late"
is the generator itself: with 8 pairs each sender sleeps by Go's timers, which are up to a
millisecond late; with peers one thread keeps the time."""

NO_FIGURE = "–"
_SHORT_NOTES = ("lost", "ended", "failed", "not measured")
"""Beginnings of the notes that a short table has; the others are about the load generator."""


def as_markdown(raw: Raw, images: Sequence[tuple[str, str]] = ()) -> str:
    """Return the page; images are titles and links."""
    results = [evaluate(raw, row) for row in ROWS]
    measured = [r for r in results if r.cells]
    relays = list(raw.header.relays)
    title = f"# {' and '.join([', '.join(relays[:-1]), relays[-1]] if relays[1:] else relays)}"
    parts = [
        f"{title}, measured side by side",
        INTRO.format(rounds=raw.rounds, seconds=raw.header.seconds, reference=REFERENCE),
    ]
    if REFERENCE in relays and (PURE in relays or FAST in relays):
        parts += ["## Targets", targets_table(raw)]
    parts += [f"![{text}]({link})" for text, link in images]
    for group in Group:
        of_group = [r for r in measured if r.row.scenario.group is group]
        if of_group:
            parts += [f"## {group.value}", results_table(of_group, relays)]
        if of_group and group is Group.THROUGHPUT:
            parts.append(_CEILING)
    parts += ["## For context", _CONTEXT, _context_table(raw), *_tls(raw), *_missing(raw)]
    parts += ["## Where and with what", facts(raw), "## Commands"]
    commands = [raw.header.command, ""]
    commands += [f"{name}: {line}" for name, line in raw.header.commands.items()]
    parts.append("```\n" + "\n".join(commands) + "\n```")
    return "\n\n".join(parts) + "\n"


def targets_table(raw: Raw) -> str:
    """Return the table of the targets and whether they are met."""
    engines = [name for name in (PURE, FAST) if name in raw.header.relays]
    head = ["work", "figure"]
    for name in engines:
        head += [f"{name}: target", "ratio", ""]
    lines = [head, ["---"] * len(head)]
    for target in TARGETS:
        cells = [target.title, target.metric.unit]
        for name in engines:
            cells += _outcome_cells(target, outcome(raw, target, name))
        lines.append(cells)
    return table(lines)


def _outcome_cells(target: Target, found: Outcome) -> list[str]:
    if found.ratio is None:
        return [f"≤ {found.limit:.2f}", NO_FIGURE, found.verdict]
    where = ""
    if len(target.scenarios) > 1:
        where = f" ({found.where.split('-')[-1]} peers"
        where += f"; {found.measured} of {found.wanted} measured)" if found.missing else ")"
    return [f"≤ {found.limit:.2f}", f"**{found.ratio:.2f}**{where}", found.verdict]


def results_table(results: Sequence[Result], relays: Sequence[str], *, spread: bool = True) -> str:
    """Return rows with each relay's figure and ratio, and notes about them."""
    notes = any(r.notes or r.void for r in results)
    head = ["work", "figure"]
    for name in relays:
        head += [name] if name == REFERENCE or REFERENCE not in relays else [name, "ratio"]
    lines = [head + (["notes"] if notes else [])]
    lines.append(["---"] * len(lines[0]))
    for r in results:
        cells = [r.row.scenario.title, r.row.metric.unit]
        for name in relays:
            cells += _cells(r.cells.get(name), name, relays, spread=spread)
        if notes:
            said = [note for note in r.notes if spread or note.startswith(_SHORT_NOTES)]
            cells.append("; ".join([*(["**void**"] if r.void else []), *said]))
        lines.append(cells)
    return table(lines)


def _cells(cell: Cell | None, name: str, relays: Sequence[str], *, spread: bool) -> list[str]:
    compared = name != REFERENCE and REFERENCE in relays
    if cell is None:
        return [NO_FIGURE] * (2 if compared else 1)
    out = [show(cell.value) if spread else number(cell.value.median)]
    if compared:
        if cell.ratio is None or cell.pairwise is None:
            return [*out, NO_FIGURE]
        ratio = f"**{cell.ratio:.2f}**"
        if spread and cell.rounds > 1:
            ratio += f" ({cell.pairwise.low:.2f}-{cell.pairwise.high:.2f})"
        out.append(ratio)
    return out


def _context_table(raw: Raw) -> str:
    keys = {
        "pkts_per_s": "packets/s",
        "server_cpu_cores": "relay cores",
        "loadgen_cpu_cores": "load generator cores",
        "send_lag_p50_us": "sent late p50 µs",
        "send_lag_p99_us": "p99 µs",
        "connects_per_s": "connects/s",
        "MiB": "memory MiB",
    }
    head = ["work", "relay", *keys.values(), "lost"]
    lines = [head, ["---"] * len(head)]
    for scenario in SCENARIOS:
        for relay in raw.header.relays:
            runs = samples_of(raw, scenario, relay)
            cells = [
                number(statistics.median(s.number(key) for s in runs))
                if all(key in s.output for s in runs)
                else ""
                for key in (keys if runs else ())
            ]
            if not any(cells):
                continue
            lost = ""
            if "lost_frac" in runs[0].output:
                lost = f"{max(s.loss for s in runs):.2%}"
            lines.append([scenario.title, relay, *cells, lost])
    return table(lines)


def _tls(raw: Raw) -> list[str]:
    keys = ("tls_version", "tls_cipher", "tls_key_exchange")
    lines = []
    for relay in raw.header.relays:
        seen = {
            ", ".join(str(s.output[key]) for key in keys)
            for s in raw.samples
            if s.relay == relay and all(key in s.output for key in keys)
        }
        if seen:
            lines.append(f"- TLS with {relay}: {'; '.join(sorted(seen))}")
    return ["\n".join(lines)] if lines else []


def _missing(raw: Raw) -> list[str]:
    """Return the sections about scenarios that were not measured, and failed runs."""

    def lacks(scenario: Scenario) -> bool:
        return not all(samples_of(raw, scenario, name) for name in raw.header.relays)

    lines = [f"- {s.title}" for s in SCENARIOS if lacks(s)]
    out = ["## Not measured, or not with every relay", "\n".join(lines)] if lines else []
    if raw.failures:
        failed = [
            f"- round {f.round}, {f.relay}, {f.scenario}: {f.reason.splitlines()[0]}"
            for f in raw.failures
        ]
        out += ["## Failed runs", "\n".join(failed)]
    return out


def facts(raw: Raw) -> str:
    """Return machine and versions as a list."""
    header = raw.header
    lines: Mapping[str, str] = {"date": ", ".join(raw.dates), **header.machine, **header.versions}
    return "\n".join(f"- {key}: {value}" for key, value in lines.items())


def for_readme(results: Sequence[Result]) -> tuple[list[Result], list[Result]]:
    """Return the rows for the README, and the worst rows in which the reference is better.

    Of such rows with the same section, figure and transport only the worst: the curve has many.
    Void rows are left out: their ratios compare nothing.
    """
    engines = (PURE, FAST)
    worst: dict[tuple[Group, str, bool], Result] = {}
    valid = [r for r in results if not r.void]
    for r in valid:
        if not any(r.lost_by(name) for name in engines):
            continue
        kind = (r.row.scenario.group, r.row.metric.key, r.row.scenario.tls)
        old = worst.get(kind)
        if old is None or _badness(r) > _badness(old):
            worst[kind] = r
    return [r for r in valid if r.cells and r.row.readme], list(worst.values())


def _badness(result: Result) -> float:
    return max(result.badness(PURE), result.badness(FAST))


def table(lines: Sequence[Sequence[str]]) -> str:
    """Return a Markdown table."""
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines)


def show(s: Spread) -> str:
    """Return a median with its extremes."""
    if s.low == s.high:
        return number(s.median)
    return f"{number(s.median)} ({number(s.low)}-{number(s.high)})"


def number(value: float) -> str:
    """Return three digits of a number, or all before the point."""
    if abs(value) >= 100:
        return f"{value:,.0f}"
    return f"{value:.1f}" if abs(value) >= 10 else f"{value:.2f}"
