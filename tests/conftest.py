"""Shared by all tests: async tests, and the two event loops that a relay must work on."""

from __future__ import annotations

import asyncio
import contextlib
import faulthandler
import gc
import inspect
import logging
import os
import signal
import sys
import traceback
from collections.abc import Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any, TypeAlias, cast

import hypothesis
import pytest
import uvloop
from _pytest.faulthandler import fault_handler_stderr_fd_key

from pyderp import ManualTLS
from pyderp.native import NativeUse, installed_version, load

from .owntime import own_time
from .server.certificates import write_pair
from .server.ways import NAME

TESTS = Path(__file__).parent

Run: TypeAlias = Callable[[Coroutine[Any, Any, None]], None]

# In a background job of a shell Ctrl-C is ignored, and under nohup SIGHUP, also by programs that
# tests start and then stop by these signals.
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
    parser.addoption(
        "--loops",
        choices=["chosen", "both", *LOOPS],
        default="chosen",
        help="loops of async tests; chosen: both where the loop matters, elsewhere asyncio's",
    )


def pytest_configure(config: pytest.Config) -> None:
    """Hide pyderp-fast from this process and from those that tests start, or require it."""
    use = NativeUse(config.getoption("--native"))
    if use is NativeUse.OFF:
        sys.modules["pyderp_fast"] = None  # type: ignore[assignment]  # so importing it fails
        os.environ["PYDERP_NATIVE"] = "off"
    load(use)
    # A busy machine may need longer than the 200 ms that Hypothesis gives each example.
    hypothesis.settings.register_profile("pyderp", deadline=None)
    hypothesis.settings.load_profile("pyderp")


def pytest_report_header() -> str:
    """Which engine the tests use."""
    version = installed_version()
    return f"native part: pyderp-fast {version}" if version else "native part: none"


def pytest_collection_finish() -> None:
    """Keep the objects that exist before the first test out of every later search for garbage.

    The thousands of tests themselves are most of the heap, and `on_loop` searches it after each.
    """
    gc.collect()
    gc.freeze()


@pytest.hookimpl(trylast=True)
def pytest_runtest_teardown(item: pytest.Item, nextitem: pytest.Item | None) -> None:
    """Do the same at the end of each module, when its fixtures are gone."""
    if nextitem is None or nextitem.path != item.path:
        gc.collect()
        gc.freeze()


LOOPS = {"asyncio": asyncio.new_event_loop, "uvloop": uvloop.new_event_loop}
ONE_LOOP = "asyncio"
"""The loop of async tests whose result does not depend on the loop."""

BOTH_LOOPS = ("fault/", "net/", "server/app/", "server/conn/", "server/services/")
"""Folders whose async tests run on both loops: sockets, TLS, transports, what a loop frees.

Elsewhere `pytest.mark.both_loops` marks a test or module.
"""


def pytest_pycollect_makeitem(
    collector: pytest.Module | pytest.Class, name: str, obj: object
) -> None:
    """Let an `async def test_…` depend on its loop, also if it does not name it."""
    if collector.istestfunction(obj, name) and inspect.iscoroutinefunction(obj):
        pytest.mark.usefixtures("on_loop")(obj)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Choose the loops of a test, unless it is parametrized by `on_loop` itself."""
    if "on_loop" not in metafunc.fixturenames:
        return
    marks = list(metafunc.definition.iter_markers("parametrize"))
    if any("on_loop" in mark.args[0] for mark in marks):
        return
    loops = [metafunc.config.getoption("--loops")]
    if loops == ["chosen"]:
        path = metafunc.definition.path.as_posix().removeprefix(f"{TESTS.as_posix()}/")
        marked = metafunc.definition.get_closest_marker("both_loops")
        loops = ["both" if marked or path.startswith(BOTH_LOOPS) else ONE_LOOP]
    metafunc.parametrize("on_loop", list(LOOPS) if loops == ["both"] else loops, indirect=True)


def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> bool | None:
    """Run an async test on its loop."""
    test = pyfuncitem.obj
    if not inspect.iscoroutinefunction(test):
        return None
    names = inspect.signature(test).parameters
    arguments = {name: pyfuncitem.funcargs[name] for name in names if name in pyfuncitem.funcargs}
    cast("Run", pyfuncitem.funcargs["on_loop"])(test(**arguments))
    return True


BOUND = 30.0
"""Seconds after which an async test has hung."""

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


def _as_text(context: dict[str, Any]) -> str:
    """What a loop reports to its exception handler, with the traceback."""
    error = context.get("exception")
    trace = "" if error is None else "".join(traceback.format_exception(error))
    return f"{context.get('message')}\n{trace}"


@pytest.fixture
def on_loop(request: pytest.FixtureRequest) -> Iterator[Run]:
    """Run a coroutine on a loop; an error that only the loop caught fails the test."""
    caught: list[dict[str, Any]] = []
    runner = asyncio.Runner(loop_factory=LOOPS[request.param])
    runner.get_loop().set_exception_handler(lambda _, context: caught.append(context))

    async def bounded(main: Coroutine[Any, Any, object]) -> None:
        late = f"it did not end within {BOUND:g} s"
        begin = own_time()
        try:
            async with asyncio.timeout(BOUND) as limit:
                result = await main
        except TimeoutError:
            if limit.expired():
                pytest.fail(late)
            raise
        # It blocked the loop, or swallowed the cancellation.
        assert own_time() - begin < BOUND, late
        assert result is None, f"a test returns nothing, and this one returned {result!r}"

    yield lambda main: runner.run(bounded(main))
    with must_end(request.config):
        runner.close()
    # A transport that was not closed warns here, and not in the middle of a later test.
    gc.collect()
    if caught:
        pytest.fail("the loop caught:\n" + "\n".join(map(_as_text, caught)), pytrace=False)


@pytest.fixture(autouse=True)
def log_levels() -> Iterator[None]:
    """Restore the level that every logger had before the test.

    The command line, run in this process, sets levels, and a later test would miss log lines.
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
