"""What a relay asks of its certificates, whatever their origin, and a watch over their expiry."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from datetime import datetime
from typing import Final, Protocol

from pyderp.certs.credential import CertificateInfo, Credential
from pyderp.throttle import Throttle

__all__ = ["EXPIRES_SOON", "CertificateSource", "ExpiryWatch"]

log = logging.getLogger("pyderp.tls")

EXPIRES_SOON: Final = 0.2
"""A certificate with less than this part of its lifetime left is about to expire."""

_AGAIN: Final = 24 * 3600.0
"""Seconds between two warnings of one certificate."""


class CertificateSource(Protocol):
    """The relay's certificates, and answers to the challenges of the authority that issues them.

    It gives credentials, and knows no TLS engine.

    All methods are called on the thread of the event loop.
    """

    @property
    def challenge_pending(self) -> bool:
        """Whether `challenge_credential` may return one; false nearly always."""
        ...

    def credential(self, local_address: str, server_name: str | None) -> Credential | None:
        """What to present to a client.

        Args:
            local_address: the relay's own IP address that the client connected to.
            server_name: what the client asks for by SNI; `None`: nothing.

        Returns:
            `None` for a name that there is no certificate for, and for every name while there
            is none yet. Such a handshake ends with the alert `internal_error`, as in `derper`.
        """
        ...

    def challenge_credential(self, hello: memoryview) -> Credential | None:
        """What to present to a certificate authority that checks by TLS-ALPN-01.

        Args:
            hello: a whole ClientHello, as `pyderp.wire.clienthello` reads it.

        Returns:
            `None` if the client asks for no such check, and if `hello` is cut or garbage.
        """
        ...

    def http_challenge(self, path: str) -> bytes | None:
        """The body for `/.well-known/acme-challenge/TOKEN`; `None`: no such challenge."""
        ...

    def certificates(self) -> list[CertificateInfo]:
        """The certificates in use."""
        ...

    @property
    def cert_name(self) -> str:
        """`CertName` of the relay's node in a DERP map: the pin of a certificate that no authority
        has signed; empty: clients trust it as it is."""
        ...

    async def start(self) -> None:
        """Begin to get and renew certificates, once challenges can be answered."""
        ...

    def reload(self, *, force: bool = False) -> bool:
        """Look at the files again; returns whether a new certificate is in use.

        Args:
            force: read them even if they look unchanged, as an operator may ask.
        """
        ...

    async def aclose(self) -> None:
        """End what `start` began."""
        ...


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
