"""The JSON of DERP maps: members of known types in, the bytes of Go's encoder out."""

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
"""What Go escapes beyond JSON's own needs, so that the text may stand in HTML."""
MAX_KEPT_DEPTH: Final = 64
"""Arrays and objects inside each other in a member that is unknown; a deeper one is not kept."""


def parse(text: str | bytes) -> object:
    """Read JSON (`gojson.parse`).

    Raises:
        InvalidMap: not JSON.
    """
    try:
        return gojson.parse(text)
    except ValueError as e:
        raise InvalidMap(f"not JSON: {gojson.mistake(e)}") from None


def parse_id(text: str) -> int | None:
    """A base-10 integer of 64 bits with an optional sign, as `strconv.ParseInt` reads it."""
    if _ID.fullmatch(text) is None:
        return None
    value = int(text)
    return value if value in _INT64 else None


class Reader:
    """One JSON object: its members by name, in any case, each of a known type.

    A member that is missing or null has its zero value. Unknown members are what `rest` returns.

    Args:
        value: what `parse` gave, or plain Python objects of the same shape.
        path: where it stands, for errors.

    Raises:
        InvalidMap: not an object; by the methods: a member of another type.
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
        """Whether it is there and not null."""
        return gojson.same_name(name) in self._members

    def text(self, name: str) -> str:
        """A string."""
        value = self._get(name, "")
        if not isinstance(value, str):
            raise _wrong(self._at(name), "a string", value)
        return gojson.clean(value)

    def flag(self, name: str) -> bool:
        """A boolean."""
        value = self._get(name, False)
        if not isinstance(value, bool):
            raise _wrong(self._at(name), "true or false", value)
        return value

    def integer(self, name: str) -> int:
        """An integer of 64 bits, written as one: not `443.0`."""
        value = self._get(name, 0)
        if not isinstance(value, int) or isinstance(value, bool):
            raise _wrong(self._at(name), "an integer", value)
        if value not in _INT64:
            raise InvalidMap(f"{self._at(name)}: more than 64 bits")
        return value

    def number(self, name: str) -> float:
        """A finite number."""
        return _number(self._get(name, 0), self._at(name))

    def items(self, name: str) -> Iterator[Reader]:
        """The objects of an array, nulls left out."""
        value = self._get(name, ())
        if not isinstance(value, (list, tuple)):
            raise _wrong(self._at(name), "an array", value)
        for index, item in enumerate(value):
            if item is not None:
                yield Reader(item, f"{self._at(name)}[{index}]")

    def child(self, name: str) -> Reader:
        """An object."""
        return Reader(self._get(name, {}), self._at(name))

    def by_id(self, name: str) -> Iterator[tuple[int, object, str]]:
        """Members of an object whose names are integers: id, value, path; nulls left out."""
        path = self._at(name)
        for key, value in _mapping(self._get(name, {}), path).items():
            where = f"{path}[{json.dumps(key if isinstance(key, str) else str(key))}]"
            number = parse_id(str(key))
            if number is None:
                raise InvalidMap(f"{where}: the key is not an integer of 64 bits")
            if value is not None:
                yield number, value, where

    def numbers_by_id(self, name: str) -> dict[int, float]:
        """The same, of finite numbers."""
        return {number: _number(value, where) for number, value, where in self.by_id(name)}

    def rest(self, known: Set[str]) -> dict[str, JSONValue]:
        """Members of other names, in their order; of several whose case differs, the last.

        What Go's reader skips and JSON cannot hold once more is left out: numbers beyond a double's
        range, and values with more than `MAX_KEPT_DEPTH` arrays and objects inside each other.

        Args:
            known: names of the others, as `folded` makes them.
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
    """Names in the form in which those that differ by case are equal."""
    return frozenset(map(gojson.same_name, names))


def _kept(value: object, depth: int) -> JSONValue:
    """A value that `dump` can write.

    Raises:
        ValueError: it cannot.
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
        raise InvalidMap(f"{path}: out of range")
    return number


_NAMES: Final = {bool: "true or false", int: "an integer", float: "a number", str: "a string"}


def _wrong(path: str, want: str, value: object) -> InvalidMap:
    kind = "an array" if isinstance(value, (list, tuple)) else None
    kind = kind or ("an object" if isinstance(value, Mapping) else None)
    return InvalidMap(f"{path}: want {want}, got {kind or _NAMES.get(type(value), 'null')}")


def dump(value: JSONValue, *, pretty: bool = False) -> str:
    """JSON with members in their order, written as Go's `Marshal` or with tabs.

    Raises:
        InvalidMap: a number that is not finite.
    """
    return "".join(_pieces(value, "\n" if pretty else ""))


def _pieces(value: JSONValue, line: str) -> Iterator[str]:
    """`line` is what begins a line at this depth; empty: all on one."""
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
    """As ECMAScript writes numbers, which is what Go does, too."""
    if not math.isfinite(value):
        raise InvalidMap(f"{value} cannot stand in JSON")
    if value and not 1e-6 <= abs(value) < 1e21:
        return repr(value).replace("e-0", "e-")
    # Not at the top: a relay's own map has no such number.
    from decimal import Decimal

    return format(Decimal(repr(value)), "f").removesuffix(".0")
