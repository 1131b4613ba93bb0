"""A certificate of the relay with its key, its names and dates; and what its source does.

No library for X.509 is needed for that: a relay without TLS does without. `leaf` needs one.
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

    def is_valid(self, now: datetime) -> bool:
        """Whether clients accept its dates at a time, aware."""
        return self.not_before <= now < self.not_after

    def remaining(self, now: datetime) -> float:
        """The part of its lifetime that is left at a time (aware), 1 to 0; then negative."""
        return (self.not_after - now) / max(self.lifetime, timedelta(seconds=1))


# Compared and hashed by identity: what is made of a credential is kept as long as it lives.
@dataclass(frozen=True, slots=True, eq=False, weakref_slot=True)
class Credential:
    """What the relay proves itself with in a TLS handshake, for any TLS engine.

    `pyderp.certs.context` makes an `ssl.SSLContext` of it.
    """

    chain: bytes = field(repr=False)
    """The leaf, then the certificates of those that vouch for it; PEM, with any text around."""

    key: bytes = field(repr=False)
    """The leaf's private key, PEM, not encrypted."""

    info: CertificateInfo
    """Names and dates of the leaf."""


def day(when: datetime) -> str:
    """An aware time for the log."""
    return when.astimezone(UTC).strftime("%Y-%m-%d %H:%M UTC")


def utc_now() -> datetime:
    """The time, aware."""
    return datetime.now(UTC)


@dataclass(frozen=True, slots=True)
class CertificateState:
    """How it stands with the certificate for one name or address."""

    name: str
    """The DNS name or IP address."""

    info: CertificateInfo | None
    """The certificate in use; `None`: there is none, and every handshake for the name fails."""

    failures: int = 0
    """Attempts in a row to get, or to read, another one that brought none."""

    next_try: float | None = None
    """When it is tried again, in seconds since 1970; `None`: no time is set."""

    error: str = ""
    """Why the last attempt failed; empty: it did not."""

    unsaved: str = ""
    """Why the one in use could not be saved; empty: it is, or another program keeps it."""

    def trouble(self, now: datetime) -> str:
        """What clients or the operator will notice, in one line; empty: nothing.

        A renewal that fails is trouble once less than a fifth of the lifetime is left, or at once
        if the files were changed by hand and cannot be used.

        Args:
            now: the time, aware.
        """
        why = f": {self.error}" if self.error else ""
        info = self.info
        if info is None:
            return f"no certificate for {self.name}{why or '; it has been asked for'}"
        if now >= info.not_after:
            return f"the certificate for {self.name} expired on {day(info.not_after)}{why}"
        if now < info.not_before:
            return f"the certificate for {self.name} is not valid before {day(info.not_before)}"
        # What no authority is asked for was changed by the operator, who expects it to be in use.
        if self.error and (self.next_try is None or info.remaining(now) < EXPIRES_SOON):
            end = day(info.not_after)
            return f"the certificate for {self.name}, good until {end}, is not replaced{why}"
        if self.unsaved:
            lost = "it is lost if the relay stops"
            return f"the certificate for {self.name} cannot be saved, {lost}: {self.unsaved}"
        return ""


class CertificateSource:
    """The relay's certificates, and answers to the challenges of the authority that issues them.

    It gives credentials, and knows no TLS engine. All methods are called on the thread of the
    event loop. A source that asks no authority has no challenges, and nothing to start or end.
    """

    @property
    def challenge_pending(self) -> bool:
        """Whether `challenge_credential` may return one; false nearly always."""
        return False

    def credential(self, local_address: str, server_name: str | None) -> Credential | None:
        """What to present to a client.

        Args:
            local_address: the relay's own IP address that the client connected to.
            server_name: what the client asks for by SNI; `None`: nothing.

        Returns:
            `None` for a name that there is no certificate for, and for every name while there
            is none yet. Such a handshake ends with the alert `internal_error`, as in `derper`.
        """
        raise NotImplementedError

    def challenge_credential(self, hello: memoryview) -> Credential | None:
        """What to present to a certificate authority that checks by TLS-ALPN-01.

        Args:
            hello: a whole ClientHello, as `pyderp.wire.clienthello` reads it.

        Returns:
            `None` if the client asks for no such check, and if `hello` is cut or garbage.
        """
        return None

    def http_challenge(self, path: str) -> bytes | None:
        """The body for `/.well-known/acme-challenge/TOKEN`; `None`: no such challenge."""
        return None

    def certificates(self) -> list[CertificateInfo]:
        """The certificates in use."""
        raise NotImplementedError

    def states(self) -> list[CertificateState]:
        """One for each name and address that a certificate is wanted for, now."""
        raise NotImplementedError

    @property
    def cert_name(self) -> str:
        """`CertName` of the relay's node in a DERP map: the pin of a certificate that no authority
        has signed; empty: clients trust it as it is."""
        return ""

    async def start(self) -> None:
        """Begin to get and renew certificates, once challenges can be answered."""

    def reload(self, *, force: bool = False) -> bool:
        """Look at the files again; returns whether a new certificate is in use.

        Args:
            force: read them even if they look unchanged, as an operator may ask.
        """
        raise NotImplementedError

    async def aclose(self) -> None:
        """End what `start` began."""


class ExpiryWatch:
    """Warns of each certificate that is about to expire or has, once a day.

    Of one that had expired when it was first seen, only after a day: its source logs that.
    """

    def __init__(self) -> None:
        self._throttles: dict[CertificateInfo, Throttle] = {}

    def look(self, certificates: Iterable[CertificateInfo], now: datetime) -> None:
        """Warn of those that it is time for; `now` is aware."""
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
