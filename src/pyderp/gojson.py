"""JSON as Go's `encoding/json` reads it: repeated names, names in any case, invalid UTF-8.

`parse` makes Python objects, for files and for answers of programs that are trusted. `members` is
for text that any client may send: Python's reader and others refuse halves of surrogate pairs,
numbers that do not fit, and nesting beyond the interpreter's stack, where Go does not. `members`
skips values by pattern and keeps a list of open brackets. So the depth of a hostile text costs no
stack, and a number stays text until the caller converts it.
"""

from __future__ import annotations

import json
import re
from typing import Final

__all__ = [
    "MAX_DEPTH",
    "Object",
    "clean",
    "members",
    "mistake",
    "parse",
    "same_name",
    "text_value",
]

MAX_DEPTH: Final = 10_000
"""Arrays and objects inside each other, the outermost included; Go refuses more."""

_MAX_STEPS: Final = 12_000
"""Limit of the object's members and of nested arrays and objects, together. Go has no such limit.
Here each takes a microsecond or two in which the relay serves no client, and 256 KiB can hold
60,000 of them."""

_SPACE: Final = r"[ \t\n\r]*+"
_STRING: Final = r'"(?:[^"\\\x00-\x1f]++|\\(?:["\\/bfnrt]|u[0-9a-fA-F]{4}))*+"'
_NUMBER: Final = r"-?(?:0|[1-9][0-9]*+)(?:\.[0-9]++)?(?:[eE][+-]?[0-9]++)?"
_SCALAR: Final = rf"(?:{_STRING}|{_NUMBER}|true|false|null)"
# Empty brackets count as scalars: so after a bracket that is pushed a value must follow.
_FLAT: Final = rf"(?:{_SCALAR}|\[{_SPACE}\]|\{{{_SPACE}\}})"
_NAME: Final = rf"{_STRING}{_SPACE}:{_SPACE}"

_BLANK: Final = re.compile(_SPACE)
_WHOLE_FLAT: Final = re.compile(_FLAT)
_MEMBER_NAME: Final = re.compile(rf"{_SPACE}({_STRING}){_SPACE}:{_SPACE}")
# All flat values before the next nested or last one, with their commas, in one match: so Python
# code runs once per nested value, and not once per value.
_RUN: Final = {
    "[": re.compile(rf"{_SPACE}(?:{_FLAT}{_SPACE},{_SPACE})*+"),
    "{": re.compile(rf"{_SPACE}(?:{_NAME}{_FLAT}{_SPACE},{_SPACE})*+{_NAME}"),
}
_CLOSES: Final = {"[": "]", "{": "}"}
_HALF: Final = re.compile("[\ud800-\udfff]")


class Object(dict[str, object]):
    """A parsed JSON object. A repeated name has its last value, at the place of that."""

    __slots__ = ("pairs",)

    def __init__(self, pairs: list[tuple[str, object]]) -> None:
        super().__init__()
        self.pairs = pairs
        """All members in the order of the text, the repeated ones too."""
        for name, value in pairs:
            # A dict keeps the place of the first assignment, unless the name is removed.
            self.pop(name, None)
            self[name] = value


def _refuse_constant(name: str) -> object:
    raise ValueError(f"{name} is not a number")


# By default Python accepts NaN and Infinity, which are not JSON.
_DECODER: Final = json.JSONDecoder(object_pairs_hook=Object, parse_constant=_refuse_constant)


def parse(text: str | bytes, *, start_only: bool = False) -> object:
    """Read JSON into Python objects; JSON objects become `Object`.

    Bytes that are not UTF-8 become U+FFFD.

    Args:
        start_only: ignore what follows the first value, which Go's `Decoder` leaves unread.

    Raises:
        ValueError: not JSON, nested too deep, or an integer of thousands of digits. It is a
            `json.JSONDecodeError`, which has line and column, where these are known.
    """
    if isinstance(text, bytes):
        text = text.decode("utf-8", "replace")
    value: object
    try:
        if start_only:
            value, _ = _DECODER.raw_decode(text.lstrip(" \t\r\n"))
        else:
            value = _DECODER.decode(text)
    except RecursionError:
        raise ValueError("nested too deep") from None
    return value


