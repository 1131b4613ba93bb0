"""Hooks and fixtures of `conftest.py` work as documented."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
from scripts import check_docs

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


ASYNC_TESTS = """
import asyncio
import time

import pytest

from tests import conftest

conftest.BOUND = 0.3


async def test_passes():
    await asyncio.sleep(0)


@pytest.mark.both_loops
async def test_twice():
    pass


@pytest.mark.parametrize("number", [1, 2])
class TestClass:
    async def test_method(self, number, tmp_path):
        assert number == 1


@pytest.fixture
def made(on_loop):
    made = []

    async def make():
        made.append(asyncio.get_running_loop())

    on_loop(make())
    return made


async def test_a_fixture_on_the_loop(made):
    assert made == [asyncio.get_running_loop()]


async def test_hangs():
    await asyncio.Event().wait()


async def test_blocks():
    time.sleep(0.4)


async def test_returns():
    return 3


async def test_an_error_in_a_callback():
    asyncio.get_running_loop().call_soon(lambda: 1 / 0)
    await asyncio.sleep(0)
"""
OUTCOMES = {
    "PASSED test_passes[asyncio]",
    "PASSED test_twice[asyncio]",
    "PASSED test_twice[uvloop]",
    "PASSED TestClass::test_method[asyncio-1]",
    "FAILED TestClass::test_method[asyncio-2]",
    "PASSED test_a_fixture_on_the_loop[asyncio]",
    "FAILED test_hangs[asyncio]",
    "FAILED test_blocks[asyncio]",
    "FAILED test_returns[asyncio]",
    "PASSED test_an_error_in_a_callback[asyncio]",
    "ERROR test_an_error_in_a_callback[asyncio]",
}


@pytest.mark.slow
@pytest.mark.parametrize("loops", ["chosen", "both"])
def test_async_tests_run_on_their_loops_and_within_the_bound(tmp_path: Path, loops: str) -> None:
    file = tmp_path / "test_async.py"
    file.write_text(ASYNC_TESTS)
    command = [sys.executable, "-m", "pytest", "-c", f"{ROOT}/pyproject.toml", "-q", "-rA"]
    command += ["-p", "tests.conftest", "-p", "no:cacheprovider"]
    command += [f"--rootdir={ROOT}", f"--loops={loops}", str(file)]
    done = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=BOUND
    )
    found = set(re.findall(r"^((?:PASSED|FAILED|ERROR) )\S*?::(\S+)", done.stdout, re.MULTILINE))
    outcomes = {"".join(each) for each in found}
    if loops == "chosen":
        assert outcomes == OUTCOMES
    else:
        on_uvloop = {each.replace("asyncio", "uvloop") for each in OUTCOMES}
        assert outcomes == OUTCOMES | on_uvloop
    assert "it did not end within 0.3 s" in done.stdout
    assert "ZeroDivisionError" in done.stdout


@pytest.mark.slow
def test_the_examples_of_the_page_for_contributors_pass(tmp_path: Path) -> None:
    found = check_docs.blocks(ROOT / "CONTRIBUTING.md")
    examples = [block.text for block in found if "async def test_" in block.text]
    assert len(examples) == 2
    for number, text in enumerate(examples):
        (tmp_path / f"test_example_{number}.py").write_text(text)
    command = [sys.executable, "-m", "pytest", "-c", f"{ROOT}/pyproject.toml", "-n0"]
    command += ["-p", "tests.conftest", "-p", "no:cacheprovider"]
    command += [f"--rootdir={ROOT}", str(tmp_path)]
    done = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=BOUND
    )
    # The first of them runs on both loops.
    assert "3 passed" in done.stdout, done.stdout
