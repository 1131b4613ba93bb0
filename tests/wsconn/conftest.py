"""Fixtures of all tests of streams."""

from __future__ import annotations

import pytest

from pyderp.wsconn import stream

from .peers import Role


@pytest.fixture(params=["client", "server"])
def role(request: pytest.FixtureRequest) -> Role:
    """Which side the stream under test is."""
    return "client" if request.param == "client" else "server"


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """The closing handshake may take 30 ms only."""
    monkeypatch.setattr(stream, "CLOSE_TIMEOUT", 0.03)
