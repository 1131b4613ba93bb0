"""Figures made from samples: medians, spreads, ratios, and notes about their flaws."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from .errors import BenchError
from .raw import Raw, Sample
from .rows import MAX_LOSS, MAX_OWN_LOSS, Row, Scenario, Target

REFERENCE = "derper"
PURE = "pyderp"
FAST = "pyderp-fast"

MAX_LATE_US = 1000.0
"""Microseconds, p99; a generator that sends later than this lacked CPU. Go's timers cause about
half of it."""

MAX_LEFT_OUT = 0.01
"""Fraction of the packets that the generator did not send; for more there is a note."""


@dataclass(frozen=True, slots=True)
class Spread:
    """Median and extremes of the rounds."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        """Summarize at least one value."""
        return cls(statistics.median(values), min(values), max(values))


@dataclass(frozen=True, slots=True)
class Cell:
    """One relay's figure in a row."""

    value: Spread
    rounds: int
    loss: float
    """Median fraction of packets lost."""

    ratio: float | None = None
    """Ratio of the medians, to the reference; `None` for the reference, and without one."""

    pairwise: Spread | None = None
    """Median and extremes of the ratios of runs in the same round."""


@dataclass(frozen=True, slots=True)
class Result:
    """A row's figures."""

    row: Row
    cells: dict[str, Cell]
    """By relay; relays without a sample are missing."""

    notes: tuple[str, ...]

    @property
    def void(self) -> bool:
        """Whether a relay lost so many packets that the figures cannot be compared."""
        return any(cell.loss >= MAX_LOSS for cell in self.cells.values())

    def lost_by(self, relay: str) -> bool:
        """Whether the relay is worse than the reference."""
        cell = self.cells.get(relay)
        if cell is None or cell.ratio is None:
            return False
        return cell.ratio < 1 if self.row.metric.more_is_better else cell.ratio > 1

    def badness(self, relay: str) -> float:
        """Return how many times worse than the reference the relay is; 0 without a ratio."""
        cell = self.cells.get(relay)
        if cell is None or not cell.ratio:
            return 0.0
        return 1 / cell.ratio if self.row.metric.more_is_better else cell.ratio


@dataclass(frozen=True, slots=True)
class Outcome:
    """The result of a target for one engine."""

    limit: float
    ratio: float | None
    where: str = ""
    """Name of the worst scenario, if there are several."""

    measured: int = 0
    wanted: int = 0
    void: bool = False

    @property
    def missing(self) -> bool:
        """Whether not all of its scenarios were measured."""
        return self.measured < self.wanted

    @property
    def verdict(self) -> str:
        """The result in a few words."""
        if self.ratio is None:
            return "not measured"
        if self.void:
            return "void: loss"
        return "met" if self.ratio <= self.limit else "MISSED"


def samples_of(raw: Raw, scenario: Scenario, relay: str) -> list[Sample]:
    """Return the runs of a scenario against a relay, by round."""
    found = [s for s in raw.samples if s.scenario == scenario.name and s.relay == relay]
    return sorted(found, key=lambda s: s.round)


def evaluate(raw: Raw, row: Row) -> Result:
    """Return the figures of a row."""
    key = row.metric.key
    runs = {name: samples_of(raw, row.scenario, name) for name in raw.header.relays}
    # With few connections, the memory may even shrink; a ratio to that makes no sense.
    base = {s.round: s.number(key) for s in runs.get(REFERENCE, ()) if s.number(key) > 0}
    cells: dict[str, Cell] = {}
    for name, found in runs.items():
        if not found:
            continue
        value = Spread.of([s.number(key) for s in found])
        loss = statistics.median(s.loss for s in found)
        ratio = pairwise = None
        pairs = [s.number(key) / base[s.round] for s in found if s.round in base]
        if name != REFERENCE and pairs:
            # Only of rounds that both have: the last round may be incomplete.
            both = [s.number(key) for s in found if s.round in base]
            rounds = {s.round for s in found}
            theirs = [v for number, v in base.items() if number in rounds]
            ratio = statistics.median(both) / statistics.median(theirs)
            pairwise = Spread.of(pairs)
        cells[name] = Cell(value, len(found), loss, ratio, pairwise)
    return Result(row, cells, _notes(raw, row, runs))


def _notes(raw: Raw, row: Row, runs: Mapping[str, list[Sample]]) -> tuple[str, ...]:
    """Return the notes about a row, each with the relays that it is about."""
    said: dict[str, list[str]] = {}

    def say(what: str, name: str, figure: str = "") -> None:
        said.setdefault(what, []).append(f"{name} {figure}".rstrip())

    for name, found in runs.items():
        failed = [f for f in raw.failures if (f.scenario, f.relay) == (row.scenario.name, name)]
        if failed:
            say("failed runs", name, str(len(failed)))
        if not found:
            say("not measured", name)
            continue
        if all(s.number(row.metric.key) <= 0 for s in found):
            say("measured as nothing, so run it longer", name)
        loss = statistics.median(s.loss for s in found)
        if loss >= MAX_OWN_LOSS:
            say("lost", name, f"{loss:.2%}")
        left = _median(found, lambda s: s.number("left_out") / max(1.0, s.number("sent")))
        if left is not None and left > MAX_LEFT_OUT:
            say("left out by the generator", name, f"{left:.1%}")
        late = _median(found, lambda s: s.number("send_lag_p99_us"))
        if left is not None and late is not None and late > MAX_LATE_US:
            say("generator late (p99)", name, f"{late / 1000:.1f} ms")
        for limit in sorted({str(s.output["limited_by"]) for s in found if _limited(s)}):
            say(f"ended by {limit}", name)
    return tuple(f"{what}: {', '.join(names)}" for what, names in said.items())


def _limited(sample: Sample) -> bool:
    return bool(sample.output.get("limited_by"))


def _median(found: Sequence[Sample], figure: Callable[[Sample], float]) -> float | None:
    """Return the median of a figure; `None` if the scenario does not have it."""
    try:
        return statistics.median(figure(s) for s in found)
    except BenchError:
        return None


def outcome(raw: Raw, target: Target, relay: str) -> Outcome:
    """Return the result of a target: that of the worst of its scenarios."""
    limit = target.fast if relay == FAST else target.pure
    wanted = len(target.scenarios)
    worst: Result | None = None
    measured = 0
    for scenario in target.scenarios:
        result = evaluate(raw, Row(scenario, target.metric))
        if result.badness(relay) == 0:
            continue
        measured += 1
        if worst is None or result.badness(relay) > worst.badness(relay):
            worst = result
    if worst is None:
        return Outcome(limit, None, wanted=wanted)
    where = worst.row.scenario.name if wanted > 1 else ""
    return Outcome(limit, worst.cells[relay].ratio, where, measured, wanted, worst.void)
