"""A self-signed certificate for an IP address, as `derper` makes it."""

from __future__ import annotations

import datetime
import logging
import os
from pathlib import Path
from typing import Final

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from pyderp.addresses import IPAddress
from pyderp.certs.leaf import utc_now
from pyderp.errors import ConfigError
from pyderp.keyfile import make_private_folder, write_atomically

__all__ = ["make_self_signed", "pem_of_key"]

log = logging.getLogger("pyderp.tls")

_VALIDITY: Final = datetime.timedelta(days=365)


def pem_of_key(key: ec.EllipticCurvePrivateKey) -> bytes:
    """A key as `EC PRIVATE KEY`, the form that Go programs write."""
    return key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.TraditionalOpenSSL,
        serialization.NoEncryption(),
    )


def make_self_signed(address: IPAddress, certificate_file: Path, key_file: Path) -> None:
    """Make key and certificate of an address; what the files held is lost.

    Raises:
        ConfigError: they cannot be saved.
    """
    key = ec.generate_private_key(ec.SECP256R1())
    certificate = _certificate(address, key)
    try:
        make_private_folder(certificate_file.parent)
        write_atomically(key_file, pem_of_key(key), mode=0o600)
        pem = certificate.public_bytes(serialization.Encoding.PEM)
        write_atomically(certificate_file, pem, mode=0o644)
    except OSError as e:
        raise ConfigError(
            f"cannot save the self-signed certificate in {certificate_file.parent}: {e.strerror}"
        ) from e
    log.info("made a self-signed certificate for %s: %s", address, certificate_file)


def _certificate(address: IPAddress, key: ec.EllipticCurvePrivateKey) -> x509.Certificate:
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, str(address))])
    now = utc_now()
    usage = x509.KeyUsage(
        digital_signature=True,
        key_encipherment=True,
        content_commitment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=False,
        crl_sign=False,
        encipher_only=False,
        decipher_only=False,
    )
    return (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(int.from_bytes(os.urandom(16), "big") >> 1 or 1)
        .not_valid_before(now)
        .not_valid_after(now + _VALIDITY)
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(address)]), critical=False)
        .add_extension(usage, critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
