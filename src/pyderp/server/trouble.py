"""What a relay serves without, or only in part: the words for it that all its parts share."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

__all__ = ["Part", "Trouble"]


class Part(StrEnum):
    """A part of a relay, or of the program that runs it, that can fail while the relay serves."""

    CERTIFICATE = "certificate"
    ADMISSION = "admission"
    MESH = "mesh"
    STUN = "stun"
    RATE_CONFIG = "rate_config"
    SETTINGS = "settings"
    LOG = "log"


@dataclass(frozen=True, slots=True)
class Trouble:
    """Something that does not work at the moment."""

    part: Part

    text: str
    """What is wrong with which part, in one line that a person understands by itself."""
