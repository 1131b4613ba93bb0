"""Writes the pages: beside the raw file, or into the repository."""

from __future__ import annotations

import contextlib
from pathlib import Path

from .errors import BenchError
from .figures import FAST, PURE, evaluate
from .peers import REPO
from .raw import Raw
from .report import as_markdown, for_readme, results_table, targets_table
from .rows import ROWS, Group

RESULTS = Path("bench") / "RESULTS.md"
PLOTS = Path("bench") / "plots"
README = Path("README.md")
DOCS = Path("docs") / "reference" / "speed.md"
BEGIN, END = "<!-- bench -->", "<!-- /bench -->"

Images = list[tuple[str, str]]
"""Title and file name of each plot."""


def publish(raw: Raw, path: Path, *, everywhere: bool, root: Path = REPO) -> list[Path]:
    """Write the page and the plots; return the files that were written.

    They go beside the raw file or, with `everywhere`, into the repository, where the tables in
    README.md and the documentation are renewed as well.
    """
    if not everywhere:
        page, plots = path.with_suffix(".md"), path.with_suffix(".plots")
        images = _draw(raw, plots)
        _write(page, as_markdown(raw, [(t, f"{plots.name}/{name}") for t, name in images]))
        return [page, *(plots / name for _, name in images)]
    images = _draw(raw, root / PLOTS)
    _write(root / RESULTS, as_markdown(raw, [(t, f"plots/{name}") for t, name in images]))
    between_marks(root / README, readme_block(raw))
    between_marks(root / DOCS, docs_block(raw, images))
    return [root / RESULTS, root / README, root / DOCS, *(root / PLOTS / n for _, n in images)]


def _draw(raw: Raw, folder: Path) -> Images:
    """Draw the plots, if matplotlib is installed."""
    with contextlib.suppress(ModuleNotFoundError):
        from .plots import draw

        return draw(raw, folder)
    return []


def readme_block(raw: Raw) -> str:
    """Return the README's tables: its own rows, and the rows in which the reference is better."""
    picked, lost = for_readme([evaluate(raw, row) for row in ROWS])
    parts = [results_table(picked, raw.header.relays, spread=False), _with_what(raw)]
    if lost:
        parts.append("Rows in which `derper` is better, the worst of each kind:")
        parts.append(results_table(lost, raw.header.relays, spread=False))
    return "\n\n".join(parts)


def docs_block(raw: Raw, images: Images) -> str:
    """Return targets, plots and the curve for the documentation."""
    curve = [r for r in (evaluate(raw, row) for row in ROWS) if r.row.scenario.group is Group.CURVE]
    measured = [r for r in curve if r.cells]
    parts = [_with_what(raw), "## Targets", targets_table(raw)]
    parts += [f"![{title}](../../bench/plots/{name})" for title, name in images]
    if measured:
        parts += [f"## {Group.CURVE.value}", results_table(measured, raw.header.relays)]
    return "\n\n".join(parts)


def _with_what(raw: Raw) -> str:
    """Name machine, versions and the engines in a sentence or two."""
    header = raw.header
    versions = header.versions
    what = [f"{header.machine.get('cores', '?')} cores ({header.machine.get('CPU', '?')})"]
    what += [versions["Python"]] if "Python" in versions else []
    what += [f"{key} {versions[key]}" for key in ("uvloop", "derper") if key in versions]
    engines = {
        PURE: f"`{PURE}` is pure Python on {versions.get('OpenSSL', 'the ssl module')}",
        FAST: f"`{FAST}` has the native part",
    }
    named = [text for name, text in engines.items() if name in header.relays]
    return (
        f"Medians of {raw.rounds} rounds of {header.seconds:g} s, {header.date}; "
        f"{', '.join(what)}.\n{'; '.join(named)}.\n"
        "A ratio below 1 is better than derper, but for packets/s, where above 1 is."
    )


def between_marks(path: Path, block: str) -> None:
    """Replace the text between the marks in a file."""
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as exc:
        raise BenchError(f"cannot read {path.name}: {exc.strerror}") from exc
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end or BEGIN in after:
        raise BenchError(f"{path.name} needs one {BEGIN} and, after it, one {END}")
    _write(path, f"{before}{BEGIN}\n{block}\n{END}{after}")


def _write(path: Path, text: str) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    except OSError as exc:
        raise BenchError(f"cannot write {path}: {exc.strerror}") from exc
