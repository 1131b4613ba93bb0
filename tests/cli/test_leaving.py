"""The end of a relay does not wait for threads that wait for others."""

from __future__ import annotations

import subprocess
import sys
import time

import pytest

from .process import BOUND, environment

_BLOCKED = """
import asyncio, logging, threading
from pyderp.cli import relayrun

async def main():
    asyncio.get_running_loop().run_in_executor(None, threading.Event().wait)
    logging.getLogger().warning("stopped")

relayrun._run({loop!r}, main)
"""


@pytest.mark.parametrize("loop", ["asyncio", "uvloop"])
def test_a_name_server_that_does_not_answer_holds_nobody_up(loop: str) -> None:
    started = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-c", _BLOCKED.format(loop=loop)],
        capture_output=True,
        text=True,
        timeout=BOUND,
        env=environment(),
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "stopped\n")
    assert time.monotonic() - started < BOUND / 2


def test_a_process_that_ends_in_time_ends_by_itself() -> None:
    script = """
import atexit
from pyderp.cli import relayrun

async def main(): pass

atexit.register(print, "by itself")
relayrun._run("asyncio", main)
"""
    done = subprocess.run(
        [sys.executable, "-c", script],
        capture_output=True,
        text=True,
        timeout=BOUND,
        env=environment(),
        check=False,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "by itself\n", "")
