"""JSON as Go reads it; `members` is tested with the login, in tests/wire/test_info.py."""

from __future__ import annotations

import json

import pytest

from pyderp import gojson


def test_the_last_value_and_place_of_a_repeated_name_count() -> None:
    found = gojson.parse('{"a":1,"b":2,"a":3}')
    assert isinstance(found, gojson.Object)
    assert list(found.items()) == [("b", 2), ("a", 3)]
    assert found.pairs == [("a", 1), ("b", 2), ("a", 3)]


@pytest.mark.parametrize("text", ["", "{", "NaN", '{"a":-Infinity}', "[" * 10**6, "9" * 5000])
def test_what_is_not_json_is_a_value_error(text: str) -> None:
    for start_only in (False, True):
        with pytest.raises(ValueError):
            gojson.parse(text, start_only=start_only)


def test_an_error_has_its_place() -> None:
    with pytest.raises(json.JSONDecodeError) as caught:
        gojson.parse('{\n"a" 1}')
    assert caught.value.lineno == 2


def test_text_after_the_value_is_an_error_unless_only_the_start_is_read() -> None:
    with pytest.raises(ValueError):
        gojson.parse("{} x")
    assert gojson.parse(b" \r\n{} \xff", start_only=True) == {}


def test_bytes_that_are_no_utf_8_and_halves_of_pairs_become_replacement_characters() -> None:
    assert gojson.parse(b'"a\xffb"') == "a\ufffdb"
    assert gojson.clean("x\ud83dy") == "x\ufffdy"
    assert gojson.clean("🔑") == "🔑"


@pytest.mark.parametrize("name", ["MeshKey", "MESH\u212aEY", "me\u017fhkey"])
def test_names_are_compared_as_in_go(name: str) -> None:
    assert gojson.same_name(name) == gojson.same_name("meshKey")
