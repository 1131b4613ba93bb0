"""Firewalls that intercept TLS are told by their certificates."""

from __future__ import annotations

import datetime

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import NameOID

from pyderp.net.interceptors import interceptor
from pyderp.net.verify import intercepted


def certificate(issuer: str, email: str = "") -> bytes:
    key = ec.generate_private_key(ec.SECP256R1())
    now = datetime.datetime(2026, 1, 1)
    builder = (
        x509.CertificateBuilder()
        .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "derp.example.com")]))
        .issuer_name(x509.Name([x509.NameAttribute(NameOID.ORGANIZATION_NAME, issuer)]))
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now)
        .not_valid_after(now + datetime.timedelta(days=1))
    )
    if email:
        names = x509.SubjectAlternativeName([x509.RFC822Name(email)])
        builder = builder.add_extension(names, critical=False)
    return builder.sign(key, SHA256()).public_bytes(Encoding.DER)


@pytest.mark.parametrize(
    ("issuer", "email", "maker"),
    [
        ("FORTINET", "", "Fortinet"),
        ("Some CA", "support@fortinet.com", "Fortinet"),
        ("Some CA", "mobile@huawei.com", "Huawei"),
        ("PAN-FW 3", "", "Palo Alto Networks"),
        ("UniFi OS", "", "Ubiquiti"),
        ("Let's Encrypt", "", None),
        ("Let's Encrypt", "me@example.com", None),
    ],
)
def test_maker_is_told(issuer: str, email: str, maker: str | None) -> None:
    """By the issuer, or by an address in the certificate."""
    assert interceptor(certificate(issuer, email)) == maker


def test_what_is_no_certificate_has_no_maker() -> None:
    assert interceptor(b"junk") is None


def test_a_certificate_of_no_known_version_has_no_maker() -> None:
    """`INTEGER 2` of the version becomes 5, which no X.509 has."""
    der = certificate("Fortinet")
    assert interceptor(der) == "Fortinet"
    v3, v6 = bytes.fromhex("a003020102"), bytes.fromhex("a003020105")
    assert interceptor(der.replace(v3, v6, 1)) is None


def test_error_names_the_maker() -> None:
    assert intercepted([certificate("Fortinet")]) == (
        "; firewalls of Fortinet present such certificates when they read along"
    )
    assert intercepted([certificate("Let's Encrypt")]) == ""
    assert intercepted([]) == ""
