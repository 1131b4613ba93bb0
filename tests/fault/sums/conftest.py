"""Length, seed and relays of the runs."""

from __future__ import annotations

import asyncio
import os
import random
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Final, Protocol

import pytest

from .relays import counted_relay
from .run import Run

SECONDS: Final = float(os.environ.get("PYDERP_SUMS_SECONDS", "0"))
"""Seconds of traffic in each run; 0: a few rounds."""
_SEED: Final = os.environ.get("PYDERP_SUMS_SEED", "")
_BOUND: Final = 50.0

_WAYS: Final = [
    ("plain", "uvloop"),
    ("tls", "asyncio"),
    ("websocket", "uvloop"),
]
_MORE_WAYS: Final = [
    ("plain", "asyncio"),
    ("tls", "uvloop"),
    ("websocket", "asyncio"),
    ("websocket over tls", "asyncio"),
    ("websocket over tls", "uvloop"),
]
"""With plenty of time each way runs on each loop."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if SECONDS:
        for item in items:
            item.add_marker(pytest.mark.timeout(10 * SECONDS + 60))


class Sums(Protocol):
    """Runs a scenario against a relay of its own."""

    def __call__(
        self,
        scenario: Callable[[Run], Awaitable[None]],
        *arguments: str,
        files: int | None = None,
    ) -> None: ...


@pytest.fixture(
    params=[*_WAYS, *(_MORE_WAYS if SECONDS else [])], ids=lambda way: f"{way[0]}-{way[1]}"
)
def way(request: pytest.FixtureRequest) -> tuple[str, str]:
    """How clients reach the relay, and its event loop."""
    kind, loop = request.param
    return kind, loop


@pytest.fixture
def sums(way: tuple[str, str], tmp_path: Path) -> Sums:
    """Run a scenario with its own relay; the output is shown if it fails."""
    kind, loop = way

    def go(
        scenario: Callable[[Run], Awaitable[None]],
        *arguments: str,
        files: int | None = None,
    ) -> None:
        seed = _SEED or str(random.randrange(10**9))
        print(f"PYDERP_SUMS_SEED={seed} makes the same choices")  # noqa: T201 (for a failure)
        with counted_relay(kind, tmp_path, loop, *arguments, files=files) as relay:

            async def main() -> None:
                run = Run(relay, kind, random.Random(seed), SECONDS)
                try:
                    async with asyncio.timeout(_BOUND + 8 * SECONDS):
                        await scenario(run)
                finally:
                    run.close()
                    await asyncio.sleep(0)

            try:
                asyncio.run(main())
            finally:
                print(relay.text()[-3000:])  # noqa: T201 (for a failure)

    return go
