"""What the tests of this floor share."""

from __future__ import annotations

import pytest

from tests.relay.world import World


@pytest.fixture
def world() -> World:
    """A relay with nobody on it."""
    return World()
