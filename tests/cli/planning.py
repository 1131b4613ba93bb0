"""What a command line of the relay asks for, found out without running one."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import TypeAlias

import pytest

from pyderp.cli import relayrun
from pyderp.cli.main import derper_main, main
from pyderp.cli.relayflags.plan import Plan
from pyderp.cli.relayflags.settings import Settings
from pyderp.cli.relayrun import Loaded

__all__ = ["Planned", "planner"]

Planned: TypeAlias = tuple[Plan, Settings]


def planner(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Planned]:
    """A function that takes a command line and gives what would be run."""
    found: list[Loaded] = []

    def carry_out(load: Callable[[], Loaded], _: str | None = None) -> None:
        found.append(load())

    monkeypatch.setattr(relayrun, "carry_out", carry_out)

    def plan(*arguments: object, derper: bool = False) -> Planned:
        words = [str(each) for each in arguments]
        if derper:
            monkeypatch.setattr(sys, "argv", ["pyderp-derper", *words])
        else:
            monkeypatch.setattr(sys, "argv", ["pyderp", "relay", *words])
        with pytest.raises(SystemExit) as caught:
            derper_main() if derper else main()
        assert caught.value.code == 0
        loaded = found.pop()
        return loaded.plan(), loaded.settings

    return plan
