"""The command `pyderp`."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

import pyderp
from pyderp.cli.relay import EPILOG, relay
from pyderp.errors import DerpError

__all__ = ["app", "main"]

app = typer.Typer(
    name="pyderp",
    help="DERP, Tailscale's relay protocol: a relay to run, and tools around it.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
)
app.command("relay", epilog=EPILOG)(relay)


def _version(value: bool) -> None:
    if value:
        typer.echo(f"pyderp {pyderp.__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool,
        typer.Option("--version", callback=_version, is_eager=True, help="Print the version."),
    ] = False,
) -> None:
    pass


def main() -> None:
    """Run the command line; exit 1 for what cannot be done, 2 for a wrong command line."""
    try:
        app()
    except DerpError as e:
        typer.echo(f"pyderp: {e}", err=True)
        sys.exit(1)
    except KeyboardInterrupt:
        sys.exit(130)
