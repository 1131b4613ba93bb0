"""YAML as headscale's reader parses it."""

from __future__ import annotations

import pytest

from pyderp.errors import InvalidMap
from pyderp.maps.yamltree import Tree, YamlList, YamlMapping, YamlScalar, parse_yaml


def plain(tree: Tree | None) -> object:
    """The tree as Python objects."""
    if isinstance(tree, YamlMapping):
        return {key: plain(value) for key, value in tree.items.items()}
    if isinstance(tree, YamlList):
        return [plain(item) for item in tree.items]
    return None if tree is None else tree.value


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("", None),
        ("# nothing", None),
        ("~", None),
        ("null", None),
        ("true", True),
        ("False", False),
        ("no", "no"),
        ("on", "on"),
        ("12", 12),
        ("-12", -12),
        ("+0x1F", 31),
        ("0o17", 15),
        ("017", 17),
        ("1e3", 1000.0),
        (".5", 0.5),
        ("1:30", "1:30"),
        ("2026-11-30", "2026-11-30"),
        ("2001:db8::1", "2001:db8::1"),
        ("'12'", "12"),
        ('"true"', "true"),
        ("!!str 12", "12"),
        ("9" * 41, float("9" * 41)),
        ("|\n  a\n  b\n", "a\nb\n"),
    ],
)
def test_scalars_follow_the_core_schema(text: str, value: object) -> None:
    """That of YAML 1.2: a leading zero is no octal; no times, no dates, no `yes`."""
    assert plain(parse_yaml(text)) == value


def test_a_value_has_its_place() -> None:
    tree = parse_yaml("a:\n  - b: 1\n    c: x\n")
    assert isinstance(tree, YamlMapping)
    (item,) = tree.items["a"].items if isinstance(tree.items["a"], YamlList) else []
    assert isinstance(item, YamlMapping)
    assert item.items["c"] == YamlScalar("x", True, 3, 8)


def test_aliases_and_merges_are_resolved() -> None:
    text = """
base: &base {a: 1, b: 2}
more: &more {b: 3, c: 4}
one: *base
two: {<<: *base, b: 5}
three: {b: 6, <<: [*base, *more]}
quoted: {"<<": 1}
"""
    tree = plain(parse_yaml(text))
    assert isinstance(tree, dict)
    assert tree["one"] == {"a": 1, "b": 2}
    assert tree["two"] == {"a": 1, "b": 5}
    assert tree["three"] == {"a": 1, "b": 6, "c": 4}
    assert tree["quoted"] == {"<<": 1}


def test_only_the_first_document_is_read() -> None:
    assert plain(parse_yaml("a: 1\n---\nb: 2\n")) == {"a": 1}


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("a: [", "line 2, column 1: not YAML: "),
        ("a: 1\na: 2", "line 2, column 1: the mapping has the key 'a' twice"),
        ("{[a]: 1}", "line 1, column 2: the key is a mapping or a list, and not a text"),
        ("{? {a: 1} : 1}", "line 1, column 4: the key is a mapping or a list, and not a text"),
        ("&a [*a]", "line 1, column 5: there is no anchor &a before this alias"),
        ("a: *b", "line 1, column 4: there is no anchor &b before this alias"),
        ("[" * 65 + "]" * 65, "line 1, column 65: nested too deeply"),
        ("\x00", "not YAML: "),
    ],
)
def test_an_error_has_its_place(text: str, error: str) -> None:
    with pytest.raises(InvalidMap) as caught:
        parse_yaml(text)
    assert str(caught.value).startswith(error)
