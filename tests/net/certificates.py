"""An authority for tests, and certificates that a server may present."""

from __future__ import annotations

import ipaddress
import ssl
import tempfile
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
)
from cryptography.x509.oid import NameOID

from pyderp.keys import NodePrivate
from pyderp.wire.metacert import make_meta_certificate

RELAY = NodePrivate.generate().public
META = make_meta_certificate(RELAY, now=datetime.now(UTC))


@dataclass(frozen=True)
class Identity:
    """A certificate with its key, and the certificates presented after it."""

    der: bytes
    key: ec.EllipticCurvePrivateKey
    rest: tuple[bytes, ...] = ()

    def pem(self) -> bytes:
        return to_pem(self.der)

    def key_pem(self) -> bytes:
        return self.key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())

    def followed_by(self, *rest: bytes) -> Identity:
        return Identity(self.der, self.key, rest)

    def server(self, version: ssl.TLSVersion | None = None) -> ssl.SSLContext:
        """A server's context; by default for TLS 1.2 and 1.3."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        if version is not None:
            context.minimum_version = context.maximum_version = version
        with tempfile.TemporaryDirectory() as directory:
            path = Path(directory) / "server.pem"
            path.write_bytes(self.key_pem() + b"".join(map(to_pem, (self.der, *self.rest))))
            context.load_cert_chain(path)
        return context


def to_pem(der: bytes) -> bytes:
    return ssl.DER_cert_to_PEM_cert(der).encode()


def certificate(
    *names: str,
    common_name: str = "",
    issuer: Identity | None = None,
    since: int = -1,
    until: int = 30,
    authority: bool = False,
    key: ec.EllipticCurvePrivateKey | None = None,
) -> Identity:
    """Make a certificate.

    Args:
        names: subject alternative names; none: without that extension.
        issuer: the authority that signs it; by default it signs itself.
        since: the day from which it is valid, counted from today.
        until: the day on which it expires.
        authority: whether it may sign others.
    """
    key = key or ec.generate_private_key(ec.SECP256R1())
    subject = _name(common_name or (names[0] if names else "nameless"))
    now = datetime.now(UTC)
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(x509.load_der_x509_certificate(issuer.der).subject if issuer else subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now + timedelta(days=since))
        .not_valid_after(now + timedelta(days=until))
        .add_extension(x509.BasicConstraints(ca=authority, path_length=None), critical=True)
    )
    if names:
        san = x509.SubjectAlternativeName([_general_name(name) for name in names])
        builder = builder.add_extension(san, critical=False)
    signed = builder.sign(issuer.key if issuer else key, hashes.SHA256())
    return Identity(signed.public_bytes(Encoding.DER), key)


def _name(common_name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common_name)])


def _general_name(name: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(name))
    except ValueError:
        return x509.DNSName(name)


ROOT = certificate(common_name="A root for tests", authority=True)
