"""What `pyderp.testing` offers."""

from __future__ import annotations

import pytest

import pyderp.testing


@pytest.mark.parametrize("name", vars(pyderp.testing)["__all__"])
def test_public_names_are_there(name: str) -> None:
    """Each is found, though it is imported only when it is asked for."""
    assert getattr(pyderp.testing, name) is not None
    assert name in dir(pyderp.testing)


def test_other_names_are_not() -> None:
    """As in any other module."""
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        getattr(pyderp.testing, "nonsense")  # noqa: B009 (type checkers know that it is not there)
