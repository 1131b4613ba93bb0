"""What a relay asks of its certificates, whoever made them."""

from __future__ import annotations

import ssl
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Protocol

__all__ = ["CertificateInfo", "CertificateSource"]


@dataclass(frozen=True, slots=True)
class CertificateInfo:
    """A leaf certificate in use."""

    names: tuple[str, ...]
    """DNS names and IP addresses that it is for."""

    not_before: datetime
    not_after: datetime
    """Aware times."""

    @property
    def lifetime(self) -> timedelta:
        """From the first to the last moment that it is valid."""
        return self.not_after - self.not_before

    def remaining(self, now: datetime) -> float:
        """The part of its lifetime that is left, 1 to 0; negative once it has expired.

        Args:
            now: aware time.
        """
        return (self.not_after - now) / max(self.lifetime, timedelta(seconds=1))


class CertificateSource(Protocol):
    """Certificates of a relay, and answers to the challenges of who issues them.

    All methods are called on the thread of the event loop.
    """

    @property
    def challenge_pending(self) -> bool:
        """Whether `challenge_context` may give something; false nearly always."""
        ...

    def context(self, local_address: str) -> ssl.SSLContext:
        """The server side of TLS for a new connection.

        A name that there is no certificate for ends the handshake with the alert
        `internal_error`, as in `derper`; so does every name while there is none yet.

        Args:
            local_address: the relay's own IP address that the client connected to.
        """
        ...

    def challenge_context(self, hello: memoryview) -> ssl.SSLContext | None:
        """For a certificate authority that checks by TLS-ALPN-01: the context that convinces it.

        Args:
            hello: a whole ClientHello, as `pyderp.wire.clienthello` reads it.

        Returns:
            `None` for anybody else, and if `hello` is cut or garbage.
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
        """Look at the files again; gives whether a new certificate is in use.

        Args:
            force: read them even if they look unchanged, as an operator may ask.
        """
        ...

    async def aclose(self) -> None:
        """End what `start` began."""
        ...
