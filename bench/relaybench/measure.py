"""Runs scenarios against relays in turn."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from .errors import BenchError
from .processes import RelayCommand, child, running_relay, tail
from .raw import Failure, RawFile, Sample
from .rows import Kind, Scenario
from .startup import measure_starts


@dataclass(frozen=True, slots=True)
class Settings:
    """Duration and number of runs, and the programs for them."""

    loadgen: Path
    work: Path
    """Directory for keys, certificate and logs."""

    seconds: float = 4.0
    rounds: int = 3
    conns: int = 2000
    minutes: float = 60.0
    """A scenario that would end later does not begin, as far as its duration is known."""

    pin: bool = False

    def loadgen_args(self, scenario: Scenario) -> list[str]:
        """Return the load generator's arguments, without the relay's address."""
        return scenario.command(self.seconds, self.conns)


Run = Callable[[RelayCommand, Scenario, Settings], Mapping[str, object]]


def measure(
    relays: Sequence[RelayCommand],
    scenarios: Sequence[Scenario],
    settings: Settings,
    out: RawFile,
    *,
    done: int = 0,
    run: Run | None = None,
    clock: Callable[[], float] = time.monotonic,
) -> int:
    """Run every scenario once a round, against each relay in turn; return how many runs failed.

    Rounds are the outer loop: a disturbance of minutes then affects one round of many rows, and a
    run that is stopped has all rows. `done` rounds are in the file already.
    """
    began = clock()
    took: dict[str, float] = {}
    failed = 0
    for number in range(done + 1, done + settings.rounds + 1):
        turn = number % len(relays)
        order = [*relays[turn:], *relays[:turn]]
        for i, scenario in enumerate(scenarios, 1):
            at = clock()
            if at + took.get(scenario.name, 0.0) > began + settings.minutes * 60:
                progress(f"{settings.minutes:g} minutes are over")
                return failed
            progress(
                f"[round {number}, {i}/{len(scenarios)}, {(at - began) / 60:.0f} min] "
                f"{scenario.title}"
            )
            failed += _each(order, scenario, settings, out, number, run or run_once)
            took[scenario.name] = clock() - at
    return failed


def _each(
    relays: Sequence[RelayCommand],
    scenario: Scenario,
    settings: Settings,
    out: RawFile,
    number: int,
    run: Run,
) -> int:
    failed = 0
    for relay in relays:
        try:
            sample = Sample(scenario.name, relay.name, number, run(relay, scenario, settings))
        except BenchError as exc:
            progress(f"    {relay.name}: {exc}")
            out.failure(Failure(scenario.name, relay.name, number, str(exc)))
            failed += 1
            continue
        progress(f"    {relay.name:<12} {_summary(sample)}")
        out.sample(sample)
    return failed


def run_once(relay: RelayCommand, scenario: Scenario, settings: Settings) -> Mapping[str, object]:
    """Start a fresh relay, put load on it, and return the figures."""
    if scenario.kind is Kind.STARTS:
        return measure_starts(relay, tls=scenario.tls, work=settings.work)
    on_relay = ("taskset", "-c", "0") if settings.pin else ()
    on_loadgen = ("taskset", "-c", "1") if settings.pin else ()
    log = settings.work / "loadgen.log"
    with running_relay(relay, tls=scenario.tls, work=settings.work, prefix=on_relay) as (pid, port):
        argv = [*on_loadgen, str(settings.loadgen)]
        argv += ["-addr", f"127.0.0.1:{port}", "-pid", str(pid)]
        argv += [*relay.loadgen_args, *settings.loadgen_args(scenario)]
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
        "p50_us": "p50 {:,.0f} µs",
        "p99_us": "p99 {:,.0f} µs",
        "send_lag_p99_us": "sent late p99 {:,.0f} µs",
        "max_pkts_per_s": "up to {:,.0f} packets/s",
        "server_us_per_connect": "{:.0f} µs a connect",
        "KiB_per_conn": "{:.2f} KiB each",
        "start_ms": "serves after {:.0f} ms",
        "rss_MiB": "{:.1f} MiB",
    }
    parts = [text.format(sample.number(key)) for key, text in shown.items() if key in sample.output]
    if sample.loss:
        parts.append(f"lost {sample.loss:.2%}")
    if sample.output.get("settled") is False:
        parts.append("memory never settled")
    return ", ".join(parts)


def progress(text: str) -> None:
    """Print a line about the progress on standard error."""
    sys.stderr.write(text + "\n")
    sys.stderr.flush()
