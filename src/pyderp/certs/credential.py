"""A certificate of the relay with its key: what it is for, until when, and whether it is sound."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Final

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from pyderp.addresses import parse_ip
from pyderp.certnames import alternative_names, is_for
from pyderp.errors import ConfigError

__all__ = [
    "CertificateInfo",
    "Credential",
    "check_host_name",
    "day",
    "info_of",
    "is_self_signed",
    "parse_leaf",
    "pem_of_key",
    "utc_now",
    "valid_for",
]

_HOST_NAME: Final = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,252}")


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


def check_host_name(hostname: str) -> None:
    """Refuse what is neither a host name nor an IP address.

    Raises:
        ConfigError: it is neither.
    """
    if parse_ip(hostname) is None and not _HOST_NAME.fullmatch(hostname):
        raise ConfigError(f"{hostname!r} is neither a host name nor an IP address")


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
        raise ConfigError(f"{where} holds no certificate in PEM form") from e


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
    """A time for the log.

    Args:
        when: aware time.
    """
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
