"""Install each wheel and sdist into a fresh environment, and run what it installed.

With `--requirements` the environments get these pinned requirements first, and those of
requirements-build.txt for an sdist. Without it they see the libraries of the Python that runs this,
so that nothing is downloaded.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import sysconfig
import tempfile
import venv
from collections.abc import Sequence
from pathlib import Path
from typing import Final

__all__ = ["check", "fresh", "install", "main"]

ROOT: Final = Path(__file__).resolve().parents[1]
_PROGRAM: Final = """
import importlib.metadata, json, pyderp
for name in pyderp.__all__:
    getattr(pyderp, name)
print(json.dumps([pyderp.__file__, pyderp.__version__, importlib.metadata.version("pyderp")]))
"""


def fresh(folder: Path, requirements: Sequence[Path] = ()) -> Path:
    """Make an environment without pyderp in `folder`, and return its Python."""
    venv.create(folder, symlinks=True)
    python = folder / "bin" / "python"
    if requirements:
        _pip(python, "--require-hashes", *(f"--requirement={path}" for path in requirements))
    else:
        version = sysconfig.get_python_version()
        # A folder in a .pth file is searched, but its own .pth files, which an editable install of
        # pyderp has, are not read.
        path = folder / "lib" / f"python{version}" / "site-packages" / "libraries.pth"
        path.write_text(f"{sysconfig.get_path('purelib')}\n{sysconfig.get_path('platlib')}\n")
    return python


def install(python: Path, package: Path) -> None:
    """Install a wheel or an sdist, and nothing else, into the environment of `python`."""
    _pip(python, "--no-deps", "--no-index", "--no-build-isolation", str(package))


def _pip(python: Path, *args: str) -> None:
    command = [sys.executable, "-m", "pip", "--python", str(python), "--disable-pip-version-check"]
    subprocess.run([*command, "install", "--quiet", *args], check=True)


def check(python: Path) -> str:
    """Run what is installed beside `python`, and return its version.

    Raises:
        ValueError: another pyderp was imported, or the versions of module, metadata and command
            differ.
    """
    folder = python.parents[1]
    file, *versions = json.loads(_output(folder, str(python), "-I", "-c", _PROGRAM))
    if not Path(file).is_relative_to(folder):
        raise ValueError(f"{file} was imported, which is not in {folder}")
    for command in ("pyderp", "pyderp-derper"):
        words = _output(folder, str(python.with_name(command)), "--version").split()
        versions.append(words[1] if words[:1] == ["pyderp"] else " ".join(words))
    if len(set(versions)) != 1:
        raise ValueError(f"versions of module, metadata and commands differ: {versions}")
    return str(versions[0])


def _output(folder: Path, *command: str) -> str:
    """Run a command away from the sources, and return what it prints."""
    return subprocess.run(command, cwd=folder, check=True, capture_output=True, text=True).stdout


def main(args: Sequence[str] | None = None) -> int:
    """Check all packages of the command line; return the exit status."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--requirements", type=Path, metavar="FILE", help="install these first")
    parser.add_argument("packages", type=Path, nargs="+", metavar="PACKAGE")
    options = parser.parse_args(args)
    for package in options.packages:
        requirements = [options.requirements] if options.requirements else []
        if requirements and package.name.endswith(".tar.gz"):
            requirements.append(ROOT / "requirements-build.txt")
        with tempfile.TemporaryDirectory() as folder:
            python = fresh(Path(folder), requirements)
            install(python, package.resolve())
            sys.stdout.write(f"{package}: installed and run, version {check(python)}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
