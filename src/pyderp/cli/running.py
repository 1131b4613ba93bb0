"""How commands run: an event loop, Ctrl-C, and errors that say what to do."""

from __future__ import annotations

import asyncio
import logging
import sys
from collections.abc import Callable, Coroutine
from typing import Any

import typer

from pyderp.cli.advice import advice
from pyderp.cli.output import Output, escaped
from pyderp.errors import DerpError

__all__ = ["run_command", "set_up_logging"]


def run_command(work: Callable[[], Coroutine[Any, Any, int]], output: Output) -> None:
    """Run a command's coroutine to its end and exit with the number that it gives.

    An error of pyderp's or of the network's is told, with what to do about it, and the exit
    status is 1. On Ctrl-C the coroutine is cancelled.
    """
    try:
        with asyncio.Runner(loop_factory=_loop_factory()) as runner:
            code = runner.run(work())
    except BrokenPipeError:
        raise  # standard output is gone; typer ends quietly
    except (DerpError, OSError) as e:
        _tell(e, output)
        code = 1
    raise typer.Exit(code)


def _tell(error: Exception, output: Output) -> None:
    text = str(error) or type(error).__name__
    lines = advice(error)
    output.remark("error", text, error=text, advice=lines)
    for line in lines:
        output.note(line)


def _loop_factory() -> Callable[[], asyncio.AbstractEventLoop] | None:
    try:
        import uvloop
    except ImportError:
        return None
    return uvloop.new_event_loop


class _Formatter(logging.Formatter):
    """Log lines that cannot steer a terminal; texts of strangers may be in them."""

    def format(self, record: logging.LogRecord) -> str:
        return "\n".join(map(escaped, super().format(record).splitlines()))


def set_up_logging(*, verbose: bool) -> None:
    """Log to standard error: everything of pyderp's, or only what goes wrong."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_Formatter("pyderp: %(message)s"))
    if verbose:
        handler.setFormatter(_Formatter("%(asctime)s %(levelname)s %(message)s"))
    logging.basicConfig(handlers=[handler], level=logging.WARNING)
    logging.getLogger("pyderp").setLevel(logging.DEBUG if verbose else logging.WARNING)
