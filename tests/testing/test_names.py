"""Public names of `pyderp.testing`."""

from __future__ import annotations

import pytest

import pyderp.testing


@pytest.mark.parametrize("name", vars(pyderp.testing)["__all__"])
def test_public_names_are_there(name: str) -> None:
    """Each is found, though its module is imported only on access."""
    assert getattr(pyderp.testing, name) is not None
    assert name in dir(pyderp.testing)


def test_other_names_raise_attributeerror() -> None:
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        getattr(pyderp.testing, "nonsense")  # noqa: B009 (type checkers know that it does not exist)
