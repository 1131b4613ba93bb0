"""Runs a command line, and ends the process with its exit status or error."""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Callable, Sequence
from typing import NoReturn

from pyderp.cli.output import OutputError, flush_stdout, print_error
from pyderp.cli.relay.goflags import run_derper
from pyderp.cli.relay.layers import Settings, load_settings, values_of
from pyderp.cli.usage import refuse_single_dashes
from pyderp.errors import DerpError

__all__ = ["carry_out", "run_words"]


def run_words(words: Sequence[str]) -> NoReturn:
    """Run the command line; always ends with `SystemExit`, or `KeyboardInterrupt`."""
    refuse_single_dashes(words)
    try:
        try:
            _run(words)
        except SystemExit as e:
            # With standard output closed, typer prints its help nowhere and exits with 0.
            # `--version`, which is ours, raises by itself.
            if sys.stdout is None and not e.code and "--help" in words:
                raise OutputError("cannot write to standard output: it is closed") from None
            raise
        finally:
            flush_stdout()
    except BrokenPipeError:
        sys.exit(1)
    except DerpError as e:
        _end(str(e))
    except OSError as e:
        if e.errno != errno.ENOSPC:
            raise
        _end(f"cannot write to standard output: {e.strerror}")  # the help
    sys.exit(0)


def _run(words: Sequence[str]) -> None:
    command, *rest = words or ("",)
    if command == "derper":
        run_derper(rest, carry_out)
    elif command == "relay" and (given := values_of(rest, os.environ)) is not None:
        carry_out(lambda: load_settings(given), given.get("log-format"))
    else:
        # Not at the top: it imports typer, which plain command lines of a relay do without.
        from pyderp.cli.app import app

        app()


def carry_out(load: Callable[[], Settings], log_format: str | None) -> None:
    """Do what a relay's settings ask for (`CarryOut`)."""
    # Not at the top: it imports the server, which no other command needs.
    from pyderp.cli.relay import run

    run.carry_out(load, log_format)


def _end(text: str) -> NoReturn:
    print_error(f"pyderp: {text}")
    sys.exit(1)
