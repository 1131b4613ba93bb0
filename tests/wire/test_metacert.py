"""The meta certificate: making one, and finding one in a presented chain."""

from __future__ import annotations

import datetime
import hashlib

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import NameOID, SignatureAlgorithmOID

from pyderp.keys import NodePublic
from pyderp.wire.metacert import (
    common_name_untrusted,
    make_meta_certificate,
    scan_chain_untrusted,
)
from tests import vectors as v

NOW = datetime.datetime(2026, 11, 21, 23, 21, 24, tzinfo=datetime.UTC)
KEY = v.SERVER.public
HEX = v.SERVER_PUBLIC_HEX
CN = f"derpkey{HEX}"


def loaded(der: bytes) -> x509.Certificate:
    """Return a certificate as `cryptography` reads it."""
    return x509.load_der_x509_certificate(der)


def without_key_and_signature(der: bytes) -> bytes:
    """Return a meta certificate without the parts that always differ."""
    public = loaded(der).public_key()
    assert isinstance(public, Ed25519PublicKey)
    assert der.count(public.public_bytes_raw()) == 1
    return der.replace(public.public_bytes_raw(), bytes(32))[:-64]


def test_the_vector_is_unchanged() -> None:
    assert hashlib.sha256(v.META_CERTIFICATE).hexdigest() == v.META_CERTIFICATE_SHA256


def test_the_certificate_is_that_of_go_except_for_key_and_signature() -> None:
    der = make_meta_certificate(KEY, now=NOW)
    assert len(der) == len(v.META_CERTIFICATE) == 359
    assert without_key_and_signature(der) == without_key_and_signature(v.META_CERTIFICATE)


@pytest.mark.parametrize("der", [v.META_CERTIFICATE, make_meta_certificate(KEY, now=NOW)])
def test_the_certificate_has_the_fields_of_go(der: bytes) -> None:
    certificate = loaded(der)
    assert certificate.version is x509.Version.v3
    assert certificate.serial_number == 2
    assert certificate.not_valid_before_utc == NOW - datetime.timedelta(days=30)
    assert certificate.not_valid_after_utc == NOW + datetime.timedelta(days=30)
    assert certificate.signature_algorithm_oid == SignatureAlgorithmOID.ED25519
    [extension] = certificate.extensions
    assert extension.oid.dotted_string == "2.5.29.19"
    assert extension.critical
    assert extension.value == x509.BasicConstraints(ca=False, path_length=None)


@pytest.mark.parametrize("der", [v.META_CERTIFICATE, make_meta_certificate(KEY, now=NOW)])
def test_the_certificate_is_self_signed(der: bytes) -> None:
    certificate = loaded(der)
    public = certificate.public_key()
    assert isinstance(public, Ed25519PublicKey)
    public.verify(certificate.signature, certificate.tbs_certificate_bytes)


def test_the_name_of_the_certificate_has_the_relays_key() -> None:
    certificate = loaded(make_meta_certificate(KEY, now=NOW))
    with pytest.warns(UserWarning, match="length"):  # 71 characters are more than X.509 allows
        subject = certificate.subject
    with pytest.warns(UserWarning, match="length"):
        issuer = certificate.issuer
    assert subject == issuer
    [attribute] = subject
    assert (attribute.oid, attribute.value) == (NameOID.COMMON_NAME, CN)


def test_each_certificate_has_its_own_key() -> None:
    first, second = (loaded(make_meta_certificate(KEY, now=NOW)).public_key() for _ in range(2))
    assert first != second


def test_the_validity_is_in_utc() -> None:
    zone = datetime.timezone(datetime.timedelta(hours=-11))
    certificate = loaded(make_meta_certificate(KEY, now=NOW.astimezone(zone)))
    assert certificate.not_valid_before_utc == NOW - datetime.timedelta(days=30)


# The scan


def der(tag: int, *parts: bytes) -> bytes:
    """Return one DER element."""
    body = b"".join(parts)
    if len(body) < 0x80:
        return bytes((tag, len(body))) + body
    if len(body) < 0x100:
        return bytes((tag, 0x81, len(body))) + body
    return bytes((tag, 0x82)) + len(body).to_bytes(2, "big") + body


COMMON_NAME = bytes.fromhex("0603550403")
VERSION_3 = der(0xA0, der(0x02, b"\x02"))


def certificate(
    cn: str | None = CN,
    serial: bytes = b"\x02",
    *,
    version: bytes = VERSION_3,
    serial_tag: int = 0x02,
    subject_tag: int = 0x30,
    string_tag: int = 0x13,
    rest: int = 200,
) -> bytes:
    """Return the parts of a certificate that the scan reads, with a subject of one name or none."""
    name = b""
    if cn is not None:
        name = der(0x31, der(0x30, COMMON_NAME, der(string_tag, cn.encode())))
    body = der(
        0x30,
        version,
        der(serial_tag, serial),
        der(0x30, bytes.fromhex("06032b6570")),
        der(0x30, der(0x31, der(0x30, COMMON_NAME, der(0x0C, b"an issuer")))),
        der(0x30, der(0x17, b"200101000000Z"), der(0x17, b"200102000000Z")),  # long over
        der(subject_tag, name),
        der(0x30, bytes(rest)),
    )
    return der(0x30, body, bytes(80))


