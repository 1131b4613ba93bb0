"""Parses YAML as headscale's reader does, into a tree that has the line of each value.

It is built from the parser's events and without recursion, so that depth is bounded and an alias
does not copy its value. A scalar keeps its text: `regioncode: no` is a code, and not false.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Final, TypeAlias

from pyderp.errors import InvalidMap
from pyderp.extras import needs

__all__ = ["Tree", "YamlList", "YamlMapping", "YamlScalar", "parse_yaml"]

_MAX_DEPTH: Final = 64
"""How deep mappings and lists may be nested."""
_BAD_KEY: Final = "the key is a mapping or a list, and not a text"
_MERGE: Final = "<<"
_INTEGER: Final = re.compile(r"[-+]?(?:[0-9]+|0x[0-9a-fA-F]+|0o[0-7]+)", re.ASCII)
_FLOAT: Final = re.compile(r"[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?", re.ASCII)
_NULLS: Final = frozenset({"", "~", "null", "Null", "NULL"})
_TRUE: Final = frozenset({"true", "True", "TRUE"})
_FALSE: Final = frozenset({"false", "False", "FALSE"})
_MAX_DIGITS: Final = 40
"""The most digits of an integer; a longer one is text. Python's `int` refuses thousands."""


@dataclass(frozen=True, slots=True)
class YamlScalar:
    """A single value, as its text."""

    text: str
    plain: bool
    """Neither quoted nor a block: `value` may then be something else than text."""
    line: int
    """Counts from 1, as `column` does."""
    column: int

    @property
    def is_null(self) -> bool:
        """Whether the value is null."""
        return self.plain and self.text in _NULLS

    @property
    def value(self) -> str | int | float | bool | None:
        """The value with the type that YAML 1.2's core schema has for it."""
        text = self.text
        if not self.plain:
            return text
        if text in _NULLS:
            return None
        if text in _TRUE or text in _FALSE:
            return text in _TRUE
        if _INTEGER.fullmatch(text) and len(text) <= _MAX_DIGITS:
            digits = text.lstrip("-+")
            number = int(digits, 0 if digits[:2] in ("0x", "0o") else 10)
            return -number if text.startswith("-") else number
        if _FLOAT.fullmatch(text):
            return float(text)
        return text


@dataclass(slots=True)
class YamlList:
    """A list with its items in their order."""

    line: int
    column: int
    items: list[Tree] = field(default_factory=list)


@dataclass(slots=True)
class YamlMapping:
    """A mapping, by the text of its keys."""

    line: int
    column: int
    items: dict[str, Tree] = field(default_factory=dict)
    own: set[str] = field(default_factory=set)
    """The keys that are written in the mapping itself and not merged into it (`<<`)."""


Tree: TypeAlias = YamlScalar | YamlList | YamlMapping


def parse_yaml(text: str) -> Tree | None:
    """Parse the first document of a YAML stream; returns `None` if there is none.

    Raises:
        InvalidMap: the text is not YAML, a key is repeated or not a scalar, an alias has no anchor,
            or values are nested deeper than 64; with line and column.
        MissingExtra: PyYAML is not installed.
    """
    with needs("cli", "maps in YAML"):
        import yaml

    # libyaml's parser, which is ten times as fast, is in every wheel.
    loader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    try:
        return _build(yaml.parse(text, Loader=loader))
    except yaml.MarkedYAMLError as e:
        mark = e.problem_mark or e.context_mark
        where = f"line {mark.line + 1}, column {mark.column + 1}: " if mark else ""
        raise InvalidMap(f"{where}not YAML: {e.problem or e.context}") from None
    except yaml.YAMLError as e:  # a character that YAML forbids; it has no line
        raise InvalidMap(f"not YAML: {' '.join(str(e).split())}") from None
    except RecursionError:
        raise InvalidMap("nested too deeply") from None


