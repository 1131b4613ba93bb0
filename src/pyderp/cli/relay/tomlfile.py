"""The relay's TOML file: read strictly, with the line of each mistake."""

from __future__ import annotations

import difflib
import re
import tomllib
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any, Final

from pyderp.cli.relay.flags import FLAGS
from pyderp.errors import ConfigError

__all__ = ["read_toml", "toml_value"]

_MAX_FILE: Final = 1024 * 1024
_POSITION: Final = re.compile(r"^(.*) \(at (line \d+, column \d+|end of document)\)$", re.DOTALL)
_WANTED: Final = "; want text in quotes, a number, true, false or a [list]"
_IN_FILE: Final = {flag.name: flag for flag in FLAGS if flag.in_file}
_SPELLINGS: Final = {
    each.lstrip("-"): flag.name for flag in _IN_FILE.values() for each in (flag.name, *flag.also)
}


def read_toml(path: Path) -> Iterator[tuple[str, object, str]]:
    """Yields the settings in a file: name, value, and the place to name in errors.

    Raises:
        ConfigError: the file cannot be read or is no TOML.
    """
    text = _read(path)
    try:
        document = tomllib.loads(text)
    except ValueError as e:  # a TOMLDecodeError, or a number of thousands of digits
        raise ConfigError(f"settings file {path}, {_position(str(e), text)}") from None
    except RecursionError:
        raise ConfigError(f"settings file {path}: nested too deeply") from None
    for name, value in document.items():
        line = next((number for number, names in _statements(text) if name in names), 1)
        yield name, value, f"settings file {path}, line {line}: {name}"


def _read(path: Path) -> str:
    try:
        with path.open("rb") as file:
            data = file.read(_MAX_FILE + 1)
    except OSError as e:
        raise ConfigError(f"cannot read the settings file {path}: {e.strerror}") from e
    if len(data) > _MAX_FILE:
        raise ConfigError(f"settings file {path}: larger than 1 MiB")
    try:
        return data.decode()
    except UnicodeDecodeError as e:
        line = data.count(b"\n", 0, e.start) + 1
        raise ConfigError(f"settings file {path}, line {line}: not UTF-8") from None


def _position(error: str, text: str) -> str:
    match = _POSITION.match(error)
    if match is None:
        return error
    # Of an error at the end of the file, the cause is the statement that began last.
    begin = [number for number, _ in _statements(text)][-1:]
    where = match[2] if match[2].startswith("line") else f"line {begin[0] if begin else 1}"
    wanted = _WANTED if match[1] == "Invalid value" else ""
    return f"{where}: {match[1]}{wanted}"


def toml_value(name: str, value: object) -> Any:
    """Returns the value of a flag; raises `ValueError` if the value or the name is wrong."""
    flag = _IN_FILE.get(name)
    if flag is None:
        raise ValueError(_unknown(name, value))
    return flag.kind.from_toml(value)


def _unknown(name: str, value: object) -> str:
    if isinstance(value, dict):
        return "there are no tables; all settings stand at the top"
    near = difflib.get_close_matches(name.replace("_", "-").lower(), _SPELLINGS, n=1)
    return f"no such setting; did you mean {_SPELLINGS[near[0]]}?" if near else "no such setting"


def _statements(text: str) -> Iterator[tuple[int, Collection[str]]]:
    """Yields the line where each statement begins, and the names that it sets.

    tomllib reports no lines; but each statement at the top of a file is TOML by itself.
    """
    begin, statement = 0, ""
    # Not `splitlines`: it also splits at characters that TOML allows in strings and comments.
    for number, line in enumerate(re.findall(r"[^\n]*\n|[^\n]+", text), start=1):
        begin = begin if statement else number
        statement += line
        try:
            names = tomllib.loads(statement)
        except ValueError:
            continue
        if names:
            yield begin, names
        statement = ""
    if statement:
        yield begin, ()
