"""Results as a page to read and as JSON."""

from __future__ import annotations

import shlex
import statistics
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from .measure import Result, Sample, Settings, Spread
    from .processes import RelayCommand
    from .rows import Scenario


@dataclass(frozen=True, slots=True)
class Run:
    """All there is to tell about a run."""

    date: str
    command: str
    machine: Mapping[str, str]
    versions: Mapping[str, str]
    settings: Settings
    relays: Sequence[RelayCommand]
    scenarios: Sequence[Scenario]
    samples: Sequence[Sample]
    results: Sequence[Result]


def as_json(run: Run) -> dict[str, object]:
    """Return everything measured, for other programs."""
    s = run.settings
    return {
        "date": run.date,
        "command": run.command,
        "machine": run.machine,
        "versions": run.versions,
        "settings": {
            "seconds": s.seconds,
            "rounds": s.rounds,
            "conns": s.conns,
            "pin": s.pin,
        },
        "commands": _commands(run),
        "results": [
            {
                "row": r.row.number,
                "scenario": r.row.scenario.name,
                "metric": r.row.metric,
                "target": r.row.target,
                run.relays[0].name: asdict(r.a),
                **({run.relays[1].name: asdict(r.b)} if r.b else {}),
                "ratio": r.ratio,
                "pairwise": asdict(r.pairwise) if r.pairwise else None,
                "loss": r.loss,
                "verdict": r.verdict,
            }
            for r in run.results
        ],
        "samples": [asdict(sample) for sample in run.samples],
    }


def as_markdown(run: Run) -> str:
    """Return the page."""
    parts = [
        f"# {' and '.join(r.name for r in run.relays)}, measured side by side",
        _INTRO.format(rounds=run.settings.rounds, seconds=run.settings.seconds),
        _results_table(run),
        "## For context",
        _CONTEXT,
        _context_table(run),
        *_tls(run),
        "## Where and with what",
        _facts({"date": run.date, **run.machine, **run.versions}),
        "## Commands",
        f"```\n{_command_lines(run)}\n```",
    ]
    return "\n\n".join(parts) + "\n"


_INTRO = """\
Medians of {rounds} rounds of {seconds:g} s, in brackets the lowest and the highest; a
fresh relay for every run, the relays in turn. CPU is user + system time of the relay's
processes. The ratio is that of the medians, in brackets the lowest and the highest of
the rounds' own ratios. A row where a relay loses 1 % of the packets or more (median) is
not valid.
`bench/README.md` tells how to read this."""

_CONTEXT = """\
Medians; of the loss, the worst run. Wall-clock figures belong to this machine and its
other guests: they only show that the load was alike, and who was short of CPU."""


def _results_table(run: Run) -> str:
    names = [r.name for r in run.relays]
    head = ["#", "work", "figure", *names]
    if len(names) > 1:
        head += ["ratio", "target", ""]
    lines = [head, ["---"] * len(head)]
    for r in run.results:
        cells = [str(r.row.number), r.row.scenario.title, r.row.unit, _spread(r.a)]
        if r.b is not None and r.ratio is not None and r.pairwise is not None:
            target = "-" if r.row.target is None else f"≤ {r.row.target:.2f}"
            ratio = f"**{r.ratio:.2f}** ({r.pairwise.low:.2f}-{r.pairwise.high:.2f})"
            cells += [_spread(r.b), ratio, target, r.verdict]
        lines.append(cells)
    return _table(lines)


def _context_table(run: Run) -> str:
    keys = {
        "pkts_per_s": "packets/s",
        "server_cpu_cores": "relay cores",
        "loadgen_cpu_cores": "load generator cores",
        "p50_us": "p50 µs",
        "send_lag_p99_us": "sender late p99 µs",
        "connects_per_s": "connects/s",
        "MiB": "memory MiB",
    }
    head = ["work", "relay", *keys.values(), "lost"]
    lines = [head, ["---"] * len(head)]
    for scenario in run.scenarios:
        for relay in run.relays:
            runs = _runs(run, scenario, relay)
            cells = [
                _number(statistics.median(s.number(key) for s in runs))
                if all(key in s.output for s in runs)
                else ""
                for key in keys
            ]
            lost = ""
            if "lost_frac" in runs[0].output:
                lost = f"{max(s.loss for s in runs):.2%}"
            lines.append([scenario.title, relay.name, *cells, lost])
    return _table(lines)


def _tls(run: Run) -> list[str]:
    keys = ("tls_version", "tls_cipher", "tls_key_exchange")
    lines = []
    for relay in run.relays:
        seen = {
            ", ".join(str(s.output[key]) for key in keys)
            for s in run.samples
            if s.relay == relay.name and all(key in s.output for key in keys)
        }
        if seen:
            lines.append(f"- TLS with {relay.name}: {'; '.join(sorted(seen))}")
    return ["\n".join(lines)] if lines else []


def _runs(run: Run, scenario: Scenario, relay: RelayCommand) -> list[Sample]:
    return [s for s in run.samples if s.scenario == scenario.name and s.relay == relay.name]


def _commands(run: Run) -> dict[str, object]:
    kinds = {s.tls: "TLS" if s.tls else "no TLS" for s in run.scenarios}
    return {
        "relays": {
            relay.name: {kind: shlex.join(relay.words(tls=tls)) for tls, kind in kinds.items()}
            for relay in run.relays
        },
        "loadgen": {s.name: shlex.join(run.settings.loadgen_args(s)) for s in run.scenarios},
    }


def _command_lines(run: Run) -> str:
    lines = [run.command, ""]
    for tls in sorted({s.tls for s in run.scenarios}):
        lines += [" ".join(relay.words(tls=tls)) for relay in run.relays]
    lines.append("")
    lines += [
        " ".join(
            (
                "loadgen -addr 127.0.0.1:{port} -pid {pid}",
                *run.settings.loadgen_args(scenario),
            )
        )
        for scenario in run.scenarios
    ]
    return "\n".join(lines)


def _facts(facts: Mapping[str, str]) -> str:
    return "\n".join(f"- {key}: {value}" for key, value in facts.items())


def _table(lines: Sequence[Sequence[str]]) -> str:
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines)


def _spread(s: Spread) -> str:
    return f"{_number(s.median)} ({_number(s.low)}-{_number(s.high)})"


def _number(value: float) -> str:
    """Show three digits, or all before the point."""
    if abs(value) >= 100:
        return f"{value:,.0f}"
    return f"{value:.1f}" if abs(value) >= 10 else f"{value:.2f}"
