"""A certificate of ours in PEM form: what it is for, and until when."""

from __future__ import annotations

import re
from datetime import UTC, datetime
from typing import Final

from cryptography import x509
from cryptography.exceptions import InvalidSignature

from pyderp.addresses import parse_ip
from pyderp.certnames import alternative_names, is_for
from pyderp.certs.source import CertificateInfo
from pyderp.errors import ConfigError

__all__ = [
    "check_host_name",
    "day",
    "info_of",
    "is_self_signed",
    "parse_leaf",
    "utc_now",
    "valid_for",
]

_HOST_NAME: Final = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,252}")


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
    """Whether nobody vouches for a certificate but its own key."""
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
