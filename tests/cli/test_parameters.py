"""The help of all commands: switches without a type, and usage lines as arguments are written."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

import pytest

from .commands import Done

Here: TypeAlias = Callable[..., Done]


@pytest.mark.parametrize(
    "command",
    [
        *([], ["relay"], ["listen"], ["send"], ["ping"], ["doctor"], ["netcheck"]),
        *(["key", "new"], ["key", "public"], ["map", "show"], ["map", "new"], ["map", "lint"]),
    ],
)
def test_a_switch_has_no_type_in_the_help(here: Here, command: list[str]) -> None:
    done = here(*command, "--help")
    assert done.code == 0
    assert "--help" in done.out
    assert "bool" not in done.out.lower()


@pytest.mark.parametrize(
    ("command", "arguments"), [("send", "[URL] PEER"), ("ping", "[URL] [PEER]")]
)
def test_the_usage_says_which_arguments_may_be_left_out(
    here: Here, command: str, arguments: str
) -> None:
    usage = next(line for line in here(command, "--help").out.splitlines() if "Usage:" in line)
    assert usage.strip() == f"Usage: pyderp {command} [OPTIONS] {arguments}"
