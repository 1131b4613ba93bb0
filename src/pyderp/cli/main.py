"""The command `pyderp`."""

from __future__ import annotations

import signal
import sys
from typing import Annotated

import typer

import pyderp
from pyderp.cli import listen, ping, relay, send
from pyderp.cli.key import key_app
from pyderp.errors import DerpError

__all__ = ["app", "main"]

app = typer.Typer(
    name="pyderp",
    help="DERP, Tailscale's relay protocol: a relay to run, a client, and tools around them.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
)
app.command("relay", epilog=relay.EPILOG)(relay.relay)
app.command("listen", epilog=listen.EPILOG)(listen.listen)
app.command("send", epilog=send.EPILOG)(send.send)
app.command("ping", epilog=ping.EPILOG)(ping.ping)
app.add_typer(key_app, name="key")


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


def _refuse_single_dashes(arguments: list[str]) -> None:
    # Go's spelling would be taken as a bundle of short flags: -certmode=manual as
    # -c ertmode=manual, a relay without TLS that keeps its key in a file of that name.
    # But -c5 is a custom of ping's.
    for argument in arguments:
        name = argument.partition("=")[0]
        if len(name) > 2 and name[0] == "-" and name[1:3].isalpha():
            advice = f"-{argument}"
        elif len(name) == 2 and "=" in argument and name[0] == "-" and name[1].isalpha():
            advice = argument.replace("=", " ", 1)
        else:
            continue
        typer.echo(f"pyderp: {argument}: write {advice}; long flags have two dashes", err=True)
        sys.exit(2)


def main() -> None:
    """Run the command line; exit 1 for what cannot be done, 2 for a wrong command line."""
    # A relay's reload signal that comes before there is anything to reload must not end it.
    if sys.argv[1:2] == ["relay"] and hasattr(signal, "SIGHUP"):
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
    _refuse_single_dashes(sys.argv[1:])
    try:
        app()
    except DerpError as e:
        typer.echo(f"pyderp: {e}", err=True)
        sys.exit(1)
    except KeyboardInterrupt:
        sys.exit(130)
