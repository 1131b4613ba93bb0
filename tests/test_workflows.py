"""The workflows and templates of the forge agree with the project, and the git hooks run."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml
from scripts import cover

ROOT = Path(__file__).parent.parent
GITHUB = ROOT / ".github"
WORKFLOWS = sorted((GITHUB / "workflows").glob("*.yml"))
FORMS = sorted(
    path for path in (GITHUB / "ISSUE_TEMPLATE").glob("*.yml") if path.name != "config.yml"
)
HOOKS = ROOT / ".pre-commit-config.yaml"


def loaded(path: Path) -> dict[str, Any]:
    content: dict[str, Any] = yaml.safe_load(path.read_text())
    return content


def classified() -> list[str]:
    """The Python versions of pyproject.toml."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    found = (re.search(r":: (3\.\d+)$", text) for text in project["classifiers"])
    return [match[1] for match in found if match]


# Workflows


def test_the_tests_run_on_every_python_that_the_project_names() -> None:
    job = loaded(GITHUB / "workflows" / "ci.yml")["jobs"]["test"]
    matrix = job["strategy"]["matrix"]
    assert matrix["python"] == classified()
    assert matrix["experimental"] == [False]
    assert job["continue-on-error"] == "${{ matrix.experimental }}"
    further = [each["python"] for each in matrix["include"]]
    assert further == ["3.14"]
    assert all(each["experimental"] for each in matrix["include"])
    assert any(".ci/run" in step.get("run", "") for step in job["steps"])


def test_the_lowest_version_and_the_other_pythons_are_the_same() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert project["requires-python"] == f">={classified()[0]}"
    script = (ROOT / "scripts" / "other-pythons").read_text()
    (listed,) = re.findall(r"^for version in (3.*); do$", script, re.MULTILINE)
    assert listed.split() == classified()


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.name)
def test_actions_are_pinned_by_commit_and_may_only_read(path: Path) -> None:
    used = re.findall(r"uses: (.*)", path.read_text())
    assert used
    for action in used:
        assert re.fullmatch(r"[\w./-]+@[0-9a-f]{40} # v\d+\.\d+\.\d+", action), action
    workflow = loaded(path)
    assert workflow["permissions"] == {"contents": "read"}
    assert all("permissions" not in job for job in workflow["jobs"].values())


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.name)
def test_files_that_a_workflow_calls_exist(path: Path) -> None:
    makefile = (ROOT / "Makefile").read_text()
    for job in loaded(path)["jobs"].values():
        for step in job["steps"]:
            command = step.get("run", "")
            for target in re.findall(r"\bmake ([a-z-]+)", command):
                assert re.search(rf"^{target}:", makefile, re.MULTILINE), target
            for file in re.findall(r"(?:^|[ =])((?:\.ci|contrib|fast|scripts)/[\w./-]+)", command):
                assert (ROOT / file).exists() or file.endswith("/dist"), file
            for file in re.findall(r"requirements[\w-]*\.txt", command):
                assert (ROOT / file).exists(), file


def test_coverage_is_measured_and_its_report_kept() -> None:
    job = loaded(GITHUB / "workflows" / "ci.yml")["jobs"]["cover"]
    (step,) = [step for step in job["steps"] if "make cover" in step.get("run", "")]
    # With the forge's default shell the status of a pipe is that of `tee`.
    assert step["shell"] == "bash"
    upload = job["steps"][-1]
    assert "actions/upload-artifact@" in upload["uses"]
    assert upload["if"] == "always()"
    text, json = upload["with"]["path"].split()
    assert step["run"].endswith(f"| tee {text}")
    assert json == str(cover.DATA / "report.json")


# Templates


@pytest.mark.parametrize("path", FORMS, ids=lambda path: path.name)
def test_a_form_is_valid_for_the_forge(path: Path) -> None:
    form = loaded(path)
    assert set(form) == {"name", "description", "labels", "body"}
    ids = [field["id"] for field in form["body"] if field["type"] != "markdown"]
    assert len(ids) == len(set(ids)) > 0
    for field in form["body"]:
        assert field["type"] in {"markdown", "textarea", "input", "dropdown"}
        attributes = field["attributes"]
        assert (
            set(attributes)
            <= {
                "markdown": {"value"},
                "textarea": {"label", "description", "placeholder", "render"},
                "input": {"label", "description", "placeholder"},
                "dropdown": {"label", "description", "options"},
            }[field["type"]]
        )
        assert ("value" if field["type"] == "markdown" else "label") in attributes
        # YAML reads a bare yes as a boolean, which the forge refuses.
        assert all(isinstance(option, str) for option in attributes.get("options", []))


