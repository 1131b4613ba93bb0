"""`pyderp derper` and `pyderp-derper`: a relay by `derper`'s own command line, word for word."""

from __future__ import annotations

import os
import sys
from typing import Annotated

import typer

from pyderp.cli.output import print_line
from pyderp.cli.relayflags.go import GoFlagError, GoHelp, parse_go_flags, usage
from pyderp.cli.relayflags.load import load_settings
from pyderp.cli.relayflags.settings import Problems

__all__ = ["derper"]


def derper(
    _: Annotated[list[str] | None, typer.Argument(metavar="-FLAG=VALUE…")] = None,
) -> None:
    """Run a relay by a command line of Go's derper, word for word: -certmode=manual …

    All flags of `pyderp relay` can be given, with one dash or two; defaults are derper's.
    """
    # Not at the top: the other commands begin without it.
    from pyderp.cli.relayrun import Loaded, carry_out

    try:
        # Not what typer makes of them: it takes a -- for its own.
        given = parse_go_flags(sys.argv[2:])
    except GoHelp:
        print_line(usage("pyderp derper"))
        return
    except GoFlagError as e:
        typer.echo(f"{e}\n{usage('pyderp derper')}", err=True)
        raise typer.Exit(2) from None

    def load() -> Loaded:
        problems = Problems()
        return Loaded(load_settings(given, problems, derper=True), problems)

    carry_out(load, given.get("log-format") or os.environ.get("PYDERP_LOG_FORMAT"))
