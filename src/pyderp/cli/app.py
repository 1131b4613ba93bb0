"""The command `pyderp`: its subcommands, and how errors end them."""

from __future__ import annotations

import errno
import logging
import sys
from collections.abc import Callable
from typing import Annotated, Any, NoReturn

import typer
from typer.core import TyperGroup

import pyderp
from pyderp.cli.output import OutputError, flush_stdout, print_event, print_line
from pyderp.cli.process import json_line
from pyderp.cli.relay import goflags, layers
from pyderp.errors import DerpError
from pyderp.native import installed_version

__all__ = ["app", "run_app"]


class _Group(TyperGroup):
    """Commands that say in JSON, too, what is wrong with the command line."""

    def invoke(self, ctx: typer.Context) -> Any:  # type: ignore[override]  # typer's own has another Context
        """Run the subcommand."""
        try:
            return super().invoke(ctx)
        except Exception as e:
            # A usage error; where its class is depends on typer's version.
            tell = getattr(e, "format_message", None)
            if tell is not None:
                _tell_in_json(tell())
                if _log_in_json(tell()):
                    raise typer.Exit(2) from None
            raise


def _tell_in_json(text: str) -> None:
    if "--json" in sys.argv[1:]:
        print_event("error", {"error": text, "advice": []})


def _log_in_json(text: str) -> bool:
    """Log what is wrong with a relay's command line, if it asks for a log in JSON.

    Returns:
        whether it does.
    """
    words = sys.argv[1:]
    if words[:1] not in (["relay"], ["derper"]) or not goflags.wants_json_log(words[1:]):
        return False
    typer.echo(json_line(logging.ERROR, "pyderp.relay", text), err=True)
    return True


def _carry_out(load: Callable[[], layers.Settings], log_format: str | None) -> None:
    # Not at the top: it brings the server, without which all other commands begin.
    from pyderp.cli.relay.run import carry_out

    carry_out(load, log_format)


app = typer.Typer(
    name="pyderp",
    help="DERP, Tailscale's relay protocol: a relay to run, a client, and tools around them.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
    cls=_Group,
)
app.command("relay", epilog=layers.EPILOG, help=layers.HELP, cls=layers.RelayCommand)(
    layers.relay_command(_carry_out)
)
app.command(
    "derper",
    help=goflags.HELP,
    context_settings={"ignore_unknown_options": True},
    add_help_option=False,
)(goflags.derper_command(_carry_out))


def _add_client_commands() -> None:
    from pyderp.cli import listen, netcheck, ping, send
    from pyderp.cli.key import key_app

    app.command("listen", epilog=listen.EPILOG, help=listen.HELP)(listen.listen)
    app.command("send", epilog=send.EPILOG, help=send.HELP)(send.send)
    app.command("ping", epilog=ping.EPILOG, help=ping.HELP)(ping.ping)
    app.command("netcheck", epilog=netcheck.EPILOG, help=netcheck.HELP)(netcheck.netcheck)
    app.add_typer(key_app, name="key")


# A relay's process does without the client, which costs megabytes and tenths of its start.
if sys.argv[1:2] not in (["relay"], ["derper"]):
    _add_client_commands()


def _version(value: bool) -> None:
    if value:
        native = installed_version()
        more = f" (pyderp-fast {native})" if native else ""
        print_line(f"pyderp {pyderp.__version__}{more}")
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
    if arguments[:1] == ["derper"]:
        return
    # Go's spelling would be taken as a bundle of short flags: -certmode=manual as
    # -c ertmode=manual, a relay without TLS that keeps its key in a file of that name.
    # But -c5 is a custom of ping's.
    for argument in arguments:
        name = argument.partition("=")[0]
        if len(name) > 2 and name[0] == "-" and name[1:3].isalpha():
            advice = layers.spelling_of(f"-{argument}")
        elif len(name) == 2 and "=" in argument and name[0] == "-" and name[1].isalpha():
            advice = argument.replace("=", " ", 1)
        else:
            continue
        text = f"{argument}: write {advice}; long flags have two dashes"
        if arguments[0] == "relay":
            text += ". `pyderp derper` takes them with one"
        _tell_in_json(text)
        if not _log_in_json(text):
            typer.echo(f"pyderp: {text}", err=True)
        sys.exit(2)


def run_app() -> None:
    """Run the command line; always ends with `SystemExit`, or `KeyboardInterrupt`."""
    _refuse_single_dashes(sys.argv[1:])
    try:
        try:
            app()
        except SystemExit as e:
            # The help is typer's, which prints it to nowhere. --version is ours, and fails.
            if sys.stdout is None and not e.code and "--help" in sys.argv[1:]:
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


def _end(text: str) -> NoReturn:
    typer.echo(f"pyderp: {text}", err=True)
    sys.exit(1)
