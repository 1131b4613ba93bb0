"""`make cover` finds each module that its own tests do not run in full."""

from __future__ import annotations

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
