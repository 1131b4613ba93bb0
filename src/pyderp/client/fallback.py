"""Decides when a client tries a websocket because the upgrade to DERP was refused.

Some proxies strip the headers of an upgrade that they do not know, and the relay answers as to a
plain request. Most of them let a websocket pass.
"""

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
"""Seconds for which the client begins with a websocket at a relay that accepted one instead."""


class Fallback:
    """The relays at which one client had to use a websocket.

    Args:
        allowed: whether the client may use a websocket by its own decision.
    """

    def __init__(self, *, allowed: bool) -> None:
        self._allowed = allowed
        self._until: dict[tuple[str, int], float] = {}

    def remembered(self, target: UrlTarget) -> bool:
        """Whether a relay refused the upgrade and accepted a websocket in the last ten minutes."""
        until = self._until.get((target.host, target.port))
        return until is not None and until > asyncio.get_running_loop().time()

    def wanted(self, error: UpgradeRejected) -> bool:
        """Whether a websocket may get through where the upgrade had this answer."""
        # 400, 404, 426 or 501: the answers to a request whose headers of the upgrade were stripped.
        # Not if the port is for TLS: a websocket without TLS would fail there as well.
        return self._allowed and error.status in WEBSOCKET_STATUS and not error.asks_for_tls

    def failed(self, rejected: UpgradeRejected, error: Exception) -> UpgradeRejected:
        """Returns the refusal of the upgrade, to be raised, with a note about the websocket."""
        rejected.websocket = True
        same = isinstance(error, UpgradeRejected) and error.status == rejected.status
        why = "the same answer" if same else describe(without_frames(error))
        rejected.add_note(f"and no websocket: {why}")
        return raisable(rejected)

    def worked(self, target: UrlTarget) -> None:
        """Note that a relay accepted a websocket instead."""
        log.warning("%s: connected by websocket, as no upgrade gets through", target.text)
        self._until[target.host, target.port] = asyncio.get_running_loop().time() + MEMORY
