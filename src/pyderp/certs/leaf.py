"""X.509: reads the leaf certificate of a chain, and makes self-signed certificates."""

from __future__ import annotations

import secrets
from collections.abc import Iterable
from datetime import datetime

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from pyderp.certnames import alternative_names, is_for
from pyderp.certs.credential import CertificateInfo, Credential
from pyderp.certs.pem import chain_problem
from pyderp.errors import ConfigError

__all__ = ["info_of", "is_self_signed", "parse_chain", "parse_leaf", "pem_of_key"]
__all__ += ["self_signed", "valid_for"]


def parse_leaf(chain: bytes, where: object) -> x509.Certificate:
    """Return the first certificate of a chain in PEM form.

    Args:
        where: the file, for the error.

    Raises:
        ConfigError: there is none, or a certificate of the chain cannot be read.
    """
    try:
        return parse_chain(chain)[0]
    except (ValueError, IndexError) as e:
        why = chain_problem(chain) or "holds no certificate in PEM form"
        raise ConfigError(f"{where} {why}") from e


def parse_chain(chain: bytes) -> list[x509.Certificate]:
    """Return all certificates of a chain in PEM form, in order.

    Raises:
        ValueError: one of them cannot be read, or there is none.
    """
    return x509.load_pem_x509_certificates(chain)


def info_of(leaf: x509.Certificate) -> CertificateInfo:
    """Return the names and dates of a certificate."""
    try:
        names = alternative_names(leaf)
    except ValueError:
        names = ()  # a malformed extension: clients find no name in it either
    return CertificateInfo(names, leaf.not_valid_before_utc, leaf.not_valid_after_utc)


def valid_for(leaf: x509.Certificate, hostname: str) -> bool:
    """Return whether a certificate names a host, by the rules of `derper`; dates are ignored."""
    try:
        return is_for(leaf, hostname, star_below_top_level=True)
    except ValueError:
        return False


def is_self_signed(leaf: x509.Certificate) -> bool:
    """Return whether a certificate is signed by its own key."""
    if leaf.issuer != leaf.subject:
        return False  # the answer for nearly all certificates, without a check of the signature
    try:
        leaf.verify_directly_issued_by(leaf)
    except (InvalidSignature, ValueError, TypeError):
        return False
    return True


def pem_of_key(key: ec.EllipticCurvePrivateKey) -> bytes:
    """Return a key as PEM `EC PRIVATE KEY`, the form that Go programs write."""
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
    """Return a new P-256 key with a self-signed certificate.

    Args:
        alternative: the only name or address that the certificate is valid for.
        lifetime: `not_before` and `not_after`.
        extensions: further extensions, and whether each is critical.
    """
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, common_name)])
    builder = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        # Positive and at most 20 bytes (RFC 5280 section 4.1.2.2), with a random value.
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
