"""Command lines in Go's spelling are refused with the right spelling, in the form of the log."""

from __future__ import annotations

import json

import pytest

from tests.cli.process import pyderp


@pytest.mark.parametrize(
    ("word", "advice"),
    [
        ("--a=:443", "--a=:443: write -a :443, or --address=:443"),
        ("--c", "--c: write -c FILE, or --key-file=FILE"),
        ("--stun=true", "--stun=true: write --stun; a switch takes no value"),
        ("--derp=false", "--derp=false: write --no-derp; a switch takes no value"),
        ("--derp=maybe", "--derp=maybe: --derp takes no value"),
        ("-derp=false", "-derp=false: write --no-derp; long flags have two dashes"),
        ("-stun=true", "-stun=true: write --stun; long flags have two dashes"),
    ],
)
def test_a_flag_in_gos_spelling_is_refused_with_the_right_spelling(word: str, advice: str) -> None:
    done = pyderp("relay", "--dev", word)
    assert done.returncode == 2
    assert advice in " ".join(done.stderr.replace("│", " ").split())


@pytest.mark.parametrize(
    "words",
    [
        ("relay", "--dev", "--log-format=json", "--nonsense"),
        ("relay", "--log-format", "json", "--drain=x"),
        ("relay", "--log-format=json", "-certmode=manual"),
        ("relay", "--log-format=json", "--stun=true"),
        ("derper", "-dev", "-log-format=json", "-nonsense"),
    ],
)
def test_a_wrong_command_line_is_a_line_of_the_json_log(words: tuple[str, ...]) -> None:
    done = pyderp(*words)
    assert done.returncode == 2
    assert done.stdout == ""
    (line,) = done.stderr.splitlines()
    entry = json.loads(line)
    assert (entry["level"], entry["logger"]) == ("error", "pyderp.relay")
    assert entry["message"]
