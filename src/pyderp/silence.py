"""A logger for libraries that would log the traffic they carry."""

from __future__ import annotations

import logging
from typing import Final

__all__ = ["SILENT"]

SILENT: Final = logging.Logger("pyderp.silent")
"""Disabled at every level, whatever level a program sets: it is outside of the logger tree."""
SILENT.disabled = True
