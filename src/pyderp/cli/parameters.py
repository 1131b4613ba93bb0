"""What the commands' help and errors have in common: options with a value, usage, switches."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import typer
from typer.core import TyperCommand

__all__ = ["Command", "seconds", "switches_without_type", "value", "whole_number"]


class Command(TyperCommand):
    """A command with a usage line as its arguments are written, and switches without a type."""

    def get_params(self, ctx: Any) -> Any:
        """Returns the parameters, `--help` included."""
        return switches_without_type(super().get_params(ctx))

    def collect_usage_pieces(self, ctx: Any) -> list[str]:
        """Returns the parts of the usage line.

        Typer would put `[URL] PEER` into braces, and dots after it. The text already says which of
        the two may be left out.
        """
        pieces = super().collect_usage_pieces(ctx)
        return [
            piece[1:].removesuffix("...")[:-1] if piece[1:2] == "[" and " " in piece else piece
            for piece in pieces
        ]


def switches_without_type(parameters: Any) -> Any:
    """Returns the parameters, after switches got an empty text for the value: they take none."""
    for each in parameters:
        if getattr(each, "is_flag", False) and each.metavar is None:
            each.metavar = ""
    return parameters


def value(metavar: str, text: str, *names: str, **more: Any) -> Any:
    """Returns an option that takes a value."""
    return typer.Option(*names, metavar=metavar, help=text, **more)


def seconds(text: str, *names: str, least: float = 0.001, most: float | None = None) -> Any:
    """Returns an option that takes seconds, from `least` to `most`."""
    parse = _bounded(float, "a number of seconds", least, most, " seconds")
    return value("SECONDS", text, *names, parser=parse)


def whole_number(
    metavar: str,
    text: str,
    *names: str,
    least: int | None = None,
    most: int | None = None,
    **more: Any,
) -> Any:
    """Returns an option that takes a whole number, from `least` to `most`."""
    parse = _bounded(int, "a whole number", least, most)
    return value(metavar, text, *names, parser=parse, **more)


def _bounded(
    kind: Callable[[str], float],
    wanted: str,
    least: float | None,
    most: float | None,
    unit: str = "",
) -> Callable[[str], float]:
    """Returns a parser of numbers, whose errors are worded as those of the relay's flags."""

    def parse(text: str) -> float:
        try:
            number = kind(text)
        except ValueError:
            raise typer.BadParameter(f"want {wanted}") from None
        # Written so that NaN is refused.
        if (least is None or number >= least) and (most is None or number <= most):
            return number
        # 16 digits: the largest id of a region has as many.
        limits = f"{least:.16g} or more" if most is None else f"{least:.16g} to {most:.16g}"
        raise typer.BadParameter(f"want {limits}{unit}")

    return parse
