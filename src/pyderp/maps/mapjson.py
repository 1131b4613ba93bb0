"""The JSON of DERP maps: reads members of known types, and writes what Go's encoder writes."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Mapping, Set
from typing import Final, TypeAlias

from pyderp import gojson
from pyderp.errors import InvalidMap

__all__ = ["MAX_KEPT_DEPTH", "JSONValue", "Reader", "dump", "folded", "parse", "parse_id"]

JSONValue: TypeAlias = "Mapping[str, JSONValue] | list[JSONValue] | str | float | int | bool | None"

_INT64: Final = range(-(2**63), 2**63)
_ID: Final = re.compile(r"[+-]?[0-9]{1,40}", re.ASCII)
_ESCAPES: Final = {ord(c): f"\\u{ord(c):04x}" for c in "<>&\u2028\u2029"}
"""Characters that Go escapes although JSON allows them, to make the text safe in HTML."""
MAX_KEPT_DEPTH: Final = 64
"""How deep arrays and objects may be nested in an unknown member; a deeper one is not kept."""


def parse(text: str | bytes) -> object:
    """Parse JSON (`gojson.parse`).

    Raises:
        InvalidMap: the text is not JSON.
    """
    try:
        return gojson.parse(text)
    except ValueError as e:
        raise InvalidMap(f"not JSON: {gojson.mistake(e)}") from None


def parse_id(text: str) -> int | None:
    """Parse a decimal integer of 64 bits with an optional sign, as `strconv.ParseInt` does.

    Returns `None` for any other text.
    """
    if _ID.fullmatch(text) is None:
        return None
    value = int(text)
    return value if value in _INT64 else None


class Reader:
    """Reads the members of one JSON object, by name in any case, each with the type it must have.

    A member that is missing or null has its zero value. `rest` returns the unknown members.

    Args:
        value: what `parse` returned, or plain Python objects of the same shape.
        path: where the object is in the map, for errors.

    Raises:
        InvalidMap: the value is not an object. The methods raise it for a member of another type.
    """

    def __init__(self, value: object, path: str = "") -> None:
        self.path = path
        self._all = _mapping(value, path)
        self._members = {
            gojson.same_name(name): member
            for name, member in self._all.items()
            if isinstance(name, str) and member is not None
        }

    def has(self, name: str) -> bool:
        """Return whether the member is there and not null."""
        return gojson.same_name(name) in self._members

    def text(self, name: str) -> str:
        """Return a string; halves of surrogate pairs are replaced as in Go."""
        value = self._get(name, "")
        if not isinstance(value, str):
            raise _wrong(self._at(name), "a string", value)
        return gojson.clean(value)

    def flag(self, name: str) -> bool:
        """Return a boolean."""
        value = self._get(name, False)
        if not isinstance(value, bool):
            raise _wrong(self._at(name), "true or false", value)
        return value

    def integer(self, name: str) -> int:
        """Return an integer of 64 bits; as in Go, `443.0` is not one."""
        value = self._get(name, 0)
        if not isinstance(value, int) or isinstance(value, bool):
            raise _wrong(self._at(name), "an integer", value)
        if value not in _INT64:
            raise InvalidMap(f"{self._at(name)}: the integer does not fit into 64 bits")
        return value

    def number(self, name: str) -> float:
        """Return a finite number."""
        return _number(self._get(name, 0), self._at(name))

    def items(self, name: str) -> Iterator[Reader]:
        """Yield a reader for each object of an array; nulls are left out."""
        value = self._get(name, ())
        if not isinstance(value, (list, tuple)):
            raise _wrong(self._at(name), "an array", value)
        for index, item in enumerate(value):
            if item is not None:
                yield Reader(item, f"{self._at(name)}[{index}]")

    def child(self, name: str) -> Reader:
        """Return a reader of the object that a member is."""
        return Reader(self._get(name, {}), self._at(name))

    def by_id(self, name: str) -> Iterator[tuple[int, object, str]]:
        """Yield (id, value, path) for each member of an object with integer names; no nulls."""
        path = self._at(name)
        for key, value in _mapping(self._get(name, {}), path).items():
            where = f"{path}[{json.dumps(key if isinstance(key, str) else str(key))}]"
            number = parse_id(str(key))
            if number is None:
                raise InvalidMap(f"{where}: the key is not an integer of 64 bits")
            if value is not None:
                yield number, value, where

    def numbers_by_id(self, name: str) -> dict[int, float]:
        """Return id → number for an object with integer names and finite numbers."""
        return {number: _number(value, where) for number, value, where in self.by_id(name)}

    def rest(self, known: Set[str]) -> dict[str, JSONValue]:
        """Return the unknown members in their order; of several that differ by case, the last.

        Values that could not be written again are left out: numbers beyond the range of a double,
        and arrays and objects nested deeper than `MAX_KEPT_DEPTH`.

        Args:
            known: the names of the known members, as `folded` returns them.
        """
        kept: dict[str, tuple[str, JSONValue]] = {}
        for name, member in self._all.items():
            if isinstance(name, str) and (same := gojson.same_name(name)) not in known:
                kept.pop(same, None)
                try:
                    kept[same] = gojson.clean(name), _kept(member, MAX_KEPT_DEPTH)
                except ValueError:
                    continue
        return dict(kept.values())

    def _get(self, name: str, zero: object) -> object:
        return self._members.get(gojson.same_name(name), zero)

    def _at(self, name: str) -> str:
        return f"{self.path}.{name}" if self.path else name


def folded(*names: str) -> frozenset[str]:
    """Return the names folded, so that names that differ by case only are equal."""
    return frozenset(map(gojson.same_name, names))


def _kept(value: object, depth: int) -> JSONValue:
    """Return a copy of a value that `dump` can write.

    Raises:
        ValueError: it is not a value of JSON, or nested deeper than `depth`.
    """
    if value is None or isinstance(value, (bool, int)):
        return value
    if isinstance(value, str):
        return gojson.clean(value)
    if isinstance(value, float) and math.isfinite(value):
        return value
    if depth and isinstance(value, (list, tuple)):
        return [_kept(item, depth - 1) for item in value]
    if depth and isinstance(value, Mapping):
        return {gojson.clean(str(name)): _kept(member, depth - 1) for name, member in value.items()}
    raise ValueError("JSON cannot hold it")


def _mapping(value: object, path: str) -> Mapping[object, object]:
    if not isinstance(value, Mapping):
        raise _wrong(path or "the map", "an object", value)
    return value


def _number(value: object, path: str) -> float:
    if not isinstance(value, (int, float)) or isinstance(value, bool):
        raise _wrong(path, "a number", value)
    try:
        number = float(value)
    except OverflowError:
        number = math.inf
    if not math.isfinite(number):
        raise InvalidMap(f"{path}: the number is out of range")
    return number


_NAMES: Final = {bool: "true or false", int: "an integer", float: "a number", str: "a string"}


def _wrong(path: str, want: str, value: object) -> InvalidMap:
    kind = "an array" if isinstance(value, (list, tuple)) else None
    kind = kind or ("an object" if isinstance(value, Mapping) else None)
    return InvalidMap(f"{path}: want {want}, got {kind or _NAMES.get(type(value), 'null')}")


def dump(value: JSONValue, *, pretty: bool = False) -> str:
    """Return JSON with the members in their order, compact as Go's `Marshal` writes it.

    Args:
        pretty: write one member per line, indented with tabs.

    Raises:
        InvalidMap: a number is not finite.
    """
    return "".join(_pieces(value, "\n" if pretty else ""))


def _pieces(value: JSONValue, line: str) -> Iterator[str]:
    """Yield the parts of the text; `line` starts a line at this depth, empty: no line breaks."""
    if isinstance(value, Mapping):
        colon = ": " if line else ":"
        members = [(_string(name) + colon, member) for name, member in value.items()]
        yield from _block("{", members, "}", line)
    elif isinstance(value, list):
        yield from _block("[", [("", item) for item in value], "]", line)
    elif isinstance(value, str):
        yield _string(value)
    elif isinstance(value, float):
        yield _float(value)
    else:
        yield json.dumps(value)


def _block(start: str, members: list[tuple[str, JSONValue]], end: str, line: str) -> Iterator[str]:
    yield start
    deeper = line + "\t" if line else ""
    for at, (head, member) in enumerate(members):
        yield f"{',' if at else ''}{deeper}{head}"
        yield from _pieces(member, deeper)
    yield (line if members else "") + end


def _string(text: str) -> str:
    return json.dumps(gojson.clean(text), ensure_ascii=False).translate(_ESCAPES)


def _float(value: float) -> str:
    """Return a number as Go's encoder writes it, which follows ECMAScript."""
    if not math.isfinite(value):
        raise InvalidMap(f"JSON cannot hold the number {value}")
    if value and not 1e-6 <= abs(value) < 1e21:
        return repr(value).replace("e-0", "e-")
    # Imported here, as a relay's own map has no such number and `decimal` is slow to load.
    from decimal import Decimal

    return format(Decimal(repr(value)), "f").removesuffix(".0")
