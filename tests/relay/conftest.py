"""Fixtures of the tests of `pyderp.relay`."""

from __future__ import annotations

import pytest

from tests.relay.world import World


@pytest.fixture
def world() -> World:
    """A relay without clients."""
    return World()
