"""The pages of the benchmark are made from the raw file."""

from __future__ import annotations

from pathlib import Path

import pytest

from relaybench import publish
from relaybench.errors import BenchError
from relaybench.raw import Failure, RawFile, read
from relaybench.report import as_markdown, number
from tests.bench.runs import cpu, header, write


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A run of some scenarios; derper's p99 at 2 peers is better."""
    path = tmp_path / "raw.jsonl"
    write(path, "single", {"derper": cpu(10, 12), "pyderp": cpu(5, 6), "pyderp-fast": cpu(4, 4)})
    for peers, ours in ((2, 60), (20, 90), (100, 5)):
        figures = {
            name: [{**cpu(9)[0], "p50_us": 10.0, "p99_us": float(p99), "p999_us": 99.0}]
            for name, p99 in (("derper", 30), ("pyderp", ours), ("pyderp-fast", 3))
        }
        write(path, f"tls-peers-{peers}", figures)
    return path


def test_the_page_names_load_figures_ratios_and_targets(path: Path) -> None:
    page = as_markdown(read(path))
    assert (
        "| no TLS, 8 pairs, 1,200 B, a packet a write, window 4 | CPU µs a packet "
        "| 11.0 (10.0-12.0) | 5.50 (5.00-6.00) | **0.50** (0.50-0.50) "
        "| 4.00 | **0.36** (0.33-0.40) |"
    ) in page
    assert "| ≤ 0.60 | **0.50** | met | ≤ 0.50 | **0.36** | met |" in page
    assert "**1.00** (100 peers; 1 of 4 measured) | met | ≤ 0.82" in page
    assert "- CPU: Z80" in page
    assert "derper, no TLS: derper -a {port}" in page


def test_the_page_names_what_is_missing_and_what_failed(path: Path) -> None:
    RawFile(path).failure(Failure("rate", "pyderp", 1, "it ended\nwith a long log"))
    page = as_markdown(read(path))
    assert "- no TLS, 2 peers, 1,200 B" in page
    assert "- round 1, pyderp, rate: it ended\n" in page


def test_one_relay_alone_has_a_page_too(tmp_path: Path) -> None:
    raw = write(tmp_path / "raw", "single", {"pyderp": cpu(5)}, head=header(relays=["pyderp"]))
    page = as_markdown(raw)
    assert "| work | figure | pyderp |\n" in page
    assert "Targets" not in page


def test_the_readme_has_the_rows_where_pyderp_is_slower(path: Path) -> None:
    block = publish.readme_block(read(path))
    picked, _, lost = block.partition("Rows in which `derper` is better")
    assert "p99 latency" not in picked
    (row,) = [line for line in lost.splitlines() if "p99 latency" in line]
    assert "TLS 1.3, 20 peers" in row  # of 2 and 20 peers the worse
    assert "| 90.0 | **3.00** | 3.00 | **0.10** |" in row
    assert "2 cores (Z80)" in block


def test_the_readme_has_no_void_rows(path: Path) -> None:
    """Neither of its tables; the page of results keeps the row, and marks it."""
    lossy = {
        name: [{**cpu(9, lost=0.02)[0], "p50_us": 10.0, "p99_us": float(p99), "p999_us": 99.0}]
        for name, p99 in (("derper", 30), ("pyderp", 300), ("pyderp-fast", 3))
    }
    raw = write(path, "tls-peers-5000", lossy)
    block = publish.readme_block(raw)
    assert "5,000 peers" not in block
    assert "TLS 1.3, 20 peers" in block
    rows = [line for line in as_markdown(raw).splitlines() if "TLS 1.3, 5,000 peers" in line]
    assert any("**void**" in row for row in rows)


def test_publishing_writes_pages_and_replaces_text_between_the_marks(
    path: Path, tmp_path: Path
) -> None:
    (tmp_path / "docs" / "reference").mkdir(parents=True)
    marked = f"before\n{publish.BEGIN}\nold\n{publish.END}\nafter\n"
    for page in (publish.README, publish.DOCS):
        (tmp_path / page).write_text(marked)
    publish.publish(read(path), path, everywhere=True, root=tmp_path)
    for page in (publish.README, publish.DOCS):
        text = (tmp_path / page).read_text()
        assert text.startswith(f"before\n{publish.BEGIN}\n")
        assert text.endswith(f"\n{publish.END}\nafter\n")
        assert "old" not in text
    assert (tmp_path / publish.RESULTS).read_text().startswith("# derper, pyderp and pyderp-fast")
    once = (tmp_path / publish.README).read_text()
    publish.publish(read(path), path, everywhere=True, root=tmp_path)
    assert (tmp_path / publish.README).read_text() == once


def test_pages_are_published_on_request_only(path: Path, tmp_path: Path) -> None:
    written = publish.publish(read(path), path, everywhere=False, root=tmp_path)
    assert written[0] == tmp_path / "raw.md"
    assert not (tmp_path / "bench").exists()


@pytest.mark.parametrize(
    "text",
    ["", publish.BEGIN, f"{publish.END}{publish.BEGIN}"],
    ids=["neither", "one", "turned round"],
)
def test_a_file_without_marks_stays_as_it_is(tmp_path: Path, text: str) -> None:
    page = tmp_path / "page.md"
    page.write_text(text)
    with pytest.raises(BenchError, match="needs one"):
        publish.between_marks(page, "new")
    assert page.read_text() == text


def test_plots_are_drawn_and_the_same_each_time(path: Path, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib", reason="make .venv/.bench installs it")
    from relaybench.plots import draw

    images = draw(read(path), tmp_path / "a")
    assert [name for _, name in images] == ["curve-cpu.svg", "curve-p99.svg", "ratios.svg"]
    draw(read(path), tmp_path / "b")
    for _, name in images:
        text = (tmp_path / "a" / name).read_text()
        assert text == (tmp_path / "b" / name).read_text()
        assert "<svg" in text


@pytest.mark.parametrize(
    ("value", "text"), [(0.123, "0.12"), (9.996, "10.00"), (12.34, "12.3"), (1234.5, "1,234")]
)
def test_numbers_have_three_digits(value: float, text: str) -> None:
    assert number(value) == text
