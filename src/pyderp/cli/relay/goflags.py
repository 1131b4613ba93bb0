"""Flags as Go's `flag` package reads them: `derper`'s command lines, word for word."""

from __future__ import annotations

import logging
import os
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final, NoReturn

from pyderp.cli.output import print_error, print_line
from pyderp.cli.process import json_line
from pyderp.cli.relay.flags import DERPER_HOSTNAME, FLAGS
from pyderp.cli.relay.layers import CarryOut, load_settings
from pyderp.cli.relay.values import Kind, go_duration

__all__ = ["run_derper", "usage", "wants_json_log"]

_FLAGS: Final = {flag.go_name or flag.name: flag for flag in FLAGS}

HELP: Final = """Run a relay by a command line of Go's derper, word for word: -certmode=manual …

All flags of `pyderp relay` can be given, with one dash or two; defaults are derper's.
"""


class GoFlagError(Exception):
    """A command line that Go's `flag` package would refuse."""


def run_derper(words: Sequence[str], carry_out: CarryOut) -> None:
    """Carry out a command line of `derper`; exits 2 if `derper` would refuse it."""
    try:
        given = _parse_go_flags(words)
    except GoFlagError as e:
        _refuse(words, str(e))
    if given is None:
        print_line(usage("pyderp derper"))
        return
    carry_out(
        lambda: load_settings(given, defaults=_derper_defaults(), derper=True),
        given.get("log-format") or os.environ.get("PYDERP_LOG_FORMAT"),
    )


def _refuse(words: Sequence[str], text: str) -> NoReturn:
    if wants_json_log(words):
        print_error(json_line(logging.ERROR, "pyderp.relay", text))
    else:
        # Go prints the usage as well; in a journal, the error would be 140 lines above the end.
        print_error(f"pyderp: {text}; `pyderp derper -help` lists all flags")
    sys.exit(2)


def _parse_go_flags(arguments: Sequence[str]) -> dict[str, Any] | None:
    """Returns the values of a command line, by the flag's name; `None`: it asks for help.

    Raises:
        GoFlagError: a flag is unknown, a value is invalid, or a word is not a flag.
    """
    values = {}
    rest = iter(arguments)
    for argument in rest:
        name, equals, text = _split(argument)
        flag = _FLAGS.get(name)
        if flag is None:
            if name in ("h", "help"):
                return None
            raise GoFlagError(f"flag provided but not defined: -{name}")
        if not equals:
            text = "true" if flag.kind.switch or flag.kind.alone else next(rest, None)
        if text is None:
            raise GoFlagError(f"flag needs an argument: -{name}")
        try:
            values[flag.name] = flag.kind.parse(text)
        except ValueError as e:
            what = "boolean value" if flag.kind.switch else "value"
            raise GoFlagError(f"invalid {what} {text!r} for -{name}: {e}") from None
    return values


def _split(argument: str) -> tuple[str, str, str | None]:
    if len(argument) < 2 or argument[0] != "-" or argument == "--":
        # Go stops reading flags here, and a relay would run without those that follow.
        raise GoFlagError(
            f"{argument!r} is not a flag, and derper would ignore it and all after it; a switch is "
            "turned off with -flag=false"
        )
    bare = argument[2:] if argument.startswith("--") else argument[1:]
    name, equals, text = bare.partition("=")
    if not name or name.startswith("-"):
        raise GoFlagError(f"bad flag syntax: {argument}")
    return name, equals, text


def wants_json_log(words: Sequence[str]) -> bool:
    """Whether a relay's command line, which may be invalid, or else the environment asks for a log
    in JSON."""
    form = os.environ.get("PYDERP_LOG_FORMAT", "")
    for word, following in zip(words, [*words[1:], ""], strict=True):
        name, equals, text = word.lstrip("-").partition("=")
        if word.startswith("-") and name == "log-format":
            form = text if equals else following
    return form == "json"


def usage(program: str) -> str:
    """Returns the usage in the form of Go's `flag` package, with our texts."""
    defaults = _derper_defaults()
    lines = [f"Usage of {program}:"]
    for name, flag in sorted(_FLAGS.items()):
        default = _go_default(flag.kind, defaults.get(flag.name, flag.default))
        lines.append(f"  -{name} {flag.kind.go}".rstrip())
        lines.append(f"    \t{_in_go_spelling(flag.go_help or flag.help)}{default}")
    return "\n".join(lines)


def _in_go_spelling(text: str) -> str:
    """Returns a help text with flags as Go spells them: `-stun=false` for `--no-stun`."""
    text = re.sub(r"--no-([a-z][a-z-]*)", r"-\1=false", text)
    return re.sub(r"--(?=[a-z])", "-", text)


def _go_default(kind: Kind, value: object) -> str:
    if value in (None, "", (), False):
        return ""
    if isinstance(value, bool):
        return " (default true)"
    if kind.go == "duration" and isinstance(value, int | float):
        return f" (default {go_duration(value)})"
    if kind.go == "string":
        return f' (default "{value}")'
    return f" (default {value:g})" if isinstance(value, float) else f" (default {value})"


def _derper_defaults() -> dict[str, Any]:
    """Returns `derper`'s defaults where they differ from ours."""
    home = os.environ.get("HOME", "")
    cache = os.environ.get("XDG_CACHE_HOME", "") or (home and f"{home}/.cache")
    mesh_keys = [Path(folder, "keys", "derp-mesh.key") for folder in ("/home/derp", home) if folder]
    return {
        "certmode": "letsencrypt",
        "hostname": DERPER_HOSTNAME,
        "certdir": Path(cache, "tailscale", "derper-certs") if cache.startswith("/") else None,
        "mesh-psk-file": next(filter(os.path.exists, mesh_keys), None),
    }
