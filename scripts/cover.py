#!/usr/bin/env python3
"""Measure which lines and branches of `src/pyderp` the tests run.

`mirrors` runs, for each module of `wire` and `relay`, only the test file with its name, and fails
unless that file runs every line and branch of the module: `tests/wire/test_stun.py`, with all files
in `tests/wire/stun/`, for `src/pyderp/wire/stun.py`. So the tests of a module are quick to run and
easy to find. That they run a line does not prove that they notice each change in it.

`suite` runs all tests that need no peers, with the processes that they start, and reports each
package. It names modules below 95 % and does not fail because of them. With `--touched` it reports
only packages of which a function ran, for a run of a few tests.
"""

from __future__ import annotations

import argparse
import ast
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import coverage
import pytest

__all__ = [
    "Result",
    "has_code",
    "main",
    "measure_mirror",
    "mirror_of",
    "modules_of",
    "report_suite",
    "touched",
]

ROOT: Final = Path(__file__).resolve().parents[1]
SOURCE: Final = Path("src/pyderp")
MIRRORED: Final = (SOURCE / "wire", SOURCE / "relay")
"""Packages whose modules are each covered by their own test file."""
ENOUGH: Final = 95.0
"""Percent of lines and branches; `suite` names the modules that have less."""
DATA: Final = Path("build/cover")
"""Where `suite` leaves its measurements; `coverage html` can read them."""

_SUITE_CONFIG: Final = """\
[run]
branch = true
source = pyderp
parallel = true
sigterm = true
patch = subprocess
data_file = {data}
disable_warnings = no-data-collected, module-not-imported, module-not-measured, no-sysmon
[paths]
source =
    {source}
    */pyderp
"""
"""The last lines: tests install the package elsewhere and run it there."""


_LEFT_OUT: Final = (
    "--ignore=tests/interop",
    "--ignore=tests/cli/relay/test_imports.py",  # coverage is one import too many there
)


@dataclass(frozen=True, slots=True)
class Result:
    """The coverage of one module by its own test file."""

    module: Path
    problem: str = ""
    """Why the module could not be measured; empty: it was."""
    lines: Sequence[int] = ()
    """Lines that were not run."""
    branches: Sequence[tuple[int, int]] = ()
    """Branches that were not taken: from which line to which, 0 for the end of the function."""

    def __str__(self) -> str:
        """Return a line for each thing that is missing; empty if nothing is."""
        found = [self.problem] if self.problem else []
        if self.lines:
            found.append(f"lines {_ranges(self.lines)} are not run")
        # A branch to or from a line that is not run is no second finding.
        quiet = set(self.lines)
        pairs = [(a, b) for a, b in self.branches if a not in quiet and b not in quiet]
        if pairs:
            text = ", ".join(f"{a} → {b}" if b else f"{a} → end" for a, b in pairs)
            found.append(f"branches {text} are not taken")
        return "\n".join(f"{self.module}: {each}" for each in found)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; return the exit status."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True)
    mirrors = commands.add_parser("mirrors", help="the modules of wire and relay")
    mirrors.add_argument(
        "path",
        nargs="*",
        help="src/pyderp/wire/stun.py, or a folder: src/pyderp/wire; default: all",
    )
    suite = commands.add_parser("suite", help="all packages, by the tests that need no peers")
    suite.add_argument(
        "--touched", action="store_true", help="report only packages of which a function ran"
    )
    suite.add_argument("pytest", nargs="*", help="arguments of pytest: -- tests/cli -n 2")
    one = commands.add_parser("one")
    one.add_argument("module", type=Path)
    one.add_argument("report", type=Path)
    args = parser.parse_args(argv)
    if args.command == "one":
        return _measure_here(args.module, args.report)
    if args.command == "suite":
        os.chdir(ROOT)
        return _run_suite(args.pytest, only_touched=args.touched)
    try:
        modules = modules_of(args.path or MIRRORED)
    except ValueError as e:
        parser.error(str(e))
    os.chdir(ROOT)
    return _check_mirrors(modules)


