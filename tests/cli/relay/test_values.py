"""How values of the relay's flags are written, and errors about invalid ones."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from pyderp.cli.relay.layers import Settings, load_settings
from pyderp.cli.relay.values import (
    Kind,
    boolean,
    choice,
    duration,
    go_duration,
    integer,
    names,
    networks,
    number,
    parse_duration,
    path,
    text,
)
from pyderp.errors import ConfigError


@pytest.mark.parametrize(
    ("word", "seconds"),
    [
        ("0", 0),
        ("0s", 0),
        ("15s", 15),
        ("1m30s", 90),
        ("10m0s", 600),
        ("500ms", 0.5),
        ("1.5h", 5400),
        (".5s", 0.5),
        ("1.s", 1),
        ("3us", 3e-6),
        ("3µs", 3e-6),
        ("3μs", 3e-6),
        ("7ns", 7e-9),
        ("2.5", 2.5),
        ("90", 90),
    ],
)
def test_a_duration_is_go_s_or_seconds(word: str, seconds: float) -> None:
    assert parse_duration(word) == pytest.approx(seconds)


@pytest.mark.parametrize(
    "word", ["", "s", "soon", "-1", "-1s", "1d", "1m 30s", "nan", "inf", "1e999", "5S", "1" * 5000]
)
def test_an_invalid_duration_is_refused(word: str) -> None:
    with pytest.raises(ValueError, match="want"):
        parse_duration(word)


@pytest.mark.parametrize(
    ("kind", "word", "expected"),
    [
        (boolean, "maybe", "want true or false"),
        (integer(0, 65535), "65536", "want 0 to 65535"),
        (integer(0), "-1", "want 0 or more"),
        (integer(0), "1.5", "want a whole number"),
        (integer(0), "1" * 5000, "want a whole number"),
        (number(), "nan", "want 0 or more"),
        (number(), "-1", "want 0 or more"),
        (number(), "x", "want a number"),
        (choice("a", "b", "c"), "d", "want a, b or c"),
        (networks(), "10.0.0.0/33", "is not a network"),
        (networks(), "host", "'host' is not a network"),
    ],
)
def test_an_invalid_value_is_refused(kind: Kind, word: str, expected: str) -> None:
    with pytest.raises(ValueError, match=expected):
        kind.parse(word)


@pytest.mark.parametrize("text", ["0s", "500ms", "2s", "15s", "1.5s", "1m0s", "10m5s", "1h0m0s"])
def test_durations_are_printed_as_go_does(text: str) -> None:
    assert go_duration(parse_duration(text)) == text


def test_empty_text_is_no_path() -> None:
    assert path.parse("") is None
    assert path.parse(".") == Path(".")


@pytest.mark.parametrize(
    ("kind", "value", "result"),
    [
        (boolean, True, True),
        (boolean, "true", True),
        (duration, 2, 2.0),
        (duration, 0.5, 0.5),
        (duration, "1m", 60.0),
        (integer(0), 5, 5),
        (integer(0), "5", 5),
        (number(), 1.5, 1.5),
        (number(), "inf", float("inf")),
        (text("X"), "a", "a"),
        (names("X"), "a, b", ("a", "b")),
        (names("X"), ["a", " b"], ("a", "b")),
    ],
)
def test_toml_values_have_types(kind: Kind, value: object, result: Any) -> None:
    assert kind.from_toml(value) == result


@pytest.mark.parametrize(
    ("kind", "value", "expected"),
    [
        (boolean, "maybe", "want true or false"),
        (boolean, 1, "it is an integer; want a boolean or a string"),
        (duration, True, "it is a boolean; want an integer or a float or a string"),
        (integer(0), 5.0, "it is a float; want an integer or a string"),
        (text("X"), 5, "it is an integer; want a string"),
        (text("X"), ["a"], "it is an array; want a string"),
        (names("X"), [1], "want an array of strings"),
        (names("X"), 1, "it is an integer; want a string or an array of strings"),
        (text("X"), {}, "it is a table"),
        (text("X"), object(), "it is a date or time"),
    ],
)
def test_other_types_are_refused(kind: Kind, value: object, expected: str) -> None:
    with pytest.raises(ValueError, match=expected):
        kind.from_toml(value)


# The file


def problems_of(tmp_path: Path, content: str) -> list[str]:
    file = tmp_path / "relay.toml"
    file.write_text(content)
    problems = load_settings({"config-file": file}, environment={}).problems
    prefix = f"settings file {file}, line "
    return [each.removeprefix(prefix) for each in problems]


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("drian = 5", "1: drian: no such setting; did you mean drain?"),
        ("http_port = 80", "1: http_port: no such setting; did you mean http-port?"),
        ("config = 'x'", "1: config: no such setting; did you mean key-file?"),
        ("HOSTNAME = 'x'", "1: HOSTNAME: no such setting; did you mean hostname?"),
        ("zzz = 5", "1: zzz: no such setting"),
        ("check = true", "1: check: no such setting"),
        ("\n# c\nstun = 5\n", "3: stun: it is an integer; want a boolean or a string"),
        ("drain = 'soon'", "1: drain: want a duration such as 15s, 1m30s or 2.5 (seconds)"),
        ("drain = -1", "1: drain: want 0 or more seconds"),
        ("http-port = 70000", "1: http-port: want -1 to 65535"),
        ("log-level = 'loud'", "1: log-level: want debug, info, warning or error"),
        ("home = '''\n\n'''\nmesh-with = [\n  'a',\n]\nloop = 5", "7: loop: it is an integer"),
        ("[derp]\nx = 1", "1: derp: it is a table; want a boolean"),
        ("drain = 1\n\n[relay]\nx = 1", "3: relay: there are no tables"),
        ("drain = 2026-01-01", "1: drain: it is a date or time"),
        ("'drain' = 2\n\"home\" = 5", "2: home: it is an integer"),
    ],
)
def test_a_mistake_in_the_file_is_reported_with_its_line(
    tmp_path: Path, content: str, expected: str
) -> None:
    (problem,) = problems_of(tmp_path, content)
    assert problem.startswith(expected)


def test_all_mistakes_in_the_file_are_reported(tmp_path: Path) -> None:
    assert [each[:2] for each in problems_of(tmp_path, "a=1\ndrain='x'\nhome=''\nb=2")] == [
        *("1:", "2:", "4:"),
    ]


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"drain = ", ", line 1: Invalid value; want text in quotes, a number, true"),
        (b"drain = 1\nhome == 2", "line 2, column 7"),
        (b"drain = 1\ndrain = 2", ", line 2: Cannot overwrite a value"),
        (b"drain = 1\nloop = '''\n\n\n", ", line 2: "),
        (b"loop = 1\ndrain = " + b"1" * 5000, "Exceeds the limit"),
        (b"home = 1\n\n# \xff\n", "line 3: not UTF-8"),
        # These end a line for Python, and not for TOML.
        ("# a\u2028b\x85c\ndrain = 1\nloop = '''\n".encode(), ", line 3: "),
        (b"x = " + b"[" * 100_000, "nested too deeply"),
        (b"#" * (1024 * 1024 + 1), "larger than 1 MiB"),
    ],
)
def test_a_file_that_is_not_toml_is_reported_with_the_line(
    tmp_path: Path, content: bytes, expected: str
) -> None:
    file = tmp_path / "relay.toml"
    file.write_bytes(content)
    with pytest.raises(ConfigError) as caught:
        load_settings({"config-file": file}, environment={})
    assert str(caught.value).startswith(f"settings file {file}")
    assert expected in str(caught.value)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"cannot read the settings file .*none: No such file"):
        load_settings({"config-file": tmp_path / "none"}, environment={})


def test_empty_text_means_no_value() -> None:
    assert Settings({"hostname": "a"}).given("hostname")
    assert Settings({"hostname": "a", "certdir": None}).given("certdir", "hostname")
    empty = Settings({"hostname": ""})
    assert not empty.given("hostname")
    assert empty["hostname"] == ""
    assert not Settings({"hostname": None}).given("hostname")


def test_the_first_problem_has_the_number_of_problems() -> None:
    settings = Settings({})
    settings.check()
    for text_ in ("one", "two", "two", "three"):
        with settings.collect():
            raise ConfigError(text_)
    with pytest.raises(ConfigError, match=r"^one \(and 2 more problems: --check shows all\)$"):
        settings.check()
    del settings.problems[2:]
    with pytest.raises(ConfigError, match=r"^one \(and another problem: --check shows all\)$"):
        settings.check()
    del settings.problems[1:]
    with pytest.raises(ConfigError, match=r"^one$"):
        settings.check()


@pytest.mark.parametrize(
    ("derper", "given", "expected"),
    [
        (False, {}, "--acme-eab-kid needs --http-port=-1 of {x}"),
        (True, {}, "-acme-eab-kid needs -http-port=-1 of {x}"),
        (False, {"TS_DEBUG_KEY_PATH": "k"}, "--acme-eab-kid needs --http-port=-1 of {x}"),
        (
            True,
            {"PYDERP_HTTP_PORT": "5"},
            "-acme-eab-kid needs -http-port=-1 of {x} (PYDERP_HTTP_PORT in the environment)",
        ),
    ],
)
def test_an_error_names_flags_for_settings(
    derper: bool, given: dict[str, str], expected: str
) -> None:
    error = ConfigError(
        "{} needs {} of {value}", settings=("tls.eab_kid", "tls.http_port=None"), value="{x}"
    )
    assert str(error) == "eab_kid needs http_port=None of {x}"
    assert load_settings({}, derper=derper, environment=given).explain(error) == expected


def test_an_error_without_a_setting_has_its_place_before_it() -> None:
    error = ConfigError("no {name}", settings=("home",), name="x")
    assert Settings({}).explain(error) == "--home: no x"
    settings = load_settings({}, derper=True, environment={"PYDERP_HOME": "x"})
    assert settings.explain(error) == "PYDERP_HOME in the environment: no x"
    assert settings.explain(ConfigError("no {name}")) == "no {name}"


def test_a_wrong_flag_has_no_further_problems() -> None:
    settings = Settings({})
    settings.note(ConfigError("first", settings=("home",)))
    settings.note(ConfigError("{} and {}", settings=("drain", "home")))
    settings.note(ConfigError("another"))
    assert settings.problems == ["--home: first", "another"]


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("", []),
        (" ", []),
        ("10.0.0.0/8", ["10.0.0.0/8"]),
        ("10.0.0.0/8,192.168.1.0/24", ["10.0.0.0/8", "192.168.1.0/24"]),
        (" 10.0.0.0/8 , 192.168.1.0/24 ", ["10.0.0.0/8", "192.168.1.0/24"]),
        ("10.0.0.0/8,,", ["10.0.0.0/8"]),
        ("fd00::/8,10.9.9.9/8,192.0.2.1", ["fd00::/8", "10.0.0.0/8", "192.0.2.1/32"]),
    ],
)
def test_networks_are_read_from_a_list(text: str, found: list[str]) -> None:
    """Twin of TestParseTrustedCIDRs."""
    assert [str(network) for network in networks().parse(text)] == found
