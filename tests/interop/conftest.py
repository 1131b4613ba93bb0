"""Relays to test against: each is started on first use and runs for the session."""

from __future__ import annotations

from contextlib import ExitStack
from typing import TYPE_CHECKING

import pytest

from .relays import running

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from .relays import Kind, Relay, Setup


@pytest.fixture(scope="session")
def relays(
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Callable[[Kind, Setup], Relay]]:
    """Return a function from kind and setup to the running relay."""
    started: dict[tuple[Kind, Setup], Relay] = {}
    with ExitStack() as stack:

        def relay(kind: Kind, setup: Setup) -> Relay:
            if (kind, setup) not in started:
                directory = tmp_path_factory.mktemp(f"{kind}-{setup}")
                started[kind, setup] = stack.enter_context(running(kind, setup, directory))
            return started[kind, setup]

        yield relay
