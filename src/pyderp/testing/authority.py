"""A certificate authority for one test, and the certificate that it issues for the relay."""

from __future__ import annotations

import secrets
from datetime import timedelta
from pathlib import Path
from typing import Final

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from pyderp.addresses import parse_ip
from pyderp.certs.credential import utc_now
from pyderp.certs.leaf import pem_of_key

__all__ = ["issue"]

_VALIDITY: Final = timedelta(days=30)
_SKEW: Final = timedelta(hours=1)
"""Certificates are valid from this long ago: the clock of a container may be behind."""


def issue(authority_file: Path, certificate_file: Path, key_file: Path, names: list[str]) -> None:
    """Make an authority and a certificate that it signs; the authority's key is not kept.

    Args:
        authority_file, certificate_file, key_file: the files to write, in PEM form.
        names: host names and IP addresses; the first is the subject.
    """
    authority_key = ec.generate_private_key(ec.SECP256R1())
    authority = _name("An authority for tests")
    digest = x509.SubjectKeyIdentifier.from_public_key(authority_key.public_key())
    root = (
        _builder(authority, authority, authority_key.public_key())
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_usage(authority=True), critical=True)
        .add_extension(digest, critical=False)
        .sign(authority_key, hashes.SHA256())
    )
    key = ec.generate_private_key(ec.SECP256R1())
    addresses = [(name, parse_ip(name)) for name in names]
    alternative = [
        x509.DNSName(name) if address is None else x509.IPAddress(address)
        for name, address in addresses
    ]
    leaf = (
        _builder(authority, _name(names[0]), key.public_key())
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_usage(authority=False), critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .add_extension(x509.SubjectAlternativeName(alternative), critical=False)
        .add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(digest), critical=False
        )
        .sign(authority_key, hashes.SHA256())
    )
    authority_file.write_bytes(root.public_bytes(Encoding.PEM))
    key_file.write_bytes(pem_of_key(key))
    certificate_file.write_bytes(leaf.public_bytes(Encoding.PEM))


def _name(text: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)])


def _builder(
    issuer: x509.Name, subject: x509.Name, key: ec.EllipticCurvePublicKey
) -> x509.CertificateBuilder:
    now = utc_now()
    return (
        x509.CertificateBuilder()
        .issuer_name(issuer)
        .subject_name(subject)
        .public_key(key)
        .serial_number(secrets.randbits(127))
        .not_valid_before(now - _SKEW)
        .not_valid_after(now + _VALIDITY)
    )


def _usage(*, authority: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not authority,
        key_cert_sign=authority,
        crl_sign=authority,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )
