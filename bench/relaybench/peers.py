"""Finds and builds the programs that take part."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

from .errors import BenchError

REPO = Path(__file__).resolve().parents[2]
PEERS = REPO / ".peers" / "bin"
LOADGEN_SOURCE = REPO / "bench" / "loadgen"
DERPER = "derper-v1.104.7"
"""The relay with which pyderp is compared by default."""


def find(name: str) -> Path | None:
    """Return the program in `.peers/bin`, else in `PATH`."""
    own = PEERS / name
    if own.is_file():
        return own
    found = shutil.which(name)
    return Path(found) if found else None


def find_derper(chosen: str = DERPER) -> Path:
    """Return Go's relay: the file of this name, or else as `find`."""
    path = Path(chosen).absolute()  # not resolved: a link may have the clearer name
    found = path if path.is_file() else find(chosen)
    if found is None:
        raise BenchError(
            f"no {chosen} here, in .peers/bin or in PATH: run `make peers`, or choose another "
            "with --derper"
        )
    return found


def find_loadgen() -> Path:
    """Return the load generator, built anew if its sources have changed."""
    return build(LOADGEN_SOURCE, "loadgen")


def build(source: Path, name: str) -> Path:
    """Return a Go program of the benchmarks, built anew if its sources have changed."""
    target = PEERS / name
    found = find(name)
    if found is not None and not (found == target and _older_than_sources(target, source)):
        return found
    if shutil.which("go") is None:
        raise BenchError(
            f"{name} must be built, and there is no `go` in PATH: install Go "
            f"({source.relative_to(REPO)}/go.mod says which), or put a {name} into .peers/bin"
        )
    PEERS.mkdir(parents=True, exist_ok=True)
    built = subprocess.run(
        ["go", "build", "-trimpath", "-buildvcs=false", "-o", str(target), "."],
        cwd=source,
        # If the installed Go is too old, it fetches the one that go.mod asks for.
        env={**os.environ, "GOTOOLCHAIN": "auto"},
        capture_output=True,
        text=True,
        check=False,
    )
    if built.returncode != 0:
        raise BenchError(f"go build in {source.relative_to(REPO)} failed:\n{built.stderr.strip()}")
    target.touch()  # go does not write an identical program again, so its time would stay old
    return target


def _older_than_sources(program: Path, source: Path) -> bool:
    sources = [
        path
        for path in source.iterdir()
        if path.suffix in {".go", ".mod", ".sum"} and not path.name.endswith("_test.go")
    ]
    return max(s.stat().st_mtime for s in sources) > program.stat().st_mtime


def check_pyderp(python: str) -> None:
    """Raise `BenchError` if pyderp's relay cannot be started."""
    try:
        done = subprocess.run(
            [python, "-m", "pyderp", "relay", "--help"],
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as exc:
        raise BenchError(f"cannot run {python}: {exc}") from exc
    if done.returncode != 0:
        raise BenchError(
            "`python -m pyderp relay --help` fails: install the checkout into this "
            "Python (pip install -e .), or name another one with --python\n"
            f"    {(done.stderr.strip().splitlines() or ['(no message)'])[-1]}"
        )
