"""Running scenarios against relays in turn, and the figures that come of it."""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING

from .errors import BenchError
from .processes import child, running_relay, tail
from .rows import MAX_LOSS

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from .processes import RelayCommand
    from .rows import Row, Scenario


@dataclass(frozen=True, slots=True)
class Settings:
    """How long, how often, and with what."""

    loadgen: Path
    work: Path
    """Directory for keys, certificate and logs."""

    seconds: float = 5.0
    rounds: int = 3
    conns: int = 2000
    pin: bool = False

    def loadgen_args(self, scenario: Scenario) -> list[str]:
        """Return the load generator's arguments, without the relay's address."""
        return scenario.command(self.seconds, self.conns)


@dataclass(frozen=True, slots=True)
class Sample:
    """One run's result."""

    scenario: str
    relay: str
    round: int
    output: Mapping[str, object]
    """What the load generator printed."""

    def number(self, key: str) -> float:
        """Return one figure."""
        value = self.output.get(key)
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise BenchError(
                f"the load generator printed no {key}: if it is an old one, remove "
                "it, and it is built anew"
            )
        return float(value)

    @property
    def loss(self) -> float:
        """Fraction of packets that never arrived."""
        return self.number("lost_frac") if "lost_frac" in self.output else 0.0


def measure(
    relays: Sequence[RelayCommand], scenarios: Sequence[Scenario], settings: Settings
) -> list[Sample]:
    """Run every scenario, round by round, against each relay in turn."""
    out: list[Sample] = []
    for i, scenario in enumerate(scenarios, 1):
        progress(f"[{i}/{len(scenarios)}] {scenario.title}")
        for number in range(1, settings.rounds + 1):
            for relay in relays:
                output = run_once(relay, scenario, settings)
                sample = Sample(scenario.name, relay.name, number, output)
                progress(f"    round {number}  {relay.name:<8} {_summary(sample)}")
                out.append(sample)
    return out


def run_once(relay: RelayCommand, scenario: Scenario, settings: Settings) -> Mapping[str, object]:
    """Start a fresh relay, put load on it, and return what was measured."""
    on_relay = ("taskset", "-c", "0") if settings.pin else ()
    on_loadgen = ("taskset", "-c", "1") if settings.pin else ()
    log = settings.work / "loadgen.log"
    with running_relay(relay, tls=scenario.tls, work=settings.work, prefix=on_relay) as (pid, port):
        argv = [*on_loadgen, str(settings.loadgen)]
        argv += ["-addr", f"127.0.0.1:{port}", "-pid", str(pid)]
        argv += settings.loadgen_args(scenario)
        with child(argv, log) as process:
            try:
                status = process.wait(settings.seconds + 180)
            except subprocess.TimeoutExpired:
                raise BenchError(
                    f"the load generator did not finish against {relay.name}:\n{tail(log)}"
                ) from None
        if status != 0:
            raise BenchError(
                f"the load generator failed against {relay.name} "
                f"({scenario.title}):\n{tail(log)}\n  {relay.name} said:\n"
                f"{tail(settings.work / f'{relay.name}.log')}"
            )
    return parse_output(log.read_text(errors="replace"))


def parse_output(text: str) -> Mapping[str, object]:
    """Return the JSON object on the last line, after what the program logged."""
    try:
        output = json.loads(text.strip().splitlines()[-1])
    except (IndexError, ValueError):
        output = None
    if not isinstance(output, dict):
        raise BenchError(f"the load generator printed no JSON:\n    {text[-500:]}")
    return output


def _summary(sample: Sample) -> str:
    shown = {
        "server_us_per_pkt": "{:.2f} µs a packet",
        "pkts_per_s": "{:,.0f} packets/s",
        "p99_us": "p99 {:,.0f} µs",
        "server_us_per_connect": "{:.0f} µs a connect",
        "KiB_per_conn": "{:.2f} KiB each",
    }
    parts = [text.format(sample.number(key)) for key, text in shown.items() if key in sample.output]
    if sample.loss:
        parts.append(f"lost {sample.loss:.2%}")
    if sample.output.get("settled") is False:
        parts.append("memory never settled")
    return ", ".join(parts)


def progress(text: str) -> None:
    """Tell the user what goes on."""
    sys.stderr.write(text + "\n")
    sys.stderr.flush()


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
class Result:
    """A row's figures; the second relay's and the ratios may be missing."""

    row: Row
    a: Spread
    b: Spread | None
    ratio: float | None
    """Of the medians."""

    pairwise: Spread | None
    """Of the rounds' own ratios."""

    loss: float
    """Median of the relay that lost more."""

    @property
    def verdict(self) -> str:
        """One word on the target."""
        if self.row.target is None or self.ratio is None:
            return "-"
        if self.loss >= MAX_LOSS:
            return "invalid: loss"
        return "pass" if self.ratio <= self.row.target else "MISS"


def evaluate(row: Row, names: Sequence[str], samples: Sequence[Sample]) -> Result:
    """Compare the relays on a row."""
    runs = [
        [s for s in samples if s.scenario == row.scenario.name and s.relay == name]
        for name in names
    ]
    values = [[s.number(row.metric) for s in of_relay] for of_relay in runs]
    loss = max(statistics.median(s.loss for s in of_relay) for of_relay in runs)
    a = Spread.of(values[0])
    if len(values) == 1:
        return Result(row, a, None, None, None, loss)
    b = Spread.of(values[1])
    if min(values[1]) <= 0:
        raise BenchError(f"{names[1]} measured as {b.low} {row.unit}: run it longer")
    pairwise = Spread.of([x / y for x, y in zip(*values, strict=True)])
    return Result(row, a, b, a.median / b.median, pairwise, loss)
