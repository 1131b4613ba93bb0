"""JSON as Go reads and writes it."""

from __future__ import annotations

import pytest

from pyderp.errors import InvalidMap
from pyderp.maps.mapjson import JSONValue, Reader, dump, parse, parse_id


@pytest.mark.parametrize(
    ("value", "text"),
    [
        # Written by encoding/json of Go 1.26.
        (0.0, "0"),
        (-0.0, "-0"),
        (1.0, "1"),
        (37.77, "37.77"),
        (-122.42, "-122.42"),
        (1e-05, "0.00001"),
        (1e-06, "0.000001"),
        (9.999e-07, "9.999e-7"),
        (1.5e-10, "1.5e-10"),
        (1e20, "100000000000000000000"),
        (1e21, "1e+21"),
        (123456789.123, "123456789.123"),
        (5e-324, "5e-324"),
        ("<a>&\u2028\u2029", '"\\u003ca\\u003e\\u0026\\u2028\\u2029"'),
        ('"\\/\b\f\n\r\t\x00\x1f\x7f', '"\\"\\\\/\\b\\f\\n\\r\\t\\u0000\\u001f\x7f"'),
        ("Zürich 🔑", '"Zürich 🔑"'),
        ("half \ud83d", '"half \ufffd"'),
        ([], "[]"),
        ({}, "{}"),
        ({"b": [1, True, None], "a": {"x": 1.5}}, '{"b":[1,true,null],"a":{"x":1.5}}'),
    ],
)
def test_json_is_written_as_go_does(value: JSONValue, text: str) -> None:
    assert dump(value) == text


def test_the_pretty_form_has_a_tab_a_level() -> None:
    value: JSONValue = {"a": [1, {"b": 2}], "c": [], "d": {}}
    assert dump(value, pretty=True) == (
        '{\n\t"a": [\n\t\t1,\n\t\t{\n\t\t\t"b": 2\n\t\t}\n\t],\n\t"c": [],\n\t"d": {}\n}'
    )


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_a_number_that_is_not_finite_cannot_be_written(value: float) -> None:
    with pytest.raises(InvalidMap, match="JSON cannot hold the number"):
        dump({"a": value})


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "{}x",
        "nul",
        "NaN",
        '{"a":Infinity}',
        "'a'",
        "\ufeff{}",
        b"\xef\xbb\xbf{}",
        "[" * 10**6,
        "9" * 5000,
    ],
    ids=range(11),
)
def test_text_that_is_not_json_is_refused(text: str | bytes) -> None:
    with pytest.raises(InvalidMap, match=r"^not JSON: "):
        parse(text)


def test_bytes_that_are_not_utf_8_are_replaced() -> None:
    assert parse(b'"a\xffb"') == "a\ufffdb"


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("900", 900),
        ("007", 7),
        ("+5", 5),
        ("-1", -1),
        ("9223372036854775807", 2**63 - 1),
        ("-9223372036854775808", -(2**63)),
        ("9223372036854775808", None),
        ("1" * 41, None),
        ("", None),
        ("1_0", None),
        (" 1", None),
        ("1\n", None),
        ("1.0", None),
        ("0x1", None),
        ("٣", None),
        ("+-1", None),
    ],
)
def test_an_id_is_read_as_go_does(text: str, number: int | None) -> None:
    assert parse_id(text) == number


def test_a_member_is_found_in_any_case_and_the_last_one_counts() -> None:
    reader = Reader(parse('{"Name":"a","nAME":"b","x":1,"Name":"c"}'))
    assert reader.text("name") == "c"
    assert Reader(parse('{"Name":"c","Name":"x","NAME":"d"}')).text("Name") == "d"
    assert not reader.has("other")


def test_missing_and_null_are_zero() -> None:
    for document in ({}, {"A": None}):
        reader = Reader(document)
        assert not reader.has("A")
        assert reader.text("A") == ""
        assert reader.integer("A") == 0
        assert reader.number("A") == 0.0
        assert reader.flag("A") is False
        assert list(reader.items("A")) == []
        assert list(reader.by_id("A")) == []
        assert not reader.child("A").has("B")


def test_halves_of_surrogate_pairs_are_replaced() -> None:
    assert Reader(parse(r'{"A":"x\ud83dy"}')).text("A") == "x\ufffdy"
    assert Reader(parse(r'{"A":"\ud83d\udd11"}')).text("A") == "🔑"


def test_keys_of_python_objects_may_be_integers() -> None:
    assert Reader({"A": {5: 1.5, "6": 2, "7": None}, 8: 0}).numbers_by_id("A") == {5: 1.5, 6: 2.0}
