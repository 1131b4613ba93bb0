"""When a client takes a websocket because no upgrade to DERP gets through to the relay."""

from __future__ import annotations

import asyncio
import logging
from typing import Final

from pyderp.client.config import UrlTarget
from pyderp.errors import UpgradeRejected, raisable, without_frames
from pyderp.net.streams import describe
from pyderp.wire.http import WEBSOCKET_STATUS

__all__ = ["MEMORY", "Fallback"]

log = logging.getLogger("pyderp.client")

MEMORY: Final = 600.0
"""Seconds for which a relay that took a websocket instead gets one at once."""


class Fallback:
    """What one client knows of it.

    Args:
        allowed: whether it may take a websocket without being told to.
    """

    def __init__(self, *, allowed: bool) -> None:
        self._allowed = allowed
        self._until: dict[tuple[str, int], float] = {}

    def remembered(self, target: UrlTarget) -> bool:
        """Whether a relay took a websocket a short while ago, and no upgrade."""
        until = self._until.get((target.host, target.port))
        return until is not None and until > asyncio.get_running_loop().time()

    def wanted(self, error: UpgradeRejected) -> bool:
        """Whether a websocket may get through where an upgrade was answered with this."""
        return self._allowed and error.status in WEBSOCKET_STATUS and not error.asks_for_tls

    def failed(self, rejected: UpgradeRejected, error: Exception) -> UpgradeRejected:
        """The upgrade's refusal, to be raised, with what became of the websocket."""
        rejected.websocket = True
        rejected.add_note(f"and no websocket: {describe(without_frames(error))}")
        return raisable(rejected)

    def worked(self, target: UrlTarget) -> None:
        """A relay took a websocket instead."""
        log.warning("%s: connected by websocket, as no upgrade gets through", target.text)
        self._until[target.host, target.port] = asyncio.get_running_loop().time() + MEMORY
