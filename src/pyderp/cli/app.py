"""The typer application `pyderp`: all subcommands, their help, and usage errors."""

from __future__ import annotations

import sys
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

import pyderp
from pyderp.cli.dispatch import carry_out
from pyderp.cli.output import print_line
from pyderp.cli.parameters import Command, switches_without_type
from pyderp.cli.relay import goflags, options
from pyderp.cli.usage import tell_in_json
from pyderp.native import installed_version

__all__ = ["app"]


class _Group(TyperGroup):
    """Prints usage errors as JSON, too, if the command line asks for JSON."""

    def get_params(self, ctx: Any) -> Any:
        """Returns the parameters, `--help` included."""
        return switches_without_type(super().get_params(ctx))

    def invoke(self, ctx: typer.Context) -> Any:  # type: ignore[override]  # typer's own has another Context
        """Run the subcommand."""
        try:
            return super().invoke(ctx)
        except Exception as e:
            # A usage error; where its class is depends on typer's version.
            tell = getattr(e, "format_message", None)
            if tell is not None and tell_in_json(tell(), sys.argv[1:]):
                raise typer.Exit(2) from None
            raise


EPILOG = """**Examples**

A relay on this machine, to try things out, and round trips to it:

`pyderp relay --dev`

`pyderp ping http://127.0.0.1:3340/derp`

Whether a relay works, and a DERP map with it:

`pyderp doctor derp.example.com`

`pyderp map new derp.example.com`

`pyderp COMMAND --help` has more.
"""

app = typer.Typer(
    name="pyderp",
    help="DERP, Tailscale's relay protocol: a relay to run, a client, and tools around them.",
    epilog=EPILOG,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
    cls=_Group,
)
app.command("relay", epilog=options.EPILOG, help=options.HELP, cls=options.RelayCommand)(
    options.relay_command(carry_out)
)


@app.command(
    "derper",
    help=goflags.HELP,
    context_settings={"ignore_unknown_options": True},
    add_help_option=False,
)
def _derper(
    _: Annotated[list[str] | None, typer.Argument(metavar="-FLAG=VALUE…")] = None,
) -> None:
    # Not typer's argument: typer removes a `--` from the words.
    goflags.run_derper(sys.argv[2:], carry_out)


def _add_client_commands() -> None:
    from pyderp.cli import doctor, listen, netcheck, ping, send
    from pyderp.cli.key import key_app
    from pyderp.cli.map.app import map_app

    app.command("listen", cls=Command, epilog=listen.EPILOG, help=listen.HELP)(listen.listen)
    app.command("send", cls=Command, epilog=send.EPILOG, help=send.HELP)(send.send)
    app.command("ping", cls=Command, epilog=ping.EPILOG, help=ping.HELP)(ping.ping)
    app.command("doctor", cls=Command, epilog=doctor.EPILOG, help=doctor.HELP)(doctor.doctor)
    app.command("netcheck", cls=Command, epilog=netcheck.EPILOG, help=netcheck.HELP)(
        netcheck.netcheck
    )
    app.add_typer(key_app, name="key")
    app.add_typer(map_app, name="map")


# A relay's process does not import the client, which costs megabytes and tenths of its start time.
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