@pytest.mark.parametrize("path", FORMS, ids=lambda path: path.name)
def test_a_form_says_where_security_problems_are_reported(path: Path) -> None:
    """There are no blank issues, so each issue begins with a form."""
    assert loaded(GITHUB / "ISSUE_TEMPLATE" / "config.yml") == {"blank_issues_enabled": False}
    texts = [each for each in loaded(path)["body"] if each["type"] == "markdown"]
    assert any("SECURITY.md" in each["attributes"]["value"] for each in texts)


def test_pages_that_the_templates_name_exist() -> None:
    for path in GITHUB.rglob("*"):
        if path.is_file() and path.parent.name != "workflows":
            for name in re.findall(
                r"\b(?:docs|changelog|scripts)/[\w/.-]*\w|\w+\.md\b", _text(path)
            ):
                assert (ROOT / name).exists(), f"{path.name}: {name}"


def _text(path: Path) -> str:
    return path.read_text()


# Hooks


def test_hooks_run_the_pinned_tools_and_download_nothing() -> None:
    (repository,) = loaded(HOOKS)["repos"]
    assert repository["repo"] == "local"
    for hook in repository["hooks"]:
        assert hook["language"] == "system"
        assert "additional_dependencies" not in hook
        program, tool, *_ = hook["entry"].split()
        if program != "sh":
            assert program == "scripts/hook"
            assert (Path(sys.prefix) / "bin" / tool).exists(), tool
    listed = (ROOT / "requirements-dev.txt").read_text()
    assert re.search(r"^pre-commit==", listed, re.MULTILINE)


class Repository:
    """A git repository with the hooks installed; its environment is the one of this process."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder / "repository"
        self._environment = {
            **{key: text for key, text in os.environ.items() if not key.startswith("GIT_")},
            "PRE_COMMIT_HOME": str(folder / "cache"),
            "HOME": str(folder),
        }
        self.folder.mkdir()
        (self.folder / ".venv").symlink_to(sys.prefix)
        (self.folder / "scripts").mkdir()
        for name in (HOOKS.name, "pyproject.toml", "scripts/hook"):
            shutil.copy(ROOT / name, self.folder / name)
        assert self.run("git", "init", "--quiet").returncode == 0
        installed = self.run(".venv/bin/pre-commit", "install")
        assert installed.returncode == 0, installed.stdout

    def run(self, *command: str, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            command,
            cwd=cwd or self.folder,
            env=self._environment,
            check=False,
            capture_output=True,
            text=True,
        )

    def commit(self, *files: str, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
        added = self.run("git", "add", *files, cwd=cwd)
        assert added.returncode == 0, added.stderr
        names = ["-c", "user.name=a", "-c", "user.email=a@example.com"]
        return self.run("git", *names, "commit", "-m", "a", cwd=cwd)


@pytest.mark.slow
def test_a_commit_of_unformatted_code_is_stopped_and_the_code_formatted(tmp_path: Path) -> None:
    """By `git commit`, in a repository with the hooks installed."""
    repository = Repository(tmp_path)
    hooks = {path.name for path in (repository.folder / ".git/hooks").iterdir()}
    assert {"pre-commit", "pre-push"} <= hooks
    code = repository.folder / "code.py"
    code.write_text('"""Code."""\nimport os\nx = [1,2]\n')
    stopped = repository.commit(HOOKS.name, code.name)
    assert stopped.returncode == 1, stopped.stderr
    assert "files were modified by this hook" in stopped.stderr
    assert code.read_text() == '"""Code."""\n\nx = [1, 2]\n'
    passed = repository.commit(code.name)
    assert passed.returncode == 0, passed.stderr


@pytest.mark.slow
def test_hooks_in_a_new_worktree_name_the_command_that_sets_it_up(tmp_path: Path) -> None:
    repository = Repository(tmp_path)
    first = repository.commit(HOOKS.name, "scripts/hook")
    assert first.returncode == 0, first.stderr
    there = tmp_path / "second"
    made = repository.run("git", "worktree", "add", "--quiet", str(there))
    assert made.returncode == 0, made.stderr
    (there / "code.py").write_text('"""Code."""\n')
    stopped = repository.commit("code.py", cwd=there)
    assert stopped.returncode == 1
    assert f"{there} has no .venv/bin/ruff" in stopped.stderr
    assert "run `make .venv/.dev` here" in stopped.stderr
    (there / ".venv").symlink_to(sys.prefix)
    passed = repository.commit("code.py", cwd=there)
    assert passed.returncode == 0, passed.stderr
