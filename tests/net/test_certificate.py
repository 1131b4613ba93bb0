"""Any bytes presented as a certificate raise only the documented errors."""

from __future__ import annotations

import contextlib
import datetime
import hashlib
import ssl

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import NameOID
from hypothesis import example, given
from hypothesis import strategies as st

from pyderp.errors import CertificateError
from pyderp.net.verify import Rule, describe, intercepted, interceptor, reading, self_signed_issuer

from .certificates import ROOT, certificate


def issued_by(issuer: str, email: str = "") -> bytes:
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


NAME = "derp.example.com"
NOW = datetime.datetime.now(datetime.UTC)
SEEDS = (
    ROOT.der,
    certificate(NAME, "192.0.2.1", common_name=NAME).der,
    issued_by("Fortinet", "support@fortinet.com"),
)


def with_version(number: int) -> bytes:
    return ROOT.der.replace(b"\xa0\x03\x02\x01\x02", b"\xa0\x03\x02\x01" + bytes((number,)), 1)


def with_bits_as_name() -> bytes:
    """The common name (UTF8String, 12) becomes a BIT STRING (3), in issuer and subject."""
    oid = b"\x06\x03\x55\x04\x03"
    assert ROOT.der.count(oid + b"\x0c") == 2
    return ROOT.der.replace(oid + b"\x0c", oid + b"\x03")


@st.composite
def mutated(draw: st.DrawFn) -> bytes:
    """A certificate with a few bytes changed, taken out or put in."""
    der = bytearray(draw(st.sampled_from(SEEDS)))
    for _ in range(draw(st.integers(1, 3))):
        at = draw(st.integers(0, len(der) - 1))
        put = draw(st.binary(max_size=2))
        der[at : at + draw(st.integers(0, 1))] = put
    return bytes(der)


@given(mutated() | st.binary(max_size=100))
@example(with_version(5))
@example(with_bits_as_name())
@example(b"")
def test_any_bytes_lead_only_to_certificate_errors(der: bytes) -> None:
    """Each function returns, or raises `CertificateError`."""
    interceptor(der)
    assert describe(der)
    self_signed_issuer(der)
    refused = ssl.SSLCertVerificationError(1, "certificate verify failed")
    refused.verify_message = "self-signed certificate"
    refused.verify_code = 18
    pin = hashlib.sha256(der).hexdigest()
    for rule in (
        Rule(server_name="other.example.com", other_name=NAME),
        Rule(server_name="other.example.com", other_name="192.0.2.1"),
        Rule(server_name=NAME, chain=False, pin=pin),
        Rule(server_name="192.0.2.1", chain=False, pin=pin),
    ):
        assert isinstance(rule.explain(refused, [der]), CertificateError)
        for chain in ([der], [der, der], [ROOT.der, der]):
            with contextlib.suppress(CertificateError):
                rule.check(chain, now=NOW)


@pytest.mark.parametrize("der", [b"", b"junk", with_version(5), with_bits_as_name()])
def test_bytes_that_are_no_certificate_are_a_certificate_error(der: bytes) -> None:
    """Also if a field is read only within the block."""
    with pytest.raises(CertificateError, match="cannot be read"), reading(der) as read:
        read.subject.rfc4514_string()


def test_a_certificate_can_be_read() -> None:
    with reading(ROOT.der) as read:
        assert read.version.name == "v3"


# Firewalls that intercept TLS are recognised by their certificates


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
def test_the_maker_of_an_interceptor_is_named(issuer: str, email: str, maker: str | None) -> None:
    """By the issuer, or by an address in the certificate."""
    assert interceptor(issued_by(issuer, email)) == maker


def test_bytes_that_are_no_certificate_have_no_maker() -> None:
    assert interceptor(b"junk") is None


def test_a_certificate_of_no_known_version_has_no_maker() -> None:
    """The version's `INTEGER 2` becomes 5, which no X.509 version has."""
    der = issued_by("Fortinet")
    assert interceptor(der) == "Fortinet"
    v3, v6 = bytes.fromhex("a003020102"), bytes.fromhex("a003020105")
    assert interceptor(der.replace(v3, v6, 1)) is None


def test_error_names_the_maker() -> None:
    assert intercepted([issued_by("Fortinet")]) == (
        "; firewalls of Fortinet present such certificates to intercept TLS"
    )
    assert intercepted([issued_by("Let's Encrypt")]) == ""
    assert intercepted([]) == ""
