"""A certificate of ours in PEM form: what it is for, and until when."""

from __future__ import annotations

from datetime import UTC, datetime

from cryptography import x509
from cryptography.exceptions import InvalidSignature

from pyderp.addresses import parse_ip
from pyderp.certs.source import CertificateInfo
from pyderp.errors import ConfigError

__all__ = [
    "day",
    "info_of",
    "is_self_signed",
    "parse_leaf",
    "utc_now",
    "valid_for",
]


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
    return CertificateInfo(_names(leaf), leaf.not_valid_before_utc, leaf.not_valid_after_utc)


def _names(leaf: x509.Certificate) -> tuple[str, ...]:
    try:
        san = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except (x509.ExtensionNotFound, ValueError):
        return ()
    return (
        *san.get_values_for_type(x509.DNSName),
        *(str(address) for address in san.get_values_for_type(x509.IPAddress)),
    )


def valid_for(info: CertificateInfo, hostname: str) -> bool:
    """Whether a certificate names a host.

    Only subject alternative names count, as for every TLS client today. Its dates do not.
    """
    address = parse_ip(hostname)
    if address is not None:
        return any(parse_ip(name) == address for name in info.names)
    wanted = hostname.lower().rstrip(".")
    parent = wanted.partition(".")[2]
    for name in info.names:
        pattern = name.lower()
        if pattern == wanted or (parent and pattern == f"*.{parent}"):
            return True
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
