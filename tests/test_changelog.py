"""CHANGELOG.md is made from fragments, and a malformed fragment is refused."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from scripts import changelog

ROOT = Path(__file__).parent.parent


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """A folder with the settings, the template and a changelog, and without fragments."""
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    for folder in ("relay", "client", "commands", "library"):
        (tmp_path / "changelog" / folder).mkdir(parents=True)
        (tmp_path / "changelog" / folder / ".gitkeep").touch()
    shutil.copy(ROOT / "changelog" / "template.md.jinja", tmp_path / "changelog")
    shutil.copy(ROOT / "changelog" / "README.md", tmp_path / "changelog")
    (tmp_path / "CHANGELOG.md").write_text("# Changelog\n\n<!-- next -->\n\n<!-- released -->\n")
    return tmp_path


def add(repository: Path, name: str, text: str = "The relay is faster.\n") -> Path:
    path = repository / "changelog" / name
    path.write_text(text)
    return path


def release(repository: Path, version: str) -> None:
    """Do what "Release" in CONTRIBUTING.md says."""
    command = [sys.executable, "-m", "towncrier", "build", "--yes", "--version", version]
    subprocess.run([*command, "--dir", str(repository)], check=True, capture_output=True)
    assert changelog.main([], repository) == 0


def headings(text: str) -> list[str]:
    return re.findall(r"^## (.*)$", text, re.MULTILINE)


def test_all_fragments_here_are_in_the_draft() -> None:
    section = changelog.draft()
    assert headings(section) == ["Not released yet"]
    assert len(re.findall(r"^- ", section, re.MULTILINE)) == len(changelog.fragments())


def test_no_fragment_here_is_malformed() -> None:
    assert list(changelog.problems()) == []


def test_headings_of_versions_are_unique_here() -> None:
    found = headings(changelog.CHANGELOG.read_text())
    assert len(set(found)) == len(found)


def test_after_a_release_new_fragments_are_above_the_version_that_has_the_old(
    repository: Path,
) -> None:
    """The version of the package is still the released one."""
    file = repository / "CHANGELOG.md"
    add(repository, "relay/a.fix.md", "One.\n")
    assert changelog.main([], repository) == 0
    assert headings(file.read_text()) == ["Not released yet"]
    release(repository, "1.2.3")
    (released,) = headings(file.read_text())
    assert re.fullmatch(r"1\.2\.3 \(\d{4}-\d\d-\d\d\)", released)
    assert changelog.main(["--check"], repository) == 0
    add(repository, "relay/b.fix.md", "Two.\n")
    assert changelog.main([], repository) == 0
    text = file.read_text()
    assert headings(text) == ["Not released yet", released]
    assert text.index("- Two.") < text.index("<!-- released -->") < text.index("- One.")
    release(repository, "1.2.4")
    assert [each.split()[0] for each in headings(file.read_text())] == ["1.2.4", "1.2.3"]


def test_git_keeps_the_folders_when_a_release_empties_them() -> None:
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["towncrier"]
    for folder in settings["ignore"]:
        assert (ROOT / "changelog" / folder / ".gitkeep").exists(), folder


def test_a_changelog_that_lacks_a_fragment_is_an_error_that_names_the_command(
    repository: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = repository / "CHANGELOG.md"
    add(repository, "relay/a.fix.md")
    before = file.read_text()
    assert changelog.main(["--check"], repository) == 1
    assert capsys.readouterr().err == (
        f"{file}: not what the fragments say: run `make changelog`\n"
    )
    assert file.read_text() == before
    assert changelog.main([], repository) == 0
    assert changelog.main(["--check"], repository) == 0
    assert capsys.readouterr().err == ""


def test_lint_and_dist_check_the_changelog_and_do_not_write_it() -> None:
    makefile = (ROOT / "Makefile").read_text()
    for target in ("lint", "dist"):
        (rule,) = re.findall(rf"^{target}:.*\n(?:\t.*\n)+", makefile, re.MULTILINE)
        assert "scripts/changelog.py --check\n" in rule
        assert ": changelog" not in rule


def test_entries_are_sorted_by_part_and_kind_with_links_from_the_root(repository: Path) -> None:
    add(repository, "relay/a.fix.md", "Two\nlines: [page](../../docs/a.md).\n\nTwo paragraphs.\n")
    add(repository, "relay/b.break.md", "Give `--b`.\n")
    add(repository, "c.doc.md", "A [page](../docs/c.md).\n")
    assert changelog.draft(repository) == (
        "## Not released yet\n\n"
        "### Relay\n\n"
        "#### Breaking changes\n\n- Give `--b`.\n\n"
        "#### Fixed\n\n- Two\n  lines: [page](docs/a.md).\n\n  Two paragraphs.\n\n"
        "### Installation, documentation and the rest\n\n"
        "#### Documentation\n\n- A [page](docs/c.md).\n"
    )


@pytest.mark.parametrize(
    "name",
    [
        "relay/a.bug.md",
        "relay/a.md",
        "relay/.fix.md",
        "relay/a b.fix.md",
        "relay/a.fix.b.md",
        "relay/a.fix",
        "relay/a.fix.txt",
        "relay/a.fix.md~",
        "a.txt",
    ],
)
def test_a_name_that_is_not_one_of_a_fragment_is_refused_with_the_kinds(
    repository: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    path = add(repository, name)
    for args in ([], ["--check"]):
        assert changelog.main(args, repository) == 1
        assert capsys.readouterr().err == (
            f"{path}: want NAME.KIND.md or NAME.KIND.N.md, "
            "where KIND is break, feature, fix, perf or doc\n"
        )


@pytest.mark.parametrize("name", ["other/a.fix.md", "relay/inner/a.fix.md"])
def test_a_wrong_folder_is_refused_with_the_folders(
    repository: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    (repository / "changelog" / name).parent.mkdir()
    path = add(repository, name)
    assert changelog.main(["--check"], repository) == 1
    assert capsys.readouterr().err == (
        f"{path}: fragments are in changelog/relay, changelog/client, changelog/commands, "
        "changelog/library or changelog itself\n"
    )


@pytest.mark.parametrize("name", ["a.fix.md", "relay/16.fix.md", "client/a-b.break.2.md"])
def test_names_of_fragments_pass(repository: Path, name: str) -> None:
    add(repository, name)
    assert list(changelog.problems(repository)) == []
    assert "- The relay is faster.\n" in changelog.draft(repository)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "\n",
        "# A heading\n",
        "<p>HTML</p>\n",
        "Two:\n\n- a\n- b\n",
        "* a\n",
        "+ a\n",
        "1. one\n",
        "2) two\n",
        "Nested:\n    - nested\n",
    ],
)
def test_a_text_that_is_no_entry_is_refused_by_name(repository: Path, text: str) -> None:
    path = add(repository, "relay/a.fix.md", text)
    (problem,) = changelog.problems(repository)
    assert problem.startswith(f"{path}: ")


@pytest.mark.parametrize("text", ["The port\n443 (TCP).\n", "-a is a flag.\n", "1.5 s, not 2.\n"])
def test_a_text_with_numbers_and_flags_passes(repository: Path, text: str) -> None:
    add(repository, "relay/a.fix.md", text)
    assert list(changelog.problems(repository)) == []


def test_released_versions_are_kept() -> None:
    before = "# Changelog\n\n<!-- next -->\n\n## 2 (old)\n\n<!-- released -->\n\n## 1\n\n- One.\n"
    after = changelog.spliced(before, "## 2 (new)\n")
    assert after == before.replace("(old)", "(new)")
    assert changelog.spliced(after, "## 2 (new)\n") == after


def test_the_file_here_has_its_marks() -> None:
    """Those that the script and, at a release, `towncrier build` look for."""
    text = changelog.CHANGELOG.read_text()
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["towncrier"]
    assert text.count("<!-- next -->\n") == 1
    assert text.count(settings["start_string"]) == 1


def test_folders_and_kinds_are_those_of_the_page() -> None:
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["towncrier"]
    page = (ROOT / "changelog" / "README.md").read_text()
    rows = re.findall(r"^\| `?(\w+)`? \|", page, re.MULTILINE)
    folders = [section["path"] or "none" for section in settings["section"]]
    kinds = [kind["directory"] for kind in settings["type"]]
    assert rows == ["Folder", *folders, "Kind", *kinds]
    assert settings["ignore"] == folders[:-1]
