"""The order of runs, and what happens when one fails or the time is over."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest

from relaybench.errors import BenchError
from relaybench.measure import Settings, measure
from relaybench.processes import RelayCommand
from relaybench.raw import RawFile, read
from relaybench.rows import GROUPS, NAMES, QUICK, SCENARIOS, Kind, Scenario, select
from tests.bench.runs import header

RELAYS = [RelayCommand(name, "", {}) for name in ("derper", "pyderp")]
TWO = select(("single", "rate"))


class Bench:
    """Runs that only take their time."""

    def __init__(self, path: Path, **settings: float) -> None:
        self.path = path
        self.out = RawFile(path)
        self.out.begin(header())
        self.settings = Settings(path, path.parent, **settings)  # type: ignore[arg-type]
        self.now = 0.0
        self.failing = ""

    def run(
        self, relay: RelayCommand, scenario: Scenario, _settings: Settings
    ) -> Mapping[str, object]:
        self.now += 30
        if relay.name == self.failing:
            raise BenchError("it ended")
        return {"server_us_per_pkt": 1.0}

    def measure(self, done: int = 0) -> int:
        return measure(
            RELAYS, TWO, self.settings, self.out, done=done, run=self.run, clock=lambda: self.now
        )

    def order(self) -> list[tuple[int, str, str]]:
        return [(s.round, s.scenario, s.relay) for s in read(self.path).samples]


def test_relays_take_turns_and_rounds_are_outermost(tmp_path: Path) -> None:
    bench = Bench(tmp_path / "raw", rounds=2)
    assert bench.measure() == 0
    assert bench.order() == [
        (1, "single", "pyderp"),
        (1, "single", "derper"),
        (1, "rate", "pyderp"),
        (1, "rate", "derper"),
        (2, "single", "derper"),
        (2, "single", "pyderp"),
        (2, "rate", "derper"),
        (2, "rate", "pyderp"),
    ]


def test_later_rounds_have_later_numbers(tmp_path: Path) -> None:
    bench = Bench(tmp_path / "raw", rounds=1)
    bench.measure(done=4)
    assert {number for number, _, _ in bench.order()} == {5}


def test_no_scenario_begins_that_would_end_too_late(tmp_path: Path) -> None:
    bench = Bench(tmp_path / "raw", rounds=9, minutes=3.5)
    bench.measure()
    assert bench.now == 180  # a scenario takes a minute: three, and not a fourth
    assert len(bench.order()) == 6


def test_a_failing_run_is_recorded_and_the_others_go_on(tmp_path: Path) -> None:
    bench = Bench(tmp_path / "raw", rounds=1)
    bench.failing = "derper"
    assert bench.measure() == 2
    raw = read(tmp_path / "raw")
    assert [f.reason for f in raw.failures] == ["it ended", "it ended"]
    assert [s.relay for s in raw.samples] == ["pyderp", "pyderp"]


def test_no_scenario_has_the_name_of_a_group() -> None:
    assert not set(NAMES) & set(GROUPS)


def test_names_of_scenarios_are_unique_and_quick_runs_have_some_of_them() -> None:
    assert len(set(NAMES)) == len(SCENARIOS)
    assert {s.group for s in QUICK} == {s.group for s in SCENARIOS}


@pytest.mark.parametrize("scenario", SCENARIOS, ids=NAMES)
def test_a_title_names_the_transport(scenario: Scenario) -> None:
    assert ("TLS 1.3" in scenario.title) == scenario.tls
    command = scenario.command(4, 2000)
    assert ("-tls" in command) == (scenario.tls and scenario.kind is not Kind.STARTS)
    assert ("websocket" in scenario.title) == ("-ws" in command)
