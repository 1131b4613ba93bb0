"""The raw file of the benchmark: no result is lost."""

from __future__ import annotations

from pathlib import Path

import pytest

from relaybench.errors import BenchError
from relaybench.raw import Failure, RawFile, Sample, read
from tests.bench.runs import header


def test_an_appended_run_is_read_back(tmp_path: Path) -> None:
    path = tmp_path / "raw.jsonl"
    out = RawFile(path)
    assert out.begin(header()) == 0
    sample = Sample("single", "derper", 1, {"server_us_per_pkt": 5.5})
    failure = Failure("single", "pyderp", 1, "it ended")
    out.sample(sample)
    out.failure(failure)
    raw = read(path)
    assert (raw.samples, raw.failures, raw.rounds) == ([sample], [failure], 1)
    assert raw.header == header()


def test_a_line_that_was_cut_short_is_left_out(tmp_path: Path) -> None:
    path = tmp_path / "raw.jsonl"
    out = RawFile(path)
    out.begin(header())
    out.sample(Sample("single", "derper", 1, {}))
    whole = path.read_text()
    path.write_text(whole + '{"kind": "sample", "scen')
    assert len(read(path).samples) == 1
    path.write_text(whole.replace('"sample"', '"sample', 1) + whole)
    with pytest.raises(BenchError, match="line 2: not a result"):
        read(path)


def test_a_second_run_adds_rounds(tmp_path: Path) -> None:
    path = tmp_path / "raw.jsonl"
    RawFile(path).begin(header())
    RawFile(path).sample(Sample("single", "derper", 3, {}))
    busier = {**header().machine, "load average at the start": "7.00"}
    assert RawFile(path).begin(header(date="later", machine=busier)) == 3
    assert read(path).dates == ["2026-11-30 12:00 UTC", "later"]


@pytest.mark.parametrize(
    "change",
    [
        pytest.param({"versions": {"Python": "CPython 3.12.1"}}, id="versions"),
        pytest.param({"machine": {"CPU": "6502"}}, id="machine"),
        pytest.param({"seconds": 1.5}, id="seconds"),
        pytest.param({"relays": ["derper"]}, id="relays"),
    ],
)
def test_a_run_of_something_else_needs_another_file(
    tmp_path: Path, change: dict[str, object]
) -> None:
    path = tmp_path / "raw.jsonl"
    RawFile(path).begin(header())
    with pytest.raises(BenchError, match=f"other {next(iter(change))}: use another file"):
        RawFile(path).begin(header(**change))


def test_a_file_without_a_run_is_no_result(tmp_path: Path) -> None:
    path = tmp_path / "raw.jsonl"
    for text in ("", "{}\n", '{"kind": "sample"}'):
        path.write_text(text)
        with pytest.raises(BenchError, match="has no results"):
            read(path)
    with pytest.raises(BenchError, match="cannot read"):
        read(tmp_path / "missing")
