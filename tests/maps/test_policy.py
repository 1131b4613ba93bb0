"""JSON with comments and trailing commas, and the map in a policy file."""

from __future__ import annotations

import pytest

from pyderp import gojson
from pyderp.errors import InvalidMap
from pyderp.maps.policy import map_in_policy, parse_hujson


def test_comments_and_trailing_commas_are_read() -> None:
    text = '/* a\n */ {"a": [1, 2,], // x\n "b": "// no comment /* */", }'
    assert parse_hujson(text) == {"a": [1, 2], "b": "// no comment /* */"}


def test_duplicate_names_are_found() -> None:
    document = parse_hujson('{"a": 1, "b": {}, "a": 2,}')
    assert isinstance(document, gojson.Object)
    assert document.pairs == [("a", 1), ("b", {}), ("a", 2)]
    assert document == {"b": {}, "a": 2}


@pytest.mark.parametrize("text", ["{'a': 1}", "{a: 1}", "[1 2]", "[NaN]", "# x\n{}", "[01]"])
def test_other_extensions_of_json_are_refused(text: str) -> None:
    """A tailnet's policy must not have them either."""
    with pytest.raises(InvalidMap, match=r"^line [12], column \d+: "):
        parse_hujson(text)


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ('{"acls": [], "derpMap": {"a": 1}}', {"a": 1}),
        ('{"DerpMap": {"a": 1}, "DERPMAP": {"a": 2}}', {"a": 2}),
        ('{"acls": []}', None),
        ("[]", None),
    ],
)
def test_the_map_in_a_policy_is_read(text: str, found: object) -> None:
    assert map_in_policy(parse_hujson(text)) == found


def test_names_in_errors_keep_their_case() -> None:
    with pytest.raises(InvalidMap, match=r"^line 1, column \d+: NaN is not allowed$"):
        parse_hujson('{"a": NaN}')
