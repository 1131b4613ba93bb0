"""Kinds of flag values, which are read from text (flags and environment) or from TOML."""

from __future__ import annotations

import ipaddress
import math
import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

from pyderp import defaults
from pyderp.config import HealthRecipients
from pyderp.config.relay import Network
from pyderp.native import NativeUse

__all__ = [
    "Kind",
    "boolean",
    "choice",
    "depth",
    "duration",
    "folder",
    "go_duration",
    "integer",
    "names",
]
__all__ += ["exact_names", "networks", "number", "parse_boolean", "parse_duration", "path"]
__all__ += ["native_use", "port_or_none", "recipients", "text"]

_DURATION: Final = re.compile(r"(?:(?:\d+\.?\d*|\.\d+)(?:ns|us|µs|μs|ms|s|m|h))+")
_PART: Final = re.compile(r"(\d+\.?\d*|\.\d+)(ns|us|µs|μs|ms|s|m|h)")
_MICRO: Final = dict.fromkeys(("us", "µs", "μs"), 1e-6)
_SECONDS: Final = _MICRO | {"ns": 1e-9, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0}
_LONGEST: Final = 64
"""Characters of a number; for longer ones Python's parser raises an error of its own."""
_TYPES: Final = {
    bool: "a boolean",
    int: "an integer",
    float: "a float",
    str: "a string",
    list: "an array",
    dict: "a table",
}


@dataclass(frozen=True)
class Kind:
    """How the values of a flag are written.

    Args:
        metavar: what stands for a value in help; empty: a switch, which takes none.
        parse: makes a value from text; raises `ValueError` with what is wanted.
        toml: types that are accepted from TOML beside strings.
        go: the type's name in a usage text of Go's `flag` package.
        of_list: makes a value from a list of strings, if it may be an array in TOML.
    """

    metavar: str
    parse: Callable[[str], Any]
    toml: tuple[type, ...] = ()
    go: str = "string"
    of_list: Callable[[list[str]], Any] | None = None
    alone: str = ""
    """The value of the flag without one, if it may stand alone and also take a value."""
    none: str = ""
    """The text that stands for `None`, if there is one."""

    @property
    def switch(self) -> bool:
        """Whether the flag takes no value: given, it is true."""
        return not self.metavar

    def from_toml(self, value: object) -> Any:
        """Returns the value for one of TOML; raises `ValueError` with what is wanted."""
        if self.of_list is not None and isinstance(value, list):
            if not all(isinstance(item, str) for item in value):
                raise ValueError("want an array of strings")
            return self.of_list(value)
        if type(value) in self.toml:
            return self.parse(str(value).lower() if isinstance(value, bool) else str(value))
        if isinstance(value, str):
            return self.parse(value)
        wanted = [_TYPES[kind] for kind in (*self.toml, str)]
        if self.of_list is not None:
            wanted.append("an array of strings")
        kind = _TYPES.get(type(value), "a date or time")
        raise ValueError(f"it is {kind}; want {' or '.join(wanted)}")


def parse_boolean(word: str) -> bool:
    """Returns a boolean from the words of Go's `strconv.ParseBool` and a few more."""
    lower = word.lower()
    if lower in ("1", "t", "true", "y", "yes", "on"):
        return True
    if lower in ("0", "f", "false", "n", "no", "off"):
        return False
    raise ValueError("want true or false")


def parse_duration(word: str) -> float:
    """Returns seconds from Go's syntax, as `1m30s` or `500ms`, or from a number of seconds."""
    if len(word) > _LONGEST:
        raise ValueError("want a duration such as 15s or 1m30s")
    if _DURATION.fullmatch(word):
        return math.fsum(float(n) * _SECONDS[unit] for n, unit in _PART.findall(word))
    try:
        seconds = float(word)
    except ValueError:
        raise ValueError("want a duration such as 15s, 1m30s or 2.5 (seconds)") from None
    if not 0 <= seconds < math.inf:
        raise ValueError("want 0 or more seconds")
    return seconds


