"""Telling the operator of certificates that are about to expire."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from datetime import datetime
from typing import Final

from pyderp.certs.source import CertificateInfo
from pyderp.throttle import Throttle

__all__ = ["EXPIRES_SOON", "ExpiryWatch"]

log = logging.getLogger("pyderp.tls")

EXPIRES_SOON: Final = 0.2
"""A certificate with less than this part of its lifetime left is about to expire."""

_AGAIN: Final = 24 * 3600.0
"""Seconds between two warnings of one certificate."""


class ExpiryWatch:
    """Warns of each certificate that is about to expire, once a day."""

    def __init__(self) -> None:
        self._throttles: dict[CertificateInfo, Throttle] = {}

    def look(self, certificates: Iterable[CertificateInfo], now: datetime) -> None:
        """Warn of those that it is time for.

        Args:
            now: aware time.
        """
        soon = [each for each in certificates if each.remaining(now) < EXPIRES_SOON]
        known = self._throttles
        self._throttles = {each: known.get(each) or Throttle(_AGAIN) for each in soon}
        for each, throttle in self._throttles.items():
            if throttle.admit(now.timestamp()) is None:
                continue
            log.warning(
                "the certificate of %s %s %s: clients that check will refuse it",
                ", ".join(each.names),
                "expires on" if now < each.not_after else "expired on",
                each.not_after.strftime("%Y-%m-%d %H:%M UTC"),
            )
