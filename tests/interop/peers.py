"""Programs of other projects that tests need, and what happens when one is missing."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]


def need(name: str) -> Path:
    """Return the program ``name``, from ``.peers/bin`` or else from ``PATH``.

    Without it the test is skipped, or fails where ``PYDERP_REQUIRE_PEERS=1`` requires peers, as in
    CI: otherwise a missing peer would go unnoticed.
    """
    built = REPOSITORY / ".peers" / "bin" / name
    if built.is_file() and os.access(built, os.X_OK):
        return built
    if found := shutil.which(name):
        return Path(found)
    reason = f"peer {name} is missing: run `make peers`"
    if os.environ.get("PYDERP_REQUIRE_PEERS") == "1":
        pytest.fail(reason)
    pytest.skip(reason)
