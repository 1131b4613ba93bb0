"""CHANGELOG.md is made from fragments, and a malformed fragment is refused."""

from __future__ import annotations

import re
import shutil
import tomllib
from pathlib import Path

import pytest
from scripts import changelog

import pyderp

ROOT = Path(__file__).parent.parent


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """A folder with the settings and the template, and without fragments."""
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    for folder in ("relay", "client", "commands", "library"):
        (tmp_path / "changelog" / folder).mkdir(parents=True)
    shutil.copy(ROOT / "changelog" / "template.md.jinja", tmp_path / "changelog")
    shutil.copy(ROOT / "changelog" / "README.md", tmp_path / "changelog")
    return tmp_path


def add(repository: Path, name: str, text: str = "The relay is faster.\n") -> Path:
    path = repository / "changelog" / name
    path.write_text(text)
    return path


def test_all_fragments_here_are_in_the_draft() -> None:
    paths = changelog.fragments()
    section = changelog.draft(pyderp.__version__)
    assert section.startswith(f"## {pyderp.__version__} (")
    assert len(re.findall(r"^- ", section, re.MULTILINE)) == len(paths)


def test_no_fragment_here_is_malformed() -> None:
    assert list(changelog.problems(changelog.fragments())) == []


def test_entries_are_sorted_by_part_and_kind_with_links_from_the_root(repository: Path) -> None:
    add(repository, "relay/a.fix.md", "Two\nlines: [page](../../docs/a.md).\n\nTwo paragraphs.\n")
    add(repository, "relay/b.break.md", "Give `--b`.\n")
    add(repository, "c.doc.md", "A [page](../docs/c.md).\n")
    assert changelog.draft("1.2.3", repository) == (
        "## 1.2.3 (not released yet)\n\n"
        "### Relay\n\n"
        "#### Breaking changes\n\n- Give `--b`.\n\n"
        "#### Fixed\n\n- Two\n  lines: [page](docs/a.md).\n\n  Two paragraphs.\n\n"
        "### Installation, documentation and the rest\n\n"
        "#### Documentation\n\n- A [page](docs/c.md).\n"
    )


@pytest.mark.parametrize("name", ["relay/a.feat.md", "relay/a.md", "a.txt", "other/a.fix.md"])
def test_a_wrong_kind_or_folder_is_refused_by_name(repository: Path, name: str) -> None:
    (repository / "changelog" / name).parent.mkdir(exist_ok=True)
    add(repository, name)
    with pytest.raises(ValueError, match="other" if "other" in name else Path(name).name):
        changelog.draft("1.2.3", repository)


@pytest.mark.parametrize("text", ["", "\n", "# A heading\n", "Two:\n\n- a\n- b\n"])
def test_a_text_that_is_no_entry_is_refused_by_name(repository: Path, text: str) -> None:
    path = add(repository, "relay/a.fix.md", text)
    (problem,) = changelog.problems(changelog.fragments(repository))
    assert problem.startswith(f"{path}: ")


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
