"""A certificate of the relay with its key, names and dates; and the interface of its source.

This module needs no library for X.509, so that a relay without TLS need not import one. `leaf`
needs it.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Final

from pyderp.throttle import Throttle

__all__ = [
    "EXPIRES_SOON",
    "CertificateInfo",
    "CertificateSource",
    "CertificateState",
    "Credential",
    "ExpiryWatch",
    "day",
    "utc_now",
]

log = logging.getLogger("pyderp.tls")

EXPIRES_SOON: Final = 0.2
"""A certificate with less than this part of its lifetime left is about to expire."""
_AGAIN: Final = 24 * 3600.0
"""Seconds between two warnings of one certificate."""


@dataclass(frozen=True, slots=True)
class CertificateInfo:
    """Names and dates of a leaf certificate. All times are aware datetimes."""

    names: tuple[str, ...]
    """The DNS names and IP addresses that it is valid for."""

    not_before: datetime
    not_after: datetime

    @property
    def lifetime(self) -> timedelta:
        """The time from `not_before` to `not_after`."""
        return self.not_after - self.not_before

    def is_valid(self, now: datetime) -> bool:
        """Return whether clients accept its dates at a time."""
        return self.not_before <= now < self.not_after

    def remaining(self, now: datetime) -> float:
        """Return the part of its lifetime that is left: 1 to 0, and negative once it expired."""
        return (self.not_after - now) / max(self.lifetime, timedelta(seconds=1))


# Compared and hashed by identity: TLS contexts are cached in a WeakKeyDictionary by credential, and
# are freed with it. Equal content in another object may only cost a second context.
@dataclass(frozen=True, slots=True, eq=False, weakref_slot=True)
class Credential:
    """A certificate chain and private key for TLS handshakes, for any TLS engine.

    `pyderp.certs.context` makes an `ssl.SSLContext` of it.
    """

    chain: bytes = field(repr=False)
    """The leaf certificate, then those of its issuers; PEM, possibly with text between them."""

    key: bytes = field(repr=False)
    """The leaf's private key, PEM, not encrypted."""

    info: CertificateInfo
    """Names and dates of the leaf."""


def day(when: datetime) -> str:
    """Return an aware time as text for the log, in UTC."""
    return when.astimezone(UTC).strftime("%Y-%m-%d %H:%M UTC")


def utc_now() -> datetime:
    """Return the current time as an aware datetime."""
    return datetime.now(UTC)


@dataclass(frozen=True, slots=True)
class CertificateState:
    """The state of the certificate for one name or address."""

    name: str
    """The DNS name or IP address."""

    info: CertificateInfo | None
    """The certificate in use; `None` if there is none, and every handshake for the name fails."""

    failures: int = 0
    """Failed attempts in a row to obtain, or to read, a newer one."""

    next_try: float | None = None
    """The time of the next attempt, in seconds since 1970; `None` if none is planned."""

    error: str = ""
    """Why the last attempt failed; empty if it did not."""

    unsaved: str = ""
    """Why the certificate in use could not be saved; empty if it could, or came from a file."""

    def trouble(self, now: datetime) -> str:
        """Return a line about a problem that clients or the operator will notice; empty if none.

        A failing renewal counts once less than a fifth of the lifetime is left. Changed files that
        cannot be used count at once.

        Args:
            now: an aware datetime.
        """
        why = f": {self.error}" if self.error else ""
        info = self.info
        if info is None:
            return f"no certificate for {self.name}{why or '; it has been asked for'}"
        if now >= info.not_after:
            return f"the certificate for {self.name} expired on {day(info.not_after)}{why}"
        if now < info.not_before:
            return f"the certificate for {self.name} is not valid before {day(info.not_before)}"
        # Without a next attempt the certificate is from files. They were changed by the operator,
        # who expects them to be in use.
        if self.error and (self.next_try is None or info.remaining(now) < EXPIRES_SOON):
            end = day(info.not_after)
            return f"the certificate for {self.name}, valid until {end}, is not replaced{why}"
        if self.unsaved:
            lost = "it is lost if the relay stops"
            return f"the certificate for {self.name} cannot be saved, {lost}: {self.unsaved}"
        return ""


class CertificateSource:
    """The relay's certificates, and answers to the challenges of the authority that issues them.

    It returns credentials and knows no TLS engine. All methods are called on the thread of the
    event loop. A source without an authority has no challenges, and nothing to start or stop.
    """

    @property
    def challenge_pending(self) -> bool:
        """Whether `challenge_credential` may return one; false nearly always."""
        return False

    def credential(self, local_address: str, server_name: str | None) -> Credential | None:
        """Return the certificate to present to a client.

        Args:
            local_address: the relay's own IP address that the client connected to.
            server_name: the name in the client's SNI; `None` if it sent none.

        Returns:
            `None` if there is no certificate for the name, or none yet. The handshake then ends
            with the alert `internal_error`, as in `derper`.
        """
        raise NotImplementedError

    def challenge_credential(self, hello: memoryview) -> Credential | None:
        """Return the certificate for an authority that checks the relay by TLS-ALPN-01.

        Args:
            hello: a complete ClientHello, as `pyderp.wire.clienthello` reads it.

        Returns:
            `None` if the client asks for no such check, or `hello` is cut or malformed.
        """
        return None

    def http_challenge(self, path: str) -> bytes | None:
        """Return the body for `/.well-known/acme-challenge/TOKEN`; `None` if it is not pending."""
        return None

    def certificates(self) -> list[CertificateInfo]:
        """Return the certificates in use."""
        raise NotImplementedError

    def states(self) -> list[CertificateState]:
        """Return the state for each name and address that needs a certificate."""
        raise NotImplementedError

    @property
    def cert_name(self) -> str:
        """`CertName` of the relay's node in a DERP map: the pin of a self-signed certificate, or
        empty if clients can check the certificate by its issuer."""
        return ""

    async def start(self) -> None:
        """Start to obtain and renew certificates. Challenges must be answered from now on."""

    def reload(self, *, force: bool = False) -> bool:
        """Look at the files again. Returns whether a new certificate is in use.

        Args:
            force: read them even if they look unchanged, because an operator asks for it.
        """
        raise NotImplementedError

    async def aclose(self) -> None:
        """Stop what `start` started."""


class ExpiryWatch:
    """Logs a warning once a day for each certificate that is about to expire or has expired.

    If a certificate had expired when it was first seen, the first warning is a day later, because
    its source has just logged it.
    """

    def __init__(self) -> None:
        self._throttles: dict[CertificateInfo, Throttle] = {}

    def look(self, certificates: Iterable[CertificateInfo], now: datetime) -> None:
        """Log the warnings that are due; `now` is an aware datetime."""
        soon = [each for each in certificates if each.remaining(now) < EXPIRES_SOON]
        known = self._throttles
        self._throttles = {each: known.get(each) or _throttle(each, now) for each in soon}
        for each, throttle in self._throttles.items():
            if throttle.admit(now.timestamp()) is None:
                continue
            log.warning(
                "the certificate of %s %s %s: clients that check will refuse it",
                ", ".join(each.names),
                "expires on" if now < each.not_after else "expired on",
                day(each.not_after),
            )


def _throttle(certificate: CertificateInfo, now: datetime) -> Throttle:
    throttle = Throttle(_AGAIN)
    if now >= certificate.not_after:
        throttle.admit(now.timestamp())
    return throttle
