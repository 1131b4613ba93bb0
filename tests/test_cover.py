"""`make cover` finds each module that its own tests do not run in full."""

from __future__ import annotations

import re
import shutil
import subprocess
import textwrap
from pathlib import Path

import pytest
from scripts import cover

MODULE = Path("src/pyderp/wire/sample.py")
SAMPLE = """\
import sys


def sign(number):
    if number < 0:
        return "-"
    if number > 0:
        sign = "+"
        return sign
    return ""


def count(numbers):
    found = 0
    for number in numbers:
        if number:
            found += 1
    return found
"""


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A repository with one module and no tests."""
    for folder in ("src/pyderp/wire", "tests/wire"):
        (tmp_path / folder).mkdir(parents=True)
    (tmp_path / MODULE).write_text(SAMPLE)
    (tmp_path / "pytest.ini").write_text("[pytest]\npythonpath = src/pyderp/wire\n")
    return tmp_path


def write_test(project: Path, name: str, body: str) -> None:
    path = project / "tests/wire" / name
    path.parent.mkdir(exist_ok=True)
    lines = textwrap.indent(textwrap.dedent(body), "    ")
    path.write_text(f"import sample\n\n\ndef test_it():\n{lines}\n")


ALL_OF_SIGN = "assert [sample.sign(n) for n in (-1, 0, 1)] == ['-', '', '+']"
ALL_OF_COUNT = "assert sample.count([0, 1]) == 1"


@pytest.mark.slow
def test_lines_and_branches_that_are_missing_are_named(project: Path) -> None:
    write_test(
        project,
        "test_sample.py",
        "assert sample.sign(-1) == '-'\nassert sample.count([1]) == 1",
    )
    assert str(cover.measure_mirror(MODULE, project)) == (
        f"{MODULE}: lines 7-10 are not run\n{MODULE}: branches 16 → 15 are not taken"
    )


@pytest.mark.slow
def test_a_module_may_have_a_file_and_a_folder(project: Path) -> None:
    write_test(project, "test_sample.py", ALL_OF_SIGN)
    write_test(project, "sample/test_count.py", ALL_OF_COUNT)
    write_test(project, "test_sample_other.py", "raise AssertionError('not a file of the module')")
    assert cover.mirror_of(MODULE, project) == [
        Path("tests/wire/test_sample.py"),
        Path("tests/wire/sample/test_count.py"),
    ]
    assert str(cover.measure_mirror(MODULE, project)) == ""


def test_a_module_without_tests_of_its_own_is_named(project: Path) -> None:
    write_test(project, "test_other.py", f"{ALL_OF_SIGN}\n{ALL_OF_COUNT}")
    assert str(cover.measure_mirror(MODULE, project)) == (
        f"{MODULE}: it has no tests of its own: "
        "write tests/wire/test_sample.py or files in tests/wire/sample/"
    )


@pytest.mark.slow
def test_tests_that_fail_or_test_something_else_cover_nothing(project: Path) -> None:
    write_test(project, "test_sample.py", f"{ALL_OF_SIGN}\n{ALL_OF_COUNT}\nassert not 1")
    assert "its tests fail:" in str(cover.measure_mirror(MODULE, project))
    (project / "tests/wire/test_sample.py").write_text("def test_it():\n    assert 1\n")
    assert str(cover.measure_mirror(MODULE, project)) == (
        f"{MODULE}: lines 1, 4-10, 13-18 are not run"
    )


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ('"""Only a docstring."""\n', False),
        ('from a import b\n\n__all__ = ["b"]\n', False),
        ("from a import b\n\nc = b()\n", True),
        ("def f() -> None: ...\n", True),
    ],
)
def test_a_package_that_only_imports_needs_no_tests(
    tmp_path: Path, source: str, expected: bool
) -> None:
    path = tmp_path / "__init__.py"
    path.write_text(source)
    assert cover.has_code(path) is expected


def test_the_report_has_packages_and_the_modules_below_95_percent() -> None:
    def entry(covered: int) -> dict[str, dict[str, int]]:
        """A module of 80 lines and 20 branches, of which so many are covered."""
        names = ("covered_lines", "covered_branches", "num_statements", "num_branches")
        return {"summary": dict(zip(names, (covered - 10, 10, 80, 20), strict=True))}

    files = {
        "src/pyderp/keys.py": entry(95),
        "src/pyderp/wire/stun.py": entry(100),
        "src/pyderp/wire/http.py": entry(94),
    }
    assert cover.report_suite(files).splitlines() == [
        "  95.0 %  pyderp",
        "  97.0 %  pyderp.wire",
        "  96.3 %  all",
        "",
        "below 95 %:",
        "  94.0 %  src/pyderp/wire/http.py",
    ]


# Which modules `mirrors` measures


@pytest.fixture
def here(project: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The same repository, as the current folder."""
    monkeypatch.chdir(project)
    return project


