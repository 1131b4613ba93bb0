"""`pyderp key`: node keys in files and on standard output."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Final

import typer

from pyderp.cli.input import STDIN, read_private_key
from pyderp.cli.interrupts import held
from pyderp.cli.output import print_line
from pyderp.cli.parameters import Command
from pyderp.errors import ConfigError
from pyderp.keys import NodePrivate
from pyderp.secretfiles import write_atomically

__all__ = ["key_app"]

NEW_HELP: Final = "Make a private key and print it: `privkey:` and 64 hex digits."
PUBLIC_HELP: Final = (
    "Print the public key that belongs to a private key: `nodekey:` and 64 hex digits."
)
NEW_EPILOG: Final = """**Examples**

`pyderp key new -o me.key` keeps a new key in a file and prints the public key that belongs to it.

`pyderp key new | pyderp key public -` prints the public key of a key that is not kept.
"""
PUBLIC_EPILOG: Final = """**Example**

`pyderp key public me.key`
"""

key_app = typer.Typer(
    help="Make node keys, and print their public keys.",
    epilog="`pyderp key new --help` and `pyderp key public --help` have examples.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
)

AsJson = Annotated[bool, typer.Option("--json", help="Print a JSON object.")]


@key_app.command("new", cls=Command, epilog=NEW_EPILOG, help=NEW_HELP)
def new(
    output: Annotated[
        Path | None,
        typer.Option(
            "-o",
            "--output",
            metavar="FILE",
            help="Keep the key in this file, readable by its owner only, and print the public "
            "key. A file that exists is never overwritten.",
        ),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """The command; `NEW_HELP` says what it does."""
    key = NodePrivate.generate()
    if output is None:
        values = {"private": key.to_text(), "public": str(key.public)}
        print_line(json.dumps(values) if as_json else key.to_text())
        return
    text = json.dumps({"PrivateKey": key.to_text()}, indent="\t") + "\n"
    try:
        with held():
            written = write_atomically(output, text.encode(), mode=0o600, replace=False)
    except OSError as e:
        missing = isinstance(e, FileNotFoundError)
        advice = f"; make the folder {output.parent} first" if missing else ""
        raise ConfigError(f"cannot make the key file {output}: {e.strerror}{advice}") from e
    if not written:
        raise ConfigError(f"{output} exists and is not overwritten; give another name")
    values = {"file": str(output), "public": str(key.public)}
    print_line(json.dumps(values) if as_json else str(key.public))


@key_app.command("public", cls=Command, epilog=PUBLIC_EPILOG, help=PUBLIC_HELP)
def public(
    file: Annotated[
        Path,
        typer.Argument(
            metavar="[FILE|-]",
            help="File of the private key; -: standard input.",
        ),
    ] = STDIN,
    as_json: AsJson = False,
) -> None:
    """The command; `PUBLIC_HELP` says what it does."""
    key = read_private_key(file).public
    print_line(json.dumps({"public": str(key)}) if as_json else str(key))
