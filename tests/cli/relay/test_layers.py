"""Command lines of `pyderp relay` read without typer: with the same result, or left to typer."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from typer.main import get_command

from pyderp.cli import dispatch
from pyderp.cli.app import app
from pyderp.cli.relay import run as relayrun
from pyderp.cli.relay.flags import FLAGS
from pyderp.cli.relay.layers import Settings, values_of

VALUES = ["", " 1 ", "x", "0", "7", "-1", "1.5s", "true", "off", "known", "auto", "policy"]
VALUES += ["manual", "info", "json", ":443", "10.0.0.0/8", "a,b", "ü", "=", "a b"]


@pytest.fixture
def by_typer(monkeypatch: pytest.MonkeyPatch) -> Callable[..., dict[str, Any] | None]:
    """How typer reads a command line and an environment; `None`: it refuses."""
    found: list[Settings] = []
    monkeypatch.setattr(relayrun, "carry_out", lambda load, _=None: found.append(load()))
    command: Any = get_command(app)
    relay = command.commands["relay"]

    def read(words: list[str], variables: dict[str, str]) -> dict[str, Any] | None:
        found.clear()
        with pytest.MonkeyPatch.context() as patch:
            for flag in FLAGS:
                if flag.variable:
                    patch.delenv(flag.variable, raising=False)
            for name, text in variables.items():
                patch.setenv(name, text)
            # The file would add its own values.
            patch.setattr("pyderp.cli.relay.tomlfile.read_toml", lambda _: ())
            try:
                relay.main(words, standalone_mode=False)
            except Exception:
                return None
        return {
            flag.name: value
            for flag in FLAGS
            if flag.name in found[0] and (value := found[0][flag.name]) is not None
        }

    return read


def plain_words() -> st.SearchStrategy[list[str]]:
    spellings = [
        spelling
        for flag in FLAGS
        for spelling in (f"--{flag.name}", f"--no-{flag.name}", *flag.also)
    ]
    name, value = st.sampled_from(spellings), st.sampled_from(VALUES)
    word = st.one_of(
        name.map(lambda text: [text]),
        st.tuples(name, value).map(list),
        st.tuples(name, value).map(lambda pair: [f"{pair[0]}={pair[1]}"]),
        st.sampled_from(["--", "--help", "-", "--nothing", "x"]).map(lambda text: [text]),
    )
    return st.lists(word, max_size=3).map(lambda words: [each for word in words for each in word])


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(
    words=plain_words(),
    variables=st.dictionaries(
        st.sampled_from([flag.variable for flag in FLAGS if flag.variable]),
        st.sampled_from(VALUES),
        max_size=2,
    ),
)
def test_reading_without_typer_has_the_result_of_typer(
    by_typer: Callable[..., dict[str, Any] | None],
    words: list[str],
    variables: dict[str, str],
) -> None:
    found = values_of(words, variables)
    if found is not None:
        plain = {name: value for name, value in found.items() if value is not None}
        assert plain == by_typer(words, variables)


@pytest.mark.parametrize("flag", FLAGS, ids=lambda flag: flag.name)
def test_every_flag_can_be_given_without_typer(flag: Any) -> None:
    def read(*words: str) -> Any:
        values = values_of(words, {})
        assert values is not None
        return values[flag.name]

    if flag.kind.switch:
        assert read(f"--{flag.name}") is True
        if flag.in_file:
            assert read(f"--{flag.name}", f"--no-{flag.name}") is False
        return
    parsed = [text for text in VALUES if _parses(flag.kind.parse, text)]
    assert parsed
    for text in parsed:
        assert read(f"--{flag.name}={text}") == flag.kind.parse(text)


def _parses(parse: Callable[[str], Any], text: str) -> bool:
    try:
        parse(text)
    except ValueError:
        return False
    return True


@pytest.mark.parametrize(
    "words",
    [
        ["--help"], ["--nothing"], ["--drain"], ["--drain=x"], ["--dev=true"], ["--"], ["x"],
        ["--health"], ["--stun-port", "-1"], ["--no-check"], ["-a"],
    ],
)  # fmt: skip
def test_lines_that_need_messages_are_left_to_typer(words: list[str]) -> None:
    assert values_of(words, {}) is None


def test_a_wrong_variable_is_left_to_typer() -> None:
    assert values_of([], {"PYDERP_DRAIN": "soon"}) is None
    assert values_of(["--drain=1"], {"PYDERP_DRAIN": "soon"}) == {"drain": 1.0}
    assert values_of([], {"PYDERP_DRAIN": ""}) == {}


def test_a_relay_that_runs_does_not_import_typer(monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[Settings] = []
    monkeypatch.setattr(relayrun, "carry_out", lambda load, _=None: given.append(load()))
    monkeypatch.setitem(sys.modules, "pyderp.cli.app", None)  # an ImportError if it is
    with pytest.raises(SystemExit) as caught:
        dispatch.run_words(["relay", "--dev", "-a", "127.0.0.1:0", "--no-stun"])
    assert caught.value.code == 0
    assert given[0]["address"] == "127.0.0.1:0"
    assert given[0]["stun"] is False
