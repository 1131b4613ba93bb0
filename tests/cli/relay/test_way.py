"""Which source files a flag's value passes until it takes effect."""

from __future__ import annotations

import sys
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import FrameType
from typing import Any

import pytest

import pyderp
from pyderp.cli.dispatch import carry_out
from pyderp.cli.relay import run as relayrun
from pyderp.cli.relay.layers import load_settings, values_of
from pyderp.config import RelayConfig
from pyderp.server.app.relay import Relay

ROOT = Path(pyderp.__file__).parent
VALUE = 0.03125

WAY = [
    "cli/relay/layers.py",  # the command's arguments
    "cli/relay/values.py",  # text becomes a number
    "cli/relay/run.py",
    "cli/relay/plan.py",
    "config/relay.py",
    "server/app/relay.py",  # where it takes effect
]


def _holds(thing: object, depth: int = 4) -> bool:
    """Whether an object is the value, or contains it."""
    if isinstance(thing, float):
        return thing == VALUE
    if isinstance(thing, str):
        return str(VALUE) in thing
    if not depth:
        return False
    if isinstance(thing, dict):
        inside = list(thing.values())
    elif isinstance(thing, list | tuple):
        inside = list(thing)
    elif type(thing).__module__.startswith("pyderp."):
        inside = list(getattr(thing, "__dict__", {}).values())
    else:
        return False
    return any(_holds(each, depth - 1) for each in inside)


@contextmanager
def _traced(found: list[str]) -> Iterator[None]:
    """Record each file of pyderp with a function that is called with the value, or what contains
    it."""

    def on_event(frame: FrameType, event: str, _: object) -> None:
        path = Path(frame.f_code.co_filename)
        if event != "call" or not path.is_relative_to(ROOT) or WAY[-1] in found:
            return  # after it takes effect, parts of the relay are called that have all settings
        name = str(path.relative_to(ROOT))
        if name not in found and _holds(list(frame.f_locals.values())):
            found.append(name)

    before = sys.getprofile()
    sys.setprofile(on_event)
    try:
        yield
    finally:
        sys.setprofile(before)


async def test_a_flag_passes_six_files_until_it_takes_effect(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Counted from the arguments of `pyderp relay` on; choosing the command is the same for all."""
    found: list[str] = []
    mains: list[Callable[[], Coroutine[Any, Any, None]]] = []
    configs: list[RelayConfig] = []

    async def serve(plan: Any, *_: object) -> None:
        configs.append(plan.config)

    monkeypatch.setattr(relayrun, "_run", lambda _, main: mains.append(main))
    monkeypatch.setattr(relayrun, "_serve", serve)
    with _traced(found):
        given = values_of(["--dev", f"--drain={VALUE}"], {})
        assert given is not None
        carry_out(lambda: load_settings(given), None)

    async def main() -> None:
        await mains[0]()
        relay = Relay(replace(configs[0], address="127.0.0.1:0", stun_port=None))
        await relay.start()
        with _traced(found):
            await relay.aclose(drain=configs[0].drain)

    await main()
    assert found == WAY
    assert len(found) <= 6