def test_a_folder_stands_for_its_modules_with_code(here: Path) -> None:
    (here / "src/pyderp/wire/__init__.py").write_text('"""Only a docstring."""\n')
    inner = here / "src/pyderp/wire/inner"
    inner.mkdir()
    (inner / "more.py").write_text("x = 1\n")
    modules = [Path("src/pyderp/wire/inner/more.py"), MODULE]
    assert cover.modules_of(["src/pyderp/wire"], here) == modules
    assert cover.modules_of(["src/pyderp/wire/", MODULE], here) == modules, "each only once"


def test_a_path_may_be_absolute_or_relative_to_the_current_folder(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert cover.modules_of([here / MODULE], here) == [MODULE]
    assert cover.modules_of([str(here / MODULE.parent)], here) == [MODULE]
    monkeypatch.chdir(here / MODULE.parent)
    assert cover.modules_of(["sample.py"], here) == [MODULE]
    assert cover.modules_of(["."], here) == [MODULE]
    assert cover.modules_of([MODULE], here) == [MODULE], "relative to the repository"


@pytest.mark.parametrize(
    ("path", "text"),
    [
        ("src/pyderp/wire/missing.py", "src/pyderp/wire/missing.py does not exist; want for"),
        ("pytest.ini", "pytest.ini is no module; want for example src/pyderp/wire/stun.py"),
        ("src/pyderp/wire/data.txt", "src/pyderp/wire/data.txt is no module"),
        ("tests", "tests is no module"),
        ("src/pyderp/net/link.py", "src/pyderp/net/link.py: only modules of src/pyderp/wire and "),
        ("src/pyderp/net", "src/pyderp/net: only modules of src/pyderp/wire and src/pyderp/relay"),
    ],
)
def test_a_path_that_the_rule_is_not_for_is_refused(here: Path, path: str, text: str) -> None:
    (here / "src/pyderp/net").mkdir()
    (here / "src/pyderp/net/link.py").write_text("x = 1\n")
    (here / "src/pyderp/wire/data.txt").write_text("text")
    with pytest.raises(ValueError, match="^" + re.escape(text)):
        cover.modules_of([path], here)


def test_the_command_names_a_wrong_path_and_exits_with_2(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with pytest.raises(SystemExit) as caught:
        cover.main(["mirrors", "src/pyderp/net/link.py"])
    assert caught.value.code == 2
    assert "src/pyderp/net/link.py: only modules of" in capsys.readouterr().err


# A run of a few tests


def test_only_packages_of_which_a_function_ran_are_touched() -> None:
    """Lines outside of functions run at an import. All modules of a touched package count."""

    def entry(**functions: int) -> dict[str, object]:
        """A module, with the number of lines that ran of each function."""
        ran = {"": 10, **functions}
        return {"functions": {f: {"summary": {"covered_lines": n}} for f, n in ran.items()}}

    files = {
        "src/pyderp/keys.py": entry(parse=0),
        "src/pyderp/cli/main.py": entry(main=3, stop=0),
        "src/pyderp/cli/other.py": entry(other=0),
        "src/pyderp/cli/relay/flags.py": entry(),
    }
    assert list(cover.touched(files)) == ["src/pyderp/cli/main.py", "src/pyderp/cli/other.py"]


@pytest.mark.skipif(shutil.which("make") is None, reason="make is not installed")
@pytest.mark.parametrize("arguments", ["", "tests/cli"])
def test_make_cover_measures_the_mirrors_only_without_arguments(arguments: str) -> None:
    command = ["make", "--dry-run", "cover", f"COVER_ARGS={arguments}"]
    printed = subprocess.run(command, cwd=cover.ROOT, capture_output=True, text=True, check=True)
    [suite] = [line for line in printed.stdout.splitlines() if "cover.py suite" in line]
    assert ("cover.py mirrors" in printed.stdout) is not bool(arguments)
    assert ("--touched" in suite) is bool(arguments)
    assert suite.endswith(arguments)
