"""Which region becomes home: the cases of Go's TestAddReportHistoryAndSetPreferredDERP."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import pytest

from pyderp.netcheck.home import History, HomeHints
from pyderp.netcheck.plan import MS

from .maps import report

SECOND = 1000 * MS
START = 1_000_000 * SECOND


@dataclass
class Step:
    """A report, this many seconds after the first, and the home that follows from it."""

    after: float
    latencies: Mapping[int, float]
    """Milliseconds."""


@dataclass
class Case:
    steps: list[Step]
    home: int
    kept: int
    scores: Mapping[int, float] = field(default_factory=dict)
    forced: int = 0
    frame: tuple[int, float] | None = None
    """Region, and seconds from the first report to its relay's last frame."""
    began: float = 0
    """Seconds from the first report to the begin of the last run."""


def s(**latencies: float) -> dict[int, float]:
    """`d1=2` → region 1, two seconds."""
    return {int(name[1:]): value * 1000 for name, value in latencies.items()}


def ms(**latencies: float) -> dict[int, float]:
    return {int(name[1:]): value for name, value in latencies.items()}


def each_second(*latencies: Mapping[int, float]) -> list[Step]:
    return [Step(number, each) for number, each in enumerate(latencies)]


FIRST = s(d1=2, d2=3)
TWO = [FIRST, s(d1=4, d2=3)]
GONE = [*TWO, s(d2=3)]
EPSILON = 1e-9
CASES = {
    "first_reading": Case(each_second(FIRST), 1, 1),
    "with_two": Case(each_second(*TWO), 1, 2),
    "but_now_d1_gone": Case(each_second(*GONE), 2, 3),
    "d1_is_back": Case(each_second(*GONE, s(d1=4, d2=3)), 1, 4),
    "things_clean_up": Case(
        [*each_second(*[s(d1=1, d2=2)] * 4), Step(600, s(d3=3))],
        3,
        1,
    ),
    "preferred_derp_hysteresis_no_switch": Case(each_second(s(d1=4, d2=5), s(d1=4, d2=3)), 1, 2),
    "hysteresis_no_switch_absolute": Case(each_second(ms(d1=4, d2=5), ms(d1=4, d2=1)), 1, 2),
    "hysteresis_no_switch_pct": Case(each_second(ms(d1=34, d2=35), ms(d1=34, d2=23)), 1, 2),
    "hysteresis_do_switch": Case(each_second(s(d1=4, d2=5), s(d1=4, d2=1)), 2, 2),
    "derp_home_params": Case(each_second(s(d1=10, d2=8)), 1, 1, scores={1: 2 / 3}),
    "derp_home_params_high_latency": Case(each_second(s(d1=100, d2=10)), 2, 1, scores={1: 2 / 3}),
    "derp_home_params_invalid": Case(each_second(s(d1=4, d2=5)), 1, 1, scores={1: 0, 2: -1}),
    "saw_derp_traffic": Case(
        [Step(0, s(d1=2, d2=3)), Step(10, s(d2=3))], 1, 2, frame=(1, 5), began=9
    ),
    "saw_derp_traffic_history": Case(
        [Step(0, s(d1=2, d2=3)), Step(10, s(d2=3))], 2, 2, frame=(1, 2 - EPSILON), began=9
    ),
    "a_frame_during_the_run": Case(
        [Step(0, s(d1=2, d2=3)), Step(100, s(d2=3))], 1, 2, frame=(1, 91), began=90
    ),
    "forced_two": Case(each_second(s(d1=2, d2=3)), 2, 1, forced=2),
    "forced_two_unavailable": Case(each_second(s(d1=2, d2=3), s(d1=4)), 1, 2, forced=2),
    "forced_two_no_probe_recent_activity": Case(
        [Step(0, s(d1=2)), Step(10, s(d1=4))], 2, 2, forced=2, frame=(2, 10), began=9
    ),
    "forced_two_no_probe_no_recent_activity": Case(
        [Step(0, s(d1=2)), Step(10, s(d1=4))], 1, 2, forced=2, frame=(2, 1), began=9
    ),
    "no_data_keep_home": Case(
        [Step(0, s(d1=2, d2=3)), *(Step(after, {}) for after in (5, 10, 20, 30, 38))],
        1,
        6,
        frame=(1, 0),
        began=37,
    ),
    "no_data_home_expires": Case(
        [Step(0, s(d1=2, d2=3)), Step(30, {}), Step(150, {})], 0, 3, frame=(1, 0), began=149
    ),
    "no_data_and_no_frames": Case(each_second(s(d1=2), {}), 0, 2),
    "equal_latencies_prefer_the_lower_id": Case(each_second(s(d7=2, d3=2)), 3, 1),
    "a_region_of_the_last_report_only": Case(each_second(s(d1=1), {}, s(d2=3)), 2, 3),
}


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_the_home_is_that_of_go(case: Case) -> None:
    """After the last step, with the number of remembered reports."""
    history = History()
    for step in case.steps:
        now = START + round(step.after * SECOND)
        frames = None
        if case.frame is not None:
            frames = {case.frame[0]: START + round(case.frame[1] * SECOND)}
        hints = HomeHints(
            started=START + round(case.began * SECOND),
            last_frame=frames,
            forced=case.forced,
            scores=case.scores,
        )
        history.add(report(step.latencies, now=now), hints)
    assert history.home == case.home
    assert len(history) == case.kept


def test_a_report_counts_for_305_seconds() -> None:
    for extra, kept in ((0, 2), (1, 1)):
        history = History()
        history.add(report({1: 10}, now=START))
        history.add(report({1: 10}, now=START + 305 * SECOND + extra))
        assert len(history) == kept


def test_an_interrupted_run_changes_no_home_and_finds_a_first_one() -> None:
    history = History()
    assert history.home_of(report({})) == 0
    assert history.home_of(report({1: 20, 2: 10})) == 2
    scores = HomeHints(scores={2: 4.0})
    assert history.home_of(report({1: 20, 2: 10}), scores) == 1
    assert (len(history), history.home) == (0, 0)
    history.add(report({1: 20}))
    assert history.home_of(report({2: 1})) == 1
    assert history.home_of(report({})) == 1
