"""Certificates, and a client of the ssl module that talks to a session."""

from __future__ import annotations

import datetime
import ipaddress
import ssl
from dataclasses import dataclass
from pathlib import Path

import pyderp_fast
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.kdf.hkdf import HKDFExpand

PrivateKey = ec.EllipticCurvePrivateKey | ed25519.Ed25519PrivateKey | rsa.RSAPrivateKey


@dataclass
class Credential:
    chain: bytes
    key: bytes


def make_credential(private: PrivateKey) -> Credential:
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "derp.test")])
    now = datetime.datetime.now(datetime.UTC)
    names = [x509.DNSName("derp.test"), x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(private.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=30))
        .add_extension(x509.SubjectAlternativeName(names), critical=False)
        .sign(private, None if isinstance(private, ed25519.Ed25519PrivateKey) else hashes.SHA256())
    )
    return Credential(
        certificate.public_bytes(serialization.Encoding.PEM),
        private.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        ),
    )


class Client:
    """A TLS client of the ssl module."""

    def __init__(
        self,
        version: ssl.TLSVersion = ssl.TLSVersion.TLSv1_3,
        protocols: tuple[str, ...] = (),
        ciphers: str = "",
    ) -> None:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
        context.minimum_version = context.maximum_version = version
        if protocols:
            context.set_alpn_protocols(protocols)
        if ciphers:
            context.set_ciphers(ciphers)
        self.incoming = ssl.MemoryBIO()
        self.outgoing = ssl.MemoryBIO()
        self.tls = context.wrap_bio(self.incoming, self.outgoing, server_hostname="derp.test")
        self.done = False

    def handshake(self, data: bytes = b"") -> bytes:
        """Go on with the handshake; return the bytes to send."""
        self.incoming.write(data)
        try:
            self.tls.do_handshake()
            self.done = True
        except ssl.SSLWantReadError:
            pass
        return self.outgoing.read()

    def seal(self, data: bytes) -> bytes:
        """Encrypt, in records of at most 16 KiB."""
        view = memoryview(data)
        while view:
            view = view[self.tls.write(view) :]
        return self.outgoing.read()

    def open(self, data: bytes) -> bytes:
        """Decrypt all complete records."""
        self.incoming.write(data)
        plain = []
        try:
            while some := self.tls.read(65536):
                plain.append(some)
        except ssl.SSLWantReadError:
            pass
        return b"".join(plain)

    def chain(self) -> list[bytes]:
        """Return the certificates that the server presented, DER."""
        inner = self.tls._sslobj  # type: ignore[attr-defined]
        return [
            certificate
            if isinstance(certificate, bytes)
            else ssl.PEM_cert_to_DER_cert(certificate.public_bytes())
            for certificate in inner.get_unverified_chain()
        ]


class OddClient:
    """Makes authentic records of TLS 1.3 that no real client sends.

    Args:
        keylog: the file with the secrets of a connection, whose client has sent no record yet.
    """

    def __init__(self, keylog: Path) -> None:
        secrets = dict(line.split()[::2] for line in keylog.read_text().splitlines())
        secret = bytes.fromhex(secrets["CLIENT_TRAFFIC_SECRET_0"])
        self._aead = AESGCM(_expand(secret, b"key", 32))
        self._iv = int.from_bytes(_expand(secret, b"iv", 12), "big")
        self._sequence = 0

    def record(self, contents: bytes, kind: int = 23, padding: int = 0) -> bytes:
        """Return the next record."""
        inner = contents + bytes([kind]) + bytes(padding)
        header = b"\x17\3\3" + (len(inner) + 16).to_bytes(2, "big")
        nonce = (self._iv ^ self._sequence).to_bytes(12, "big")
        self._sequence += 1
        return header + self._aead.encrypt(nonce, inner, header)


def _expand(secret: bytes, label: bytes, length: int) -> bytes:
    """Return HKDF-Expand-Label (RFC 8446 §7.1) of a suite with SHA-384."""
    label = b"tls13 " + label
    info = length.to_bytes(2, "big") + bytes([len(label)]) + label + b"\0"
    return HKDFExpand(hashes.SHA384(), length, info).derive(secret)


class Pair:
    """A client and a session after their handshake."""

    def __init__(self, config: pyderp_fast.TlsConfig, client: Client, *, alpn: bool = True) -> None:
        self.client = client
        self.session = pyderp_fast.Tls(config, alpn=alpn)
        self.room = memoryview(bytearray(400 * 1024))
        data = client.handshake()
        for _ in range(4):
            assert not self.feed(data)
            assert not self.session.failure
            data = client.handshake(self.session.output())
        assert client.done

    def feed(self, data: bytes) -> bytes:
        filled = self.session.feed(memoryview(bytearray(data)), self.room)
        return bytes(self.room[:filled])