def go_duration(seconds: float) -> str:
    """Returns seconds as Go prints a duration: `1m0s`, `500ms`."""
    if not seconds:
        return "0s"
    if seconds < 1:
        return f"{seconds * 1e3:g}ms"
    minutes, rest = divmod(seconds, 60)
    hours, minutes = divmod(int(minutes), 60)
    whole = f"{hours}h{minutes}m" if hours else f"{minutes}m" if minutes else ""
    return f"{whole}{rest:g}s"


def integer(least: int | None = None, most: int | None = None, *, metavar: str = "NUMBER") -> Kind:
    """A whole number in a range."""

    def parse(word: str) -> int:
        try:
            if len(word) > _LONGEST:
                raise ValueError
            value = int(word, 0)  # as Go, also 0x10 and 1_000
        except ValueError:
            raise ValueError("want a whole number") from None
        if (least is not None and value < least) or (most is not None and value > most):
            wanted = f"{least} or more" if most is None else f"{least} to {most}"
            raise ValueError(f"want {wanted}")
        return value

    return Kind(metavar, parse, (int,), go="int")


port_or_none: Final = replace(integer(-1, 65535), none="-1")


def _depth(word: str) -> int:
    # As with derper, 0 and less count as not given.
    value: int = integer().parse(word)
    return value if value > 0 else defaults.SEND_QUEUE_DEPTH


def number(metavar: str = "NUMBER") -> Kind:
    """A number that is not negative; `inf` is one."""

    def parse(word: str) -> float:
        try:
            value = float(word)
        except ValueError:
            raise ValueError("want a number") from None
        if not value >= 0:
            raise ValueError("want 0 or more")
        return value

    return Kind(metavar, parse, (int, float), go="float")


def choice(*words: str) -> Kind:
    """One of some words."""

    def parse(word: str) -> str:
        if word not in words:
            raise ValueError(f"want {', '.join(words[:-1])} or {words[-1]}")
        return word

    return Kind("|".join(words), parse)


def text(metavar: str) -> Kind:
    """Any text."""
    return Kind(metavar, str)


def names(metavar: str) -> Kind:
    """Words separated by commas; white space around them and empty words are dropped."""
    return Kind(metavar, lambda word: _split(word.split(",")), of_list=_split)


def exact_names(metavar: str) -> Kind:
    """Words separated by commas, taken exactly: spaces and empty words are kept."""
    return Kind(metavar, lambda word: tuple(word.split(",")) if word else (), of_list=tuple)


def _split(items: list[str]) -> tuple[str, ...]:
    return tuple(stripped for item in items if (stripped := item.strip()))


def networks(metavar: str = "CIDR,…") -> Kind:
    """Networks separated by commas; an address is a network of one address."""

    def make(items: list[str]) -> tuple[Network, ...]:
        found = []
        for item in _split(items):
            try:
                found.append(ipaddress.ip_network(item, strict=False))
            except ValueError:
                raise ValueError(
                    f"{item!r} is not a network; want one such as 10.0.0.0/8"
                ) from None
        return tuple(found)

    return Kind(metavar, lambda word: make(word.split(",")), of_list=make)


def _path(word: str) -> Path | None:
    # An unset variable in a script or compose file leaves the value empty.
    return Path(word) if word else None


depth: Final = Kind("NUMBER", _depth, (int,), go="int")


def _recipients(word: str) -> HealthRecipients:
    if word in list(HealthRecipients):
        return HealthRecipients(word)
    try:
        return HealthRecipients.KNOWN if parse_boolean(word) else HealthRecipients.NONE
    except ValueError:
        raise ValueError("want known, all or none") from None


def _native_use(word: str) -> NativeUse:
    if word in list(NativeUse):
        return NativeUse(word)
    try:
        return NativeUse.ON if parse_boolean(word) else NativeUse.OFF
    except ValueError:
        raise ValueError("want auto, on or off") from None


native_use: Final = Kind("auto|on|off", _native_use, (bool,))
recipients: Final = Kind("known|all|none", _recipients, (bool,), alone="known")
boolean: Final = Kind("", parse_boolean, (bool,), go="")
duration: Final = Kind("DURATION", parse_duration, (int, float), go="duration")
path: Final = Kind("FILE", _path)
folder: Final = Kind("DIR", _path)
