"""The targets, one module each. If a target's `one_input` raises, that is a finding."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

__all__ = ["CORPUS", "NAMES", "Target", "load", "seeds"]

CORPUS: Final = Path(__file__).parent.parent / "corpus"
NAMES: Final = sorted(
    path.stem for path in Path(__file__).parent.glob("*.py") if not path.stem.startswith("_")
)


@dataclass(slots=True)
class Target:
    """A function that reads hostile bytes, and what helps to fuzz it."""

    name: str
    one_input: Callable[[bytes], None]
    tokens: tuple[bytes, ...]
    """Byte strings that random changes would take too long to find."""


def load(name: str) -> Target:
    """Import a target."""
    module = importlib.import_module(f"{__name__}.{name}")
    return Target(name, module.one_input, module.TOKENS)


def seeds(name: str) -> list[Path]:
    """Returns the committed inputs of a target."""
    return sorted(path for path in (CORPUS / name).iterdir() if path.is_file())
