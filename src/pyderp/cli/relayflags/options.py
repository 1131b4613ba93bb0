"""The table of flags as the parameters of a command."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Annotated, Any, Final, TypeVar

import typer

from pyderp.cli.relayflags.flag import Flag
from pyderp.cli.relayflags.table import FLAGS

__all__ = ["flag_layer", "takes_flags", "with_values"]

_Function = TypeVar("_Function", bound=Callable[..., None])


def takes_flags(function: _Function) -> _Function:
    """Give a function that takes any keywords the signature of all flags, for typer."""
    parameters = [
        inspect.Parameter(
            flag.parameter, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=_option(flag)
        )
        for flag in FLAGS
    ]
    vars(function)["__signature__"] = inspect.Signature(parameters)
    function.__annotations__ = {each.name: each.annotation for each in parameters}
    return function


def _option(flag: Flag) -> Any:
    # All defaults are None: a value that was given wins over the file, a default does not.
    default = flag.told_default
    told = f"{flag.help}  [default: {default}]" if default else flag.help
    common: dict[str, Any] = {
        "help": told,
        "envvar": flag.variable or None,
        "show_default": False,
        "rich_help_panel": flag.panel,
    }
    if flag.kind.switch:
        spelling = f"--{flag.name}/--no-{flag.name}" if flag.in_file else f"--{flag.name}"
        return Annotated[bool | None, typer.Option(spelling, **common)]
    spellings = [*flag.also, f"--{flag.name}"]
    if flag.kind.alone:
        spellings.append(f"--no-{flag.name}")  # `with_values` gives it its value
    return Annotated[
        str | None,
        typer.Option(*spellings, metavar=flag.kind.metavar, parser=_parser(flag), **common),
    ]


def with_values(arguments: list[str]) -> list[str]:
    """A command line where flags that may stand alone, as `--no-NAME` too, have their value."""
    given = []
    for word, following in zip(arguments, [*arguments[1:], "-"], strict=False):
        flag = _ALONE.get(word.removeprefix("--no-").removeprefix("--"))
        if flag is not None and word == f"--no-{flag.name}":
            given.append(f"--{flag.name}=false")
        elif flag is not None and word == f"--{flag.name}" and following.startswith("-"):
            given.append(f"{word}={flag.kind.alone}")
        else:
            given.append(word)
    return given


_ALONE: Final = {flag.name: flag for flag in FLAGS if flag.kind.alone}


def _parser(flag: Flag) -> Callable[[str], Any]:
    def parse(text: str) -> Any:
        try:
            return flag.kind.parse(text)
        except ValueError as e:
            raise typer.BadParameter(f"{text!r}: {e}") from None

    return parse


def flag_layer(values: Mapping[str, Any]) -> dict[str, Any]:
    """What typer made of the command line and the environment, by the flag's name."""
    return {flag.name: values[flag.parameter] for flag in FLAGS}
