"""What a command line of the relay asks for, without running a relay."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import TypeAlias

import pytest

from pyderp.cli.main import derper_main, main
from pyderp.cli.relay import run as relayrun
from pyderp.cli.relay.layers import Settings
from pyderp.cli.relay.plan import StartPlan, checked_plan

__all__ = ["Planned", "planner"]

Planned: TypeAlias = tuple[StartPlan, Settings]


def planner(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Planned]:
    """A function that takes a command line and returns what would be run."""
    found: list[Settings] = []

    def carry_out(load: Callable[[], Settings], _: str | None = None) -> None:
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
        settings = found.pop()
        return checked_plan(settings), settings

    return plan
