"""How commands run: an event loop, Ctrl-C, and errors that say what to do."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
import sys
from collections.abc import Callable, Coroutine
from typing import Any

import typer

from pyderp.cli.advice import advice, notes
from pyderp.cli.logs import LINE, LineFormatter
from pyderp.cli.output import Output
from pyderp.errors import ConfigError, DerpError

__all__ = ["Refused", "loop_factory", "run_command", "set_up_logging"]


class Refused(DerpError):
    """The command line, or a file that it names, cannot be used: exit status 2."""


def run_command(
    work: Callable[[], Coroutine[Any, Any, int]], output: Output, *, from_map: bool = False
) -> None:
    """Run a command's coroutine to its end and exit with the number that it gives.

    An error of pyderp's or of the network's is told, with what to do about it, and the exit
    status is 1, or 2 for `Refused`. On Ctrl-C and SIGTERM the coroutine is cancelled; the exit
    status is 130 or 143.

    Args:
        from_map: a DERP map says where the relay is.
    """
    try:
        with asyncio.Runner(loop_factory=loop_factory()) as runner:
            code = runner.run(_until_sigterm(work))
    except BrokenPipeError:
        raise  # standard output is gone; typer ends quietly
    except (DerpError, OSError) as e:
        _tell(e, output, from_map=from_map)
        code = 2 if isinstance(e, Refused) else 1
    raise typer.Exit(code)


async def _until_sigterm(work: Callable[[], Coroutine[Any, Any, int]]) -> int:
    working = asyncio.ensure_future(work())
    terminated = False

    def terminate() -> None:
        nonlocal terminated
        terminated = True
        working.cancel()

    with contextlib.suppress(NotImplementedError):  # Windows
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, terminate)
    try:
        return await working
    except asyncio.CancelledError:
        if not terminated:
            raise
        return 128 + signal.SIGTERM


def _tell(error: Exception, output: Output, *, from_map: bool) -> None:
    text = str(error) or type(error).__name__
    remarks = notes(error)
    if remarks:
        text += f" ({', '.join(remarks)})"
    lines = advice(error, from_map=from_map)
    output.remark("error", text, error=text, advice=lines)
    for line in lines:
        output.note(line)


def loop_factory(kind: str = "auto") -> Callable[[], asyncio.AbstractEventLoop] | None:
    """What makes the event loop; `None`: asyncio does.

    Args:
        kind: `auto`, `uvloop` or `asyncio`.

    Raises:
        ConfigError: uvloop is asked for, and missing.
    """
    if kind == "asyncio":
        return None
    try:
        import uvloop
    except ImportError:
        if kind == "auto":
            return None
        raise ConfigError("uvloop is not installed; install it, or use --loop=asyncio") from None
    return uvloop.new_event_loop


def set_up_logging(*, verbose: bool) -> None:
    """Log to standard error: everything of pyderp's, or only what goes wrong."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(LineFormatter("pyderp: %(message)s"))
    if verbose:
        handler.setFormatter(LineFormatter(LINE))
    logging.basicConfig(handlers=[handler], level=logging.WARNING)
    logging.getLogger("pyderp").setLevel(logging.DEBUG if verbose else logging.WARNING)
