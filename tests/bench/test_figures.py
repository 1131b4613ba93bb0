"""Figures of the benchmark: medians, ratios, loss, targets."""

from __future__ import annotations

from pathlib import Path

import pytest

from relaybench.figures import Spread, evaluate, outcome
from relaybench.raw import Failure, RawFile, read
from relaybench.rows import CEILING, CPU, CURVE_PEERS, SCENARIOS, TARGETS, Row
from tests.bench.runs import cpu, write

SCENARIO = {s.name: s for s in SCENARIOS}
SINGLE = Row(SCENARIO["single"], CPU)
CURVE_TARGET = TARGETS[2]


def test_a_ratio_is_of_medians_and_its_spread_of_rounds(tmp_path: Path) -> None:
    figures = {"derper": cpu(10, 20, 40), "pyderp": cpu(5, 16, 8)}
    result = evaluate(write(tmp_path / "raw", "single", figures), SINGLE)
    cell = result.cells["pyderp"]
    assert (cell.value, cell.ratio) == (Spread(8, 5, 16), 8 / 20)
    assert cell.pairwise == Spread(0.5, 0.2, 0.8)
    assert result.cells["derper"].ratio is None
    assert "not measured: pyderp-fast" in result.notes


def test_a_round_that_was_cut_short_does_not_count_in_the_ratio(tmp_path: Path) -> None:
    figures = {"derper": cpu(10, 10), "pyderp": cpu(5, 5, 500)}
    cell = evaluate(write(tmp_path / "raw", "single", figures), SINGLE).cells["pyderp"]
    assert (cell.ratio, cell.rounds, cell.value.high) == (0.5, 3, 500)


@pytest.mark.parametrize(
    ("lost", "note", "void"), [(0.0009, False, False), (0.001, True, False), (0.01, True, True)]
)
def test_a_row_has_the_loss(tmp_path: Path, lost: float, note: bool, void: bool) -> None:
    figures = {"derper": cpu(10), "pyderp": cpu(5, lost=lost)}
    result = evaluate(write(tmp_path / "raw", "single", figures), SINGLE)
    assert (f"lost: pyderp {lost:.2%}" in result.notes, result.void) == (note, void)


def test_a_row_has_the_delay_of_the_generator(tmp_path: Path) -> None:
    output = {**cpu(5)[0], "send_lag_p99_us": 2500.0, "left_out": 300, "sent": 10_000}
    row = Row(SCENARIO["peers-100"], CPU)
    raw = write(tmp_path / "raw", "peers-100", {"derper": [output], "pyderp": [output]})
    notes = evaluate(raw, row).notes
    assert "generator late (p99): derper 2.5 ms, pyderp 2.5 ms" in notes
    assert "left out by the generator: derper 3.0%, pyderp 3.0%" in notes


def test_more_packets_a_second_are_better(tmp_path: Path) -> None:
    figures = {
        "derper": [{"max_pkts_per_s": 100_000, "limited_by": "loss"}],
        "pyderp": [{"max_pkts_per_s": 50_000, "limited_by": "back-pressure"}],
        "pyderp-fast": [{"max_pkts_per_s": 200_000, "limited_by": "loss"}],
    }
    raw = write(tmp_path / "raw", "ceiling", figures)
    result = evaluate(raw, Row(SCENARIO["ceiling"], CEILING))
    assert [result.lost_by(name) for name in figures] == [False, True, False]
    assert (result.badness("pyderp"), result.badness("pyderp-fast")) == (2, 0.5)
    assert result.notes == (
        "ended by loss: derper, pyderp-fast",
        "ended by back-pressure: pyderp",
    )


def test_a_target_is_for_the_worst_of_its_scenarios(tmp_path: Path) -> None:
    path = tmp_path / "raw"
    for peers in CURVE_PEERS:
        ours = {2: 99.0, 500: 9.0}.get(peers, 8.0)
        write(path, f"tls-peers-{peers}", {"derper": cpu(10), "pyderp-fast": cpu(ours)})
    found = outcome(read(path), CURVE_TARGET, "pyderp-fast")
    assert (found.ratio, found.where, found.verdict) == (0.9, "tls-peers-500", "MISSED")
    assert (found.measured, found.wanted, found.limit) == (4, 4, 0.82)
    assert outcome(read(path), CURVE_TARGET, "pyderp").verdict == "not measured"


def test_a_target_is_not_met_by_losing_packets(tmp_path: Path) -> None:
    figures = {"derper": cpu(10), "pyderp": cpu(1, lost=0.02)}
    raw = write(tmp_path / "raw", "tls-peers-100", figures)
    assert outcome(raw, CURVE_TARGET, "pyderp").verdict == "void: loss"


def test_failures_are_named_in_the_row(tmp_path: Path) -> None:
    path = tmp_path / "raw"
    write(path, "single", {"derper": cpu(10), "pyderp": cpu(5)})
    RawFile(path).failure(Failure("single", "pyderp", 2, "it ended"))
    assert "failed runs: pyderp 1" in evaluate(read(path), SINGLE).notes


def test_there_is_no_ratio_to_zero(tmp_path: Path) -> None:
    result = evaluate(
        write(tmp_path / "raw", "single", {"derper": cpu(-1, 10), "pyderp": cpu(9, 5)}), SINGLE
    )
    assert result.cells["pyderp"].ratio == 0.5  # of the second round alone
    raw = write(tmp_path / "none", "single", {"derper": cpu(0), "pyderp": cpu(5)})
    result = evaluate(raw, SINGLE)
    assert (result.cells["pyderp"].ratio, result.badness("pyderp")) == (None, 0)
    assert "measured as nothing, so run it longer: derper" in result.notes
