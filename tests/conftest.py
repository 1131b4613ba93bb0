"""What all tests share: the two event loops that a relay must work on."""

from __future__ import annotations

import asyncio
import contextlib
import faulthandler
import gc
import logging
import os
import signal
import sys
from collections.abc import Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any, TypeAlias

import pytest
import uvloop
from _pytest.faulthandler import fault_handler_stderr_fd_key

from pyderp import ManualTLS
from pyderp.native import NativeUse, installed_version, load

from .server.certificates import write_pair
from .server.ways import NAME

Run: TypeAlias = Callable[[Coroutine[Any, Any, None]], None]

# In a shell's background job Ctrl-C is ignored, and under nohup SIGHUP, also by what tests start
# and then stop by it.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN:
    signal.signal(signal.SIGHUP, signal.SIG_DFL)


def pytest_addoption(parser: pytest.Parser) -> None:
    """Let the tests run with pyderp-fast or without it, whether or not it is installed."""
    parser.addoption(
        "--native",
        choices=[each.value for each in NativeUse],
        default=NativeUse.AUTO.value,
        help="use pyderp-fast if it is installed; on: it must be; off: as if it were not",
    )


def pytest_configure(config: pytest.Config) -> None:
    """Hide pyderp-fast from this process and from those that the tests start, or insist on it."""
    use = NativeUse(config.getoption("--native"))
    if use is NativeUse.OFF:
        sys.modules["pyderp_fast"] = None  # type: ignore[assignment]  # so importing it fails
        os.environ["PYDERP_NATIVE"] = "off"
    load(use)


def pytest_report_header() -> str:
    """Which engine the tests use."""
    version = installed_version()
    return f"native part: pyderp-fast {version}" if version else "native part: none"


def pytest_collection_finish() -> None:
    """Keep what is here before the first test out of every later search for garbage.

    The thousands of tests themselves are most of the heap, and `run` searches it after each.
    """
    gc.collect()
    gc.freeze()


_BOUND = 30.0
"""Seconds after which a test with sockets has hung."""


END = 60.0
"""Seconds after which a loop that is being closed has hung."""


@contextlib.contextmanager
def must_end(config: pytest.Config) -> Iterator[None]:
    """End this process, with the stacks of all threads, if the block does not end.

    A loop may hang in C, where pytest-timeout's signal is never handled. pytest-xdist fails the
    test whose worker is gone, and runs the others in a new one.
    """
    # Not sys.stderr, whose file pytest keeps to itself until the end of a test.
    stderr = config.stash.get(fault_handler_stderr_fd_key, None)
    faulthandler.dump_traceback_later(END, exit=True, file=2 if stderr is None else stderr)
    try:
        yield
    finally:
        faulthandler.cancel_dump_traceback_later()


@pytest.fixture(params=["asyncio", "uvloop"])
def run(request: pytest.FixtureRequest) -> Iterator[Run]:
    """Run a coroutine on each loop; what the loop had to catch by itself fails the test."""
    factory = uvloop.new_event_loop if request.param == "uvloop" else asyncio.new_event_loop
    caught: list[dict[str, Any]] = []
    runner = asyncio.Runner(loop_factory=factory)
    runner.get_loop().set_exception_handler(lambda _, context: caught.append(context))

    async def bounded(main: Coroutine[Any, Any, None]) -> None:
        async with asyncio.timeout(_BOUND):
            await main

    yield lambda main: runner.run(bounded(main))
    with must_end(request.config):
        runner.close()
    # A transport that nobody closed complains here, and not in the middle of a later test.
    gc.collect()
    assert not caught


@pytest.fixture(autouse=True)
def log_levels() -> Iterator[None]:
    """Give every logger back the level it had before the test.

    The command line, run in this process, sets levels, and a later test would miss its lines.
    """
    loggers = [logging.getLogger(name) for name in (None, "pyderp", "pyderp.client")]
    before = [logger.level for logger in loggers]
    yield
    for logger, level in zip(loggers, before, strict=True):
        logger.setLevel(level)


@pytest.fixture
def tls(tmp_path: Path) -> ManualTLS:
    """TLS settings with a good certificate for `NAME`."""
    write_pair(tmp_path, NAME)
    return ManualTLS(certdir=tmp_path, hostname=NAME)
