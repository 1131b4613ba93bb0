"""Wheel and sdist: what is in them, installed into fresh environments, and one version for all."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tarfile
import tomllib
from pathlib import Path

import pytest
from scripts import check_dist

import pyderp

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def packages(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the sdist, and the wheel that was built from it."""
    folder = tmp_path_factory.mktemp("dist")
    command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(folder), str(ROOT)]
    subprocess.run(command, check=True, capture_output=True)
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("pattern", ["*.whl", "*.tar.gz"])
def test_a_fresh_environment_runs_what_is_installed(
    packages: Path, tmp_path: Path, pattern: str
) -> None:
    (package,) = packages.glob(pattern)
    python = check_dist.fresh(tmp_path)
    check_dist.install(python, package)
    assert check_dist.check(python) == pyderp.__version__


@pytest.mark.slow
def test_an_environment_without_the_package_does_not_pass(tmp_path: Path) -> None:
    """The libraries that it borrows are beside an editable pyderp, which must not be found."""
    python = check_dist.fresh(tmp_path)
    with pytest.raises(subprocess.CalledProcessError) as caught:
        check_dist.check(python)
    assert "No module named 'pyderp'" in caught.value.stderr


@pytest.mark.slow
def test_package_indexes_accept_the_metadata(packages: Path) -> None:
    command = [sys.executable, "-m", "twine", "check", "--strict", *map(str, packages.iterdir())]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
    assert done.stdout.count("PASSED") == 2


@pytest.mark.slow
def test_the_sdist_has_every_file_of_the_repository(packages: Path) -> None:
    if not (ROOT / ".git").exists() or not shutil.which("git"):
        pytest.skip("these sources are no git repository")
    # CI runs the tests as root in a folder of another user, which git refuses by itself.
    command = ["git", "-c", f"safe.directory={ROOT}", "ls-files", "-z"]
    done = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True)
    listed = done.stdout.split("\0")
    wanted = {name for name in listed if name and (ROOT / name).exists()}
    (sdist,) = packages.glob("*.tar.gz")
    with tarfile.open(sdist) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    assert wanted - names == set()
    # And no other file, except those that are not committed yet.
    assert not [n for n in names if n.startswith((".venv", ".peers", "build/", "dist/"))]


def test_files_named_in_the_project_settings_exist() -> None:
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())
    project = settings["project"]
    include = settings["tool"]["hatch"]["build"]["targets"]["sdist"]["include"]
    named = [project["readme"], *project["license-files"]]
    for pattern in [*named, *(pattern.removeprefix("/") for pattern in include)]:
        assert list(ROOT.glob(pattern)), pattern


def test_the_version_is_in_one_place() -> None:
    """`pyproject.toml` has none of its own, and the page that shows a version shows this one."""
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())
    assert settings["project"]["dynamic"] == ["version"]
    assert settings["tool"]["hatch"]["version"]["path"] == "src/pyderp/__init__.py"
    native = tomllib.loads((ROOT / "fast" / "Cargo.toml").read_text())["package"]["version"]
    shown = re.findall(r"pyderp (\S+) \(pyderp-fast (\S+)\)", _page("docs/howto/native.md"))
    assert shown == [(pyderp.__version__, native)]


def test_the_newest_release_in_the_changelog_has_the_version_of_the_package() -> None:
    """Before the first release the changelog has none."""
    released = re.findall(r"^## (\S+) \(", _page("CHANGELOG.md"), re.MULTILINE)
    assert released[:1] in ([], [pyderp.__version__])


def _page(name: str) -> str:
    return (ROOT / name).read_text()