# Each module by its own test file


def modules_of(paths: Iterable[str | Path], root: Path = ROOT) -> list[Path]:
    """Return the modules that paths name, relative to `root`.

    A folder stands for all modules in it that have code.

    Args:
        paths: absolute, or relative to the current folder or to `root`.

    Raises:
        ValueError: a path does not exist, or is no module or folder of `MIRRORED`.
    """
    root = root.resolve()
    found: dict[Path, None] = {}
    for path in map(Path, paths):
        full = (path if path.exists() else root / path).resolve()
        if not full.exists():
            raise ValueError(f"{path} does not exist; want for example {SOURCE / 'wire/stun.py'}")
        is_inside = full.is_relative_to(root / SOURCE)
        if not is_inside or not (full.is_dir() or full.suffix == ".py"):
            raise ValueError(f"{path} is no module; want for example {SOURCE / 'wire/stun.py'}")
        if not any(full.is_relative_to(root / package) for package in MIRRORED):
            raise ValueError(
                f"{path}: only modules of {' and '.join(map(str, MIRRORED))} must be covered by a "
                "test file with their name; see what is covered of others with "
                "`make cover COVER_ARGS=tests/…`"
            )
        files = filter(has_code, sorted(full.rglob("*.py"))) if full.is_dir() else [full]
        found.update(dict.fromkeys(file.relative_to(root) for file in files))
    return list(found)


def has_code(module: Path) -> bool:
    """Whether a module has statements other than imports, `__all__` and docstrings."""
    tree = ast.parse(module.read_text(encoding="utf-8"))
    return any(not isinstance(node, _DECLARATIONS) and not _is_all(node) for node in tree.body)


_DECLARATIONS: Final = (ast.Import, ast.ImportFrom, ast.Expr)


def _is_all(node: ast.stmt) -> bool:
    return isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__"


def mirror_of(module: Path, root: Path = ROOT) -> list[Path]:
    """Return the test files of a module, relative to `root`; empty if there is none."""
    folder = root / "tests" / module.relative_to(SOURCE).parent
    one, several = folder / f"test_{module.stem}.py", folder / module.stem
    files = [*([one] if one.is_file() else []), *sorted(several.glob("test_*.py"))]
    return [path.relative_to(root) for path in files]


def _check_mirrors(modules: Sequence[Path]) -> int:
    begin = time.monotonic()
    missing = []
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for text in map(str, pool.map(measure_mirror, modules)):
            if text:
                missing.append(text)
                _say(text)
    took = f"{time.monotonic() - begin:.0f} s"
    if missing:
        _say(f"the tests of {len(missing)} of {len(modules)} modules miss something; {took}")
        return 1
    _say(f"{len(modules)} modules: their own tests run every line and branch; {took}")
    return 0


def measure_mirror(module: Path, root: Path = ROOT) -> Result:
    """Run the test files of one module in a process of their own, and measure the module.

    Args:
        module: relative to `root`, which has the folders `src` and `tests`.
    """
    if not mirror_of(module, root):
        folder = "tests" / module.relative_to(SOURCE).with_suffix("")
        one = folder.with_name(f"test_{module.stem}.py")
        return Result(module, f"it has no tests of its own: write {one} or files in {folder}/")
    with tempfile.TemporaryDirectory() as made:
        report = Path(made, "report.json")
        command = [sys.executable, __file__, "one", str(module), str(report)]
        done = subprocess.run(command, cwd=root, capture_output=True, text=True)
        if done.returncode:
            return Result(module, f"its tests fail:\n{done.stdout}{done.stderr}")
        [found] = json.loads(report.read_text(encoding="utf-8"))["files"].values()
    branches = [(a, max(b, 0)) for a, b in found["missing_branches"]]
    return Result(module, "", found["missing_lines"], branches)


