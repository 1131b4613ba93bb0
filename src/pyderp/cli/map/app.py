"""The commands of `pyderp map`."""

from __future__ import annotations

import typer

from pyderp.cli.map import check, make, show
from pyderp.cli.parameters import Command

__all__ = ["map_app"]

map_app = typer.Typer(
    help="Show, check, compare, make and convert DERP maps: files, URLs, headscale, policies.",
    epilog="`pyderp map show --help`, and that of each other command, has examples.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
)
map_app.command("show", cls=Command, epilog=show.SHOW_EPILOG, help=show.SHOW_HELP)(show.show)
map_app.command("lint", cls=Command, epilog=check.LINT_EPILOG, help=check.LINT_HELP)(
    check.lint_command
)
map_app.command("diff", cls=Command, epilog=check.DIFF_EPILOG, help=check.DIFF_HELP)(
    check.diff_command
)
map_app.command("new", cls=Command, epilog=make.NEW_EPILOG, help=make.NEW_HELP)(make.new)
map_app.command("convert", cls=Command, epilog=show.CONVERT_EPILOG, help=show.CONVERT_HELP)(
    show.convert
)