def mistake(error: ValueError) -> str:
    """Returns what is wrong with a text that `parse` refused, with line and column if known."""
    if isinstance(error, json.JSONDecodeError):
        words = error.msg[:1].lower() + error.msg[1:]
        return f"{words} in line {error.lineno}, column {error.colno}"
    return str(error)


def clean(text: str) -> str:
    """Returns the text with U+FFFD for halves of surrogate pairs, which UTF-8 cannot encode."""
    return _HALF.sub("\ufffd", text)


def members(data: bytes) -> list[tuple[str, str]] | None:
    """Returns names and values of an object's members in their order, repeated names included.

    Bytes that are not UTF-8 and halves of surrogate pairs become U+FFFD.

    Returns:
        each value as JSON text, for `json.loads` where the caller needs it; `None` if the whole
        text is `null`.

    Raises:
        TypeError: JSON, but not an object.
        ValueError: not JSON, nested too deep, or more members and nested values than allowed.
    """
    return _Scanner(data.decode("utf-8", "replace")).members()


def same_name(name: str) -> str:
    """Returns a form in which two names are equal if Go takes them for the same: case is ignored.

    Of the ASCII letters, k and s have a third form each, KELVIN SIGN and LONG S; `lower` folds
    only the first.
    """
    return name.lower().replace("\u017f", "s")


def text_value(value: str) -> str | None:
    """Returns the text of a JSON string, or `None` if the value is not a string."""
    return _unquote(value) if value.startswith('"') else None


def _unquote(quoted: str) -> str:
    text: str = json.loads(quoted)
    return clean(text)


class _Scanner:
    """Reads one text once from its start to its end; counts steps against `_MAX_STEPS`."""

    def __init__(self, text: str) -> None:
        self._text = text
        self._steps = 0

    def members(self) -> list[tuple[str, str]] | None:
        text = self._text
        at = self._blank(0)
        if not text.startswith("{", at):
            end = self._value(at, depth=0)
            self._check_end(end)
            if text[at:end] == "null":
                return None
            raise TypeError("not an object")
        found: list[tuple[str, str]] = []
        at = self._blank(at + 1)
        more = not text.startswith("}", at)
        while more:
            self._step()
            name = _MEMBER_NAME.match(text, at)
            if name is None:
                raise ValueError(f"no member at {at}")
            end = self._value(name.end(), depth=1)
            found.append((_unquote(name[1]), text[name.end() : end]))
            at = self._blank(end)
            more = text.startswith(",", at)
            at += more
        if not text.startswith("}", at):
            raise ValueError(f"the object does not end at {at}")
        self._check_end(at + 1)
        return found

    def _step(self) -> None:
        self._steps += 1
        if self._steps > _MAX_STEPS:
            raise ValueError(f"more than {_MAX_STEPS} members and nested values")

    def _blank(self, at: int) -> int:
        match = _BLANK.match(self._text, at)
        assert match is not None
        return match.end()

    def _check_end(self, at: int) -> None:
        if self._blank(at) != len(self._text):
            raise ValueError(f"more text behind the value at {at}")

    def _value(self, at: int, *, depth: int) -> int:
        """Check the value that begins at `at`, inside `depth` others; return where it ends."""
        text = self._text
        opened: list[str] = []
        while True:
            if flat := _WHOLE_FLAT.match(text, at):
                at = flat.end()
                _check_depth(depth + len(opened) + (text[at - 1] in "]}"))
                at = self._close(at, opened)
                if not opened:
                    return at
            elif (bracket := text[at : at + 1]) in _RUN:
                self._step()
                opened.append(bracket)
                _check_depth(depth + len(opened))
                at += 1
            else:
                raise ValueError(f"no value at {at}")
            run = _RUN[opened[-1]].match(text, at)
            if run is None:
                raise ValueError(f"no member at {at}")
            at = run.end()

    def _close(self, at: int, opened: list[str]) -> int:
        """After a value: close the brackets that end here, and skip the comma before the next."""
        text = self._text
        while opened:
            at = self._blank(at)
            mark = text[at : at + 1]
            if mark not in (",", _CLOSES[opened[-1]]):
                raise ValueError(f"neither a comma nor the end at {at}")
            at += 1
            if mark == ",":
                break
            opened.pop()
        return at


def _check_depth(depth: int) -> None:
    if depth > MAX_DEPTH:
        raise ValueError(f"nested more than {MAX_DEPTH} deep")