def _measure_here(module: Path, report: Path) -> int:
    # In this process, so that pytest and the tests have imported nothing of pyderp before.
    measured = coverage.Coverage(
        data_file=None, config_file=False, branch=True, include=[str(module)]
    )
    measured.start()
    status = pytest.main(["-q", "-p", "no:cacheprovider", *map(str, mirror_of(module, Path.cwd()))])
    measured.stop()
    measured.json_report([str(module)], outfile=str(report))
    return int(status)


def _ranges(lines: Iterable[int]) -> str:
    """Return 3, 5-7 for 3, 5, 6, 7."""
    spans: list[list[int]] = []
    for line in sorted(lines):
        if spans and line == spans[-1][1] + 1:
            spans[-1][1] = line
        else:
            spans.append([line, line])
    return ", ".join(str(a) if a == b else f"{a}-{b}" for a, b in spans)


# All packages by the suite


def _run_suite(arguments: Sequence[str], *, only_touched: bool) -> int:
    DATA.mkdir(parents=True, exist_ok=True)
    for old in DATA.glob("data*"):
        old.unlink()
    config = DATA / "coveragerc"
    config.write_text(
        _SUITE_CONFIG.format(data=ROOT / DATA / "data", source=ROOT / SOURCE), encoding="utf-8"
    )
    command = [sys.executable, "-m", "coverage", "run", f"--rcfile={config}", "-m", "pytest"]
    begin = time.monotonic()
    status = subprocess.run([*command, "-q", *_LEFT_OUT, *arguments]).returncode
    _say(f"the tests took {time.monotonic() - begin:.0f} s")
    measured = coverage.Coverage(config_file=str(config))
    measured.combine()
    measured.save()
    report = DATA / "report.json"
    measured.json_report(outfile=str(report))
    files = json.loads(report.read_text(encoding="utf-8"))["files"]
    _say(report_suite(touched(files) if only_touched else files))
    return status


def touched(files: dict[str, Any]) -> dict[str, Any]:
    """Return the files of packages of which the tests ran a function.

    Args:
        files: as for `report_suite`.
    """

    def runs(entry: dict[str, Any]) -> bool:
        # The name is empty for the lines outside of functions: an import runs those.
        functions = entry["functions"].items()
        return any(each["summary"]["covered_lines"] for name, each in functions if name)

    packages = {Path(path).parent for path, entry in files.items() if runs(entry)}
    return {path: entry for path, entry in files.items() if Path(path).parent in packages}


def report_suite(files: dict[str, Any]) -> str:
    """Return a table of the packages, and the modules that have less than `ENOUGH` percent.

    Args:
        files: by path, as in the member `files` of coverage's JSON report.
    """
    packages: dict[str, list[dict[str, Any]]] = {}
    low = []
    for path, entry in sorted(files.items()):
        package = ".".join(Path(path).relative_to("src").parent.parts)
        packages.setdefault(package, []).append(entry["summary"])
        if (share := _percent([entry["summary"]])) < ENOUGH:
            low.append((share, path))
    rows = [(package, _percent(summaries)) for package, summaries in packages.items()]
    rows.append(("all", _percent([each for summaries in packages.values() for each in summaries])))
    lines = [f"{share:6.1f} %  {package}" for package, share in rows]
    if low:
        lines += ["", f"below {ENOUGH:.0f} %:"]
        lines += [f"{share:6.1f} %  {path}" for share, path in sorted(low)]
    return "\n".join(lines)


def _percent(summaries: Iterable[dict[str, Any]]) -> float:
    """Return the share of lines and branches together, as coverage counts it."""
    run = total = 0
    for each in summaries:
        run += each["covered_lines"] + each["covered_branches"]
        total += each["num_statements"] + each["num_branches"]
    return 100 * run / total if total else 100.0


def _say(text: str) -> None:
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
