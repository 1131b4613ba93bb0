"""Every Go name in the table of differences has a counterpart that exists."""

from __future__ import annotations

import importlib
import re
from pathlib import Path

import pytest

PAGE = Path(__file__).parents[1] / "docs" / "differences.md"
_TABLE = PAGE.read_text().partition("### Go's names and ours")[2].partition("\n## ")[0]
OURS = sorted(set(re.findall(r"`(pyderp\.[\w.]+)`", _TABLE)))


def test_table_is_found() -> None:
    assert len(OURS) > 40


@pytest.mark.parametrize("name", OURS)
def test_counterpart_exists(name: str) -> None:
    """As an attribute, a field of a dataclass, or a documented attribute of an error."""
    found: object = importlib.import_module("pyderp")
    path = name.split(".")[1:]
    for position, part in enumerate(path):
        if not hasattr(found, part) and position == 0:
            found = importlib.import_module(f"pyderp.{part}")
            continue
        fields = getattr(found, "__dataclass_fields__", {})
        documented = re.search(rf"^    +{part}: ", getattr(found, "__doc__", None) or "", re.M)
        if part in fields or (documented and not hasattr(found, part)):
            assert position == len(path) - 1
            return
        found = getattr(found, part)
    assert getattr(found, "__doc__", None), f"{name} has no docstring"
