"""A certificate of the relay with its key: names, dates, soundness; and what its source does."""

from __future__ import annotations

import logging
import secrets
from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Final

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from pyderp.certnames import alternative_names, is_for
from pyderp.certs.pem import chain_problem
from pyderp.errors import ConfigError
from pyderp.throttle import Throttle

__all__ = [
    "EXPIRES_SOON",
    "CertificateInfo",
    "CertificateSource",
    "CertificateState",
    "Credential",
    "ExpiryWatch",
    "day",
    "info_of",
    "is_self_signed",
    "parse_leaf",
    "pem_of_key",
    "self_signed",
    "utc_now",
    "valid_for",
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


def parse_leaf(chain: bytes, where: object) -> x509.Certificate:
    """The first certificate of a chain in PEM form.

    Args:
        where: the file, for the error.

    Raises:
        ConfigError: there is none.
    """
    try:
        return x509.load_pem_x509_certificates(chain)[0]
    except (ValueError, IndexError) as e:
        why = chain_problem(chain) or "holds no certificate in PEM form"
        raise ConfigError(f"{where} {why}") from e


def info_of(leaf: x509.Certificate) -> CertificateInfo:
    """Names and times of a certificate."""
    try:
        names = alternative_names(leaf)
    except ValueError:
        names = ()  # as good as none
    return CertificateInfo(names, leaf.not_valid_before_utc, leaf.not_valid_after_utc)


def valid_for(leaf: x509.Certificate, hostname: str) -> bool:
    """Whether a certificate names a host, as `derper` sees it. Its dates do not matter."""
    try:
        return is_for(leaf, hostname, star_below_top_level=True)
    except ValueError:
        return False


def is_self_signed(leaf: x509.Certificate) -> bool:
    """Whether a certificate is signed by its own key."""
    if leaf.issuer != leaf.subject:
        return False
    try:
        leaf.verify_directly_issued_by(leaf)
    except (InvalidSignature, ValueError, TypeError):
        return False
    return True


def day(when: datetime) -> str:
    """An aware time for the log."""
    return when.astimezone(UTC).strftime("%Y-%m-%d %H:%M UTC")


def utc_now() -> datetime:
    """The time, aware."""
    return datetime.now(UTC)


def pem_of_key(key: ec.EllipticCurvePrivateKey) -> bytes:
    """A key as `EC PRIVATE KEY`, the form that Go programs write."""
    return key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.TraditionalOpenSSL,
        serialization.NoEncryption(),
    )


def self_signed(
    common_name: str,
    alternative: x509.GeneralName,
    lifetime: tuple[datetime, datetime],
    extensions: Iterable[tuple[x509.ExtensionType, bool]],
) -> Credential:
    """Make a key, and a certificate that it signs itself.

    Args:
        alternative: the one name or address that it is for.
        lifetime: its first and last moment.
        extensions: others, and whether each is critical.
    """
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, common_name)])
    builder = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(secrets.randbits(127))
        .not_valid_before(lifetime[0])
        .not_valid_after(lifetime[1])
        .add_extension(x509.SubjectAlternativeName([alternative]), critical=False)
    )
    for extension, critical in extensions:
        builder = builder.add_extension(extension, critical=critical)
    made = builder.sign(key, hashes.SHA256())
    chain = made.public_bytes(serialization.Encoding.PEM)
    return Credential(chain, pem_of_key(key), info_of(made))


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
    """Warns of each certificate that is about to expire, once a day."""

    def __init__(self) -> None:
        self._throttles: dict[CertificateInfo, Throttle] = {}

    def look(self, certificates: Iterable[CertificateInfo], now: datetime) -> None:
        """Warn of those that it is time for; `now` is aware."""
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
                day(each.not_after),
            )
