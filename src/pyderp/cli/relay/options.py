"""The relay's flags as typer's options, for its help and for errors in a command line."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Annotated, Any, Final

import typer

from pyderp.cli.parameters import Command
from pyderp.cli.relay.flags import FLAGS, Flag
from pyderp.cli.relay.layers import CarryOut, load_settings

__all__ = ["EPILOG", "HELP", "RelayCommand", "relay_command"]

HELP = "Run a DERP relay."
EPILOG = """**Examples**

A relay for this machine only, to try things out:

`pyderp relay --dev`

On ports 443, 80 and 3478/udp, with a certificate from Let's Encrypt:

`pyderp relay --hostname=relay.example.com`

By IP address, with a self-signed certificate that the DERP map pins:

`pyderp relay --hostname=203.0.113.7`

The DERP map of that relay, for Tailscale's policy file and for headscale:

`pyderp relay --hostname=203.0.113.7 --show-map=all`

With a certificate of your own, in /etc/derp/derp.example.com.crt and .key:

`pyderp relay --certmode=manual --certdir=/etc/derp --hostname=derp.example.com -c relay.key`

Check the settings in a file, and all files and ports that they name:

`pyderp relay --config-file=/etc/pyderp/relay.toml --check`
"""


def _misspelt(word: str, following: str) -> str | None:
    """Returns the error for a word that Go's flag package would take and typer does not.

    Args:
        following: the next word of the command line, which may be a value for a switch.

    Returns:
        the text, with the right spelling; `None`: nothing is wrong with the word.
    """
    name, equals, text = word.partition("=")
    if not name.startswith("--"):
        return None
    for flag in FLAGS:
        if name == f"--{flag.name}" and flag.kind.switch and equals:
            try:
                value = flag.kind.parse(text)
            except ValueError:
                return f"{word}: {name} takes no value"
            meant = name if value else f"--no-{flag.name}" if flag.in_file else f"no {name}"
            return f"{word}: write {meant}; a switch takes no value"
        if word in _spellings(flag) and following.lower() in ("true", "false"):
            return f"{word} {following}: a switch takes no value: {' or '.join(_spellings(flag))}"
        if name[1:] in flag.also and len(name) == 3:
            value = text if equals else flag.kind.metavar or "VALUE"
            return f"{word}: write {name[1:]} {value}, or --{flag.name}={value}"
    return None


def _spellings(flag: Flag) -> list[str]:
    """Returns the ways to write a switch; empty for a flag that takes a value."""
    if not flag.kind.switch:
        return []
    return [f"--{flag.name}", *([f"--no-{flag.name}"] if flag.in_file else [])]


_ALONE: Final = {flag.name: flag for flag in FLAGS if flag.kind.alone}


class RelayCommand(Command):
    """A command with flags that may stand alone or take a value, such as `--health`."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Parse the command line, after such flags that stand alone, also as `--no-NAME`, got
        their value."""
        given = []
        for word, following in zip(args, [*args[1:], "-"], strict=False):
            if error := _misspelt(word, following):
                ctx.fail(error)
            flag = _ALONE.get(word.removeprefix("--no-").removeprefix("--"))
            if flag is not None and word == f"--no-{flag.name}":
                given.append(f"--{flag.name}=false")
            elif flag is not None and word == f"--{flag.name}" and following.startswith("-"):
                given.append(f"{word}={flag.kind.alone}")
            else:
                given.append(word)
        return super().parse_args(ctx, given)


def relay_command(carry_out: CarryOut) -> Callable[..., None]:
    """Returns the function of `pyderp relay`, with the signature that typer reads."""

    def relay(**values: Any) -> None:
        given = {flag.name: values[flag.parameter] for flag in FLAGS}
        carry_out(lambda: load_settings(given), given["log-format"])

    parameters = [
        inspect.Parameter(
            flag.parameter, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=_option(flag)
        )
        for flag in FLAGS
    ]
    vars(relay)["__signature__"] = inspect.Signature(parameters)
    relay.__annotations__ = {each.name: each.annotation for each in parameters}
    return relay


def _option(flag: Flag) -> Any:
    # Every default is None, to tell a given value, which wins over the file, from a default.
    default = flag.shown_default
    common: dict[str, Any] = {
        "help": f"{flag.help}  [default: {default}]" if default else flag.help,
        "envvar": flag.variable or None,
        "show_default": False,
        "rich_help_panel": flag.panel,
    }
    if flag.kind.switch:
        return Annotated[bool | None, typer.Option("/".join(_spellings(flag)), **common)]
    spellings = [*flag.also, f"--{flag.name}"]
    if flag.kind.alone:
        spellings.append(f"--no-{flag.name}")  # `RelayCommand` gives it its value

    def parse(text: str) -> Any:
        try:
            return flag.kind.parse(text)
        except ValueError as e:
            # Errors about an item of a list quote the item, which may be all of the text.
            words = str(e) if str(e).startswith(repr(text)) else f"{text!r}: {e}"
            raise typer.BadParameter(words) from None

    return Annotated[
        str | None,
        typer.Option(*spellings, metavar=flag.kind.metavar, parser=parse, **common),
    ]
