"""Hooks and fixtures of `conftest.py` work as documented."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
BOUND = 50.0
HANGING = """
import asyncio
import ctypes

import pytest

from tests import conftest

conftest.END = 0.5


class Loop(asyncio.SelectorEventLoop):
    def close(self):
        super().close()
        # It keeps the interpreter to itself: no thread runs, and no signal is handled.
        ctypes.PyDLL(None).pause()


@pytest.fixture
def hanging(monkeypatch):
    monkeypatch.setitem(conftest.LOOPS, "asyncio", Loop)


async def test_before():
    pass


@pytest.mark.usefixtures("hanging")
async def test_hanging():
    pass


async def test_after():
    pass
"""


@pytest.mark.slow
@pytest.mark.parametrize("workers", [0, 1])
def test_a_loop_that_does_not_close_is_a_failure_with_its_stack(
    tmp_path: Path, workers: int
) -> None:
    """With workers, of this test only; without, the run ends."""
    file = tmp_path / "test_hanging.py"
    file.write_text(HANGING)
    command = [sys.executable, "-m", "pytest", "-c", f"{ROOT}/pyproject.toml"]
    command += [
        "-p",
        "tests.conftest",
        "-p",
        "no:cacheprovider",
        f"--rootdir={ROOT}",
        f"-n{workers}",
    ]
    command += ["-k", "asyncio", str(file)]
    done = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=BOUND
    )
    assert done.returncode == 1
    assert re.search(r"Timeout \(0:00:00\.500000\)!", done.stderr)
    assert re.search(r'test_hanging\.py", line \d+ in close', done.stderr)
    if workers:
        assert "crashed while running" in done.stdout
        # The body of the test had passed.
        assert "1 failed, 3 passed" in done.stdout
