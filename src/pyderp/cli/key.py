"""`pyderp key`: node keys in files and on standard output."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Final

import typer

from pyderp import gojson
from pyderp.cli.output import print_line
from pyderp.cli.stdin import read_stdin
from pyderp.errors import ConfigError, InvalidKey
from pyderp.keyfile import write_atomically
from pyderp.keys import NodePrivate

__all__ = ["key_app", "read_private_key"]

NEW_EPILOG: Final = """**Examples**

`pyderp key new -o me.key` keeps a new key in a file and prints the public key that belongs to it.

`pyderp key new | pyderp key public -` prints the public key of a key that nobody keeps.
"""
PUBLIC_EPILOG: Final = """**Example**

`pyderp key public me.key`
"""

_STDIN: Final = Path("-")
_MAX_FILE: Final = 64 * 1024

key_app = typer.Typer(
    help="Make node keys, and tell their public keys.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
)

AsJson = Annotated[bool, typer.Option("--json", help="Print a JSON object.")]


@key_app.command("new", epilog=NEW_EPILOG)
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
    """Make a private key and print it: `privkey:` and 64 hex digits."""
    key = NodePrivate.generate()
    if output is None:
        values = {"private": key.to_text(), "public": str(key.public)}
        print_line(json.dumps(values) if as_json else key.to_text())
        return
    _write(output, key)
    values = {"file": str(output), "public": str(key.public)}
    print_line(json.dumps(values) if as_json else str(key.public))


@key_app.command("public", epilog=PUBLIC_EPILOG)
def public(
    file: Annotated[
        Path,
        typer.Argument(
            metavar="[FILE|-]",
            help="File of the private key; -: standard input.",
        ),
    ] = _STDIN,
    as_json: AsJson = False,
) -> None:
    """Print the public key that belongs to a private key: `nodekey:` and 64 hex digits."""
    key = read_private_key(file).public
    print_line(json.dumps({"public": str(key)}) if as_json else str(key))


def read_private_key(path: Path) -> NodePrivate:
    """The key in a file: `privkey:…`, or the JSON of a relay's key file. `-`: standard input.

    Raises:
        ConfigError: the file cannot be read or holds no key; its content is never shown.
    """
    name = "standard input" if path == _STDIN else f"the key file {path}"
    text = _read(path, name).strip()
    if not text.startswith("privkey:"):
        try:
            document = gojson.parse(text)
        except ValueError:
            document = None
        value = document.get("PrivateKey") if isinstance(document, dict) else None
        if not isinstance(value, str):
            raise ConfigError(
                f'{name} holds no key: want privkey: and 64 hex digits, or {{"PrivateKey": '
                '"privkey:…"}'
            )
        text = value
    try:
        return NodePrivate.parse(text)
    except InvalidKey as e:
        raise ConfigError(f"{name} holds no usable key: {e}") from None


def _read(path: Path, name: str) -> str:
    try:
        if path == _STDIN:
            data = read_stdin(_MAX_FILE)
        else:
            with path.open("rb") as file:
                data = file.read(_MAX_FILE)
    except FileNotFoundError:
        raise ConfigError(f"{name} is not there; make one with: pyderp key new -o {path}") from None
    except OSError as e:
        raise ConfigError(f"cannot read {name}: {e.strerror}") from e
    # What is not text is no key, and is told so without showing it.
    return data.decode(errors="replace")


def _write(path: Path, key: NodePrivate) -> None:
    text = json.dumps({"PrivateKey": key.to_text()}, indent="\t") + "\n"
    try:
        written = write_atomically(path, text.encode(), mode=0o600, replace=False)
    except OSError as e:
        raise ConfigError(f"cannot make the key file {path}: {e.strerror}") from e
    if not written:
        raise ConfigError(f"{path} exists and is not overwritten; give another name")
