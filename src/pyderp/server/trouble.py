"""Troubles: parts of a relay that do not work while it serves."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

__all__ = ["Part", "Trouble"]


class Part(StrEnum):
    """A part of a relay, or of its program, that can fail while the relay serves."""

    CERTIFICATE = "certificate"
    ADMISSION = "admission"
    MESH = "mesh"
    STUN = "stun"
    RATE_CONFIG = "rate_config"
    SETTINGS = "settings"
    LOG = "log"


@dataclass(frozen=True, slots=True)
class Trouble:
    """A part that does not work at the moment."""

    part: Part

    text: str
    """What is wrong, in one line that makes sense without context."""
