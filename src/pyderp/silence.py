"""A logger for libraries that would log what goes through them."""

from __future__ import annotations

import logging
from typing import Final

__all__ = ["SILENT"]

SILENT: Final = logging.Logger("pyderp.silent")
"""Off at every level, whatever a program sets. It belongs to no other logger."""
SILENT.disabled = True