class _Builder:
    """Builds the tree: each method handles one event of the parser."""

    def __init__(self) -> None:
        self.root: Tree | None = None
        self._open: list[tuple[YamlList | YamlMapping, str | None]] = []
        """The lists and mappings that have not ended, outermost first, each with its anchor."""
        self._keys: list[YamlScalar | None] = []
        """For each of them the key whose value comes next; `None` in a list, or before a key."""
        self._anchors: dict[str, Tree] = {}

    def alias(self, anchor: str, line: int, column: int) -> None:
        """Add the value of an anchor once more."""
        value = self._anchors.get(anchor)
        if value is None:
            # An anchor is added when its value ends: an alias inside that value fails here, too.
            raise InvalidMap(_at(line, column, f"there is no anchor &{anchor} before this alias"))
        self.add(value, None)

    def begin(self, value: YamlList | YamlMapping, anchor: str | None) -> None:
        """Start a list or mapping; the values that follow are added to it until `end`."""
        if len(self._open) == _MAX_DEPTH:
            raise InvalidMap(_at(value.line, value.column, "nested too deeply"))
        if self._open and isinstance(self._open[-1][0], YamlMapping) and self._keys[-1] is None:
            raise InvalidMap(_at(value.line, value.column, _BAD_KEY))
        self._open.append((value, anchor))
        self._keys.append(None)

    def end(self) -> None:
        """End the innermost list or mapping, and add it to the one around it."""
        value, anchor = self._open.pop()
        self._keys.pop()
        self.add(value, anchor)

    def add(self, value: Tree, anchor: str | None) -> None:
        """Add a complete value to the list or mapping that is open, or as the root."""
        if anchor is not None:
            self._anchors[anchor] = value
        if not self._open:
            self.root = value
            return
        parent = self._open[-1][0]
        if isinstance(parent, YamlList):
            parent.items.append(value)
        elif (key := self._keys[-1]) is None:
            if not isinstance(value, YamlScalar):
                raise InvalidMap(_at(value.line, value.column, _BAD_KEY))
            self._keys[-1] = value
        else:
            self._keys[-1] = None
            _put(parent, key, value)


def _put(mapping: YamlMapping, key: YamlScalar, value: Tree) -> None:
    # Merged keys never replace the mapping's own, in whatever order they are written.
    if key.text == _MERGE and key.plain:
        sources = value.items if isinstance(value, YamlList) else [value]
        for source in sources:
            for name, member in source.items.items() if isinstance(source, YamlMapping) else ():
                mapping.items.setdefault(name, member)
    elif key.text in mapping.own:
        raise InvalidMap(_at(key.line, key.column, f"the mapping has the key {key.text!r} twice"))
    else:
        mapping.own.add(key.text)
        mapping.items[key.text] = value


def _build(events: Iterator[Any]) -> Tree | None:
    import yaml  # installed: `parse_yaml` has imported it

    builder = _Builder()
    for event in events:
        mark = event.start_mark
        line, column = (mark.line + 1, mark.column + 1) if mark else (0, 0)
        if isinstance(event, yaml.ScalarEvent):
            # `implicit[0]`: the scalar has no tag, such as !!str, and no quotes.
            builder.add(YamlScalar(event.value, event.implicit[0], line, column), event.anchor)
        elif isinstance(event, yaml.MappingStartEvent):
            builder.begin(YamlMapping(line, column), event.anchor)
        elif isinstance(event, yaml.SequenceStartEvent):
            builder.begin(YamlList(line, column), event.anchor)
        elif isinstance(event, yaml.MappingEndEvent | yaml.SequenceEndEvent):
            builder.end()
        elif isinstance(event, yaml.AliasEvent):
            builder.alias(event.anchor or "", line, column)
        elif isinstance(event, yaml.DocumentEndEvent):
            break
    return builder.root


def _at(line: int, column: int, what: str) -> str:
    return f"line {line}, column {column}: {what}"
