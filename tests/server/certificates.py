"""Certificates as an operator may put them into `--certdir`, good ones and bad ones."""

from __future__ import annotations

import ipaddress
import ssl
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID


def _general_name(name: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(name))
    except ValueError:
        return x509.DNSName(name)


def write_pair(
    directory: Path,
    hostname: str,
    *,
    names: list[str] | None = None,
    password: str = "",
    days: int = 60,
) -> bytes:
    """Write `HOSTNAME.crt` and `HOSTNAME.key`; return the certificate as DER.

    Args:
        names: subject alternative names, none at all if empty; by default the host name.
        password: encrypts the key.
        days: days until it expires; negative: days since it expired.
    """
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, hostname)])
    now = datetime.now(UTC)
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(days=90))
        .not_valid_after(now + timedelta(days=days))
    )
    wanted = [hostname] if names is None else names
    if wanted:
        san = x509.SubjectAlternativeName([_general_name(name) for name in wanted])
        builder = builder.add_extension(san, critical=False)
    certificate = builder.sign(key, hashes.SHA256())
    (directory / f"{hostname}.crt").write_bytes(
        certificate.public_bytes(serialization.Encoding.PEM)
    )
    encryption = (
        serialization.BestAvailableEncryption(password.encode())
        if password
        else serialization.NoEncryption()
    )
    (directory / f"{hostname}.key").write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, encryption)
    )
    return certificate.public_bytes(serialization.Encoding.DER)


def trusting_nobody() -> ssl.SSLContext:
    """Return a client's context that accepts any certificate."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context
