"""Fixtures of all tests of endings."""

from __future__ import annotations

import logging
from collections.abc import Iterator

import pytest


@pytest.fixture(autouse=True)
def logged_nowhere() -> Iterator[None]:
    """pytest keeps each log record, and a record its arguments: an error among them would be
    left."""
    logging.disable(logging.CRITICAL)
    yield
    logging.disable(logging.NOTSET)


@pytest.fixture(autouse=True)
def no_pause_after_refusals(monkeypatch: pytest.MonkeyPatch) -> None:
    """The relays here end a login without ServerInfo as often as a test needs."""
    monkeypatch.setattr("pyderp.client.refusals._UNIT", 0.0)