def leaf() -> bytes:
    """Return a real server certificate."""
    private = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "derp.example.com")])
    builder = x509.CertificateBuilder().subject_name(name).issuer_name(name)
    builder = builder.public_key(private.public_key()).serial_number(3)
    builder = builder.not_valid_before(NOW).not_valid_after(NOW + datetime.timedelta(days=1))
    return builder.sign(private, hashes.SHA256()).public_bytes(Encoding.DER)


def test_key_and_version_are_found_behind_the_leaf() -> None:
    assert scan_chain_untrusted([leaf(), v.META_CERTIFICATE]) == (KEY, 2)
    assert scan_chain_untrusted([leaf(), make_meta_certificate(v.K1, now=NOW)]) == (v.K1, 2)


def test_the_first_certificate_may_be_the_meta_certificate() -> None:
    assert scan_chain_untrusted([v.META_CERTIFICATE, leaf()]) == (KEY, 2)


def test_a_chain_may_have_no_meta_certificate() -> None:
    assert scan_chain_untrusted([]) is None
    assert scan_chain_untrusted([leaf(), leaf()]) is None


def test_the_first_meta_certificate_counts() -> None:
    first = certificate("derpkey" + v.K1_HEX)
    assert scan_chain_untrusted([leaf(), first, v.META_CERTIFICATE]) == (v.K1, 2)
    assert scan_chain_untrusted(iter([v.META_CERTIFICATE, first])) == (KEY, 2)


@pytest.mark.parametrize(
    ("der_", "found"),
    [
        (certificate(), (KEY, 2)),
        (certificate("derpkey" + HEX.upper()), (KEY, 2)),
        (certificate(serial=b"\x01"), (KEY, 1)),
        (certificate(serial=b"\x00\xff"), (KEY, 255)),
        (certificate(serial=b"\x00"), (KEY, 0)),
        (certificate("derpkey" + "0" * 64), (v.ZERO_KEY, 2)),
        (certificate(string_tag=0x0C), (KEY, 2)),  # UTF8String
        (certificate(version=b""), (KEY, 2)),  # version 1
        (certificate(rest=0), (KEY, 2)),  # so short that one byte tells the length
        (certificate(rest=60_000), (KEY, 2)),
    ],
)
def test_valid_meta_certificates_are_found(der_: bytes, found: tuple[NodePublic, int]) -> None:
    assert scan_chain_untrusted([der_]) == found


@pytest.mark.parametrize(
    "der_",
    [
        certificate(serial=b"\x01\x00"),  # 256
        certificate(serial=b"\xff"),  # -1
        certificate(serial=bytes(19) + b"\x01" + bytes(20)),
        certificate(f"derpkey{HEX[:62]}"),
        certificate(f"derpkey{HEX}0"),
        certificate(f"derpkey:{HEX}"),
        certificate(f"DERPKEY{HEX}"),
        certificate(f"xderpkey{HEX}"),
        certificate(f"derpkey{HEX[:63]}g"),
        certificate(f"derpkey{HEX[:62]}é"),
        certificate("derpkey"),
        certificate(""),
        certificate(None),
        certificate(serial_tag=0x04),
        certificate(subject_tag=0x31),
        b"",
        b"\x30",
        b"\x30\x80" + v.META_CERTIFICATE[4:],  # of indefinite length
        b"\x30\x85\0\0\0\x01\x63" + v.META_CERTIFICATE[4:],  # a length of five bytes
        b"\x31" + v.META_CERTIFICATE[1:],
        b"-----BEGIN CERTIFICATE-----",
        # what cannot be cut off: the scan ends with the subject
        *[v.META_CERTIFICATE[:size] for size in range(0, 359, 7)],
    ],
)
def test_other_certificates_are_skipped(der_: bytes) -> None:
    assert scan_chain_untrusted([der_]) is None
    following = certificate("derpkey" + v.K2_HEX)
    assert scan_chain_untrusted([der_, following]) == (v.K2, 2)


@pytest.mark.parametrize(
    ("der_", "name"),
    [
        (v.META_CERTIFICATE, CN),
        (leaf(), "derp.example.com"),
        (certificate("a name", serial=b"\x01\x00"), "a name"),
        (certificate(None), ""),
        (certificate("é"), ""),
        (certificate(serial_tag=0x04), ""),
        (v.META_CERTIFICATE[:200], ""),
        (b"", ""),
    ],
)
def test_the_common_name_is_read(der_: bytes, name: str) -> None:
    assert common_name_untrusted(der_) == name
