"""Certificates of a relay: from a directory, or made for an IP address; read again on change."""

from __future__ import annotations

import contextlib
import datetime
import errno
import hashlib
import ipaddress
import json
import logging
import os
import re
import ssl
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Final

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from pyderp.defaults import HTTPS_PORT
from pyderp.errors import ConfigError
from pyderp.keyfile import write_atomically
from pyderp.keys import NodePublic
from pyderp.wire.metacert import make_meta_certificate

__all__ = ["ManualCertificates", "certificate_paths"]

log = logging.getLogger("pyderp.tls")

_SELF_SIGNED_VALIDITY: Final = datetime.timedelta(days=365)
_EXPIRES_SOON: Final = datetime.timedelta(days=7)
_HOST_NAME: Final = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,252}")
_NAME_CHARACTERS: Final = re.compile(r"[^A-Za-z0-9.-]")


def certificate_paths(certdir: Path, hostname: str) -> tuple[Path, Path]:
    """Where the certificate chain and the key of a host are kept: `HOST.crt` and `HOST.key`."""
    name = _NAME_CHARACTERS.sub("", hostname)
    return certdir / f"{name}.crt", certdir / f"{name}.key"


class ManualCertificates:
    """The certificate of one host name or IP address, from files, as a server-side TLS context.

    A DNS name is served to clients that ask for exactly it by SNI; the certificate of an IP
    address is served to all, and made here if a file is missing. The meta certificate is the
    last of the chain. `context` is replaced when `reload` finds changed files; handshakes
    that have begun keep the old one.

    Args:
        certdir: directory of the two files.
        hostname: name or IP address that the certificate must be valid for.
        server: the relay's key, for the meta certificate.

    Raises:
        ConfigError: a file is missing, unreadable, or not valid for `hostname`.
    """

    def __init__(self, certdir: Path, hostname: str, server: NodePublic) -> None:
        self.hostname = hostname
        self.certificate_file, self.key_file = certificate_paths(certdir, hostname)
        self._address = _as_address(hostname)
        self._meta = ssl.DER_cert_to_PEM_cert(make_meta_certificate(server, now=_now()))
        if self._address is None and not _HOST_NAME.fullmatch(hostname):
            raise ConfigError(f"{hostname!r} is neither a host name nor an IP address")
        if self._address is not None and not _both_exist(self.certificate_file, self.key_file):
            _make_self_signed(self._address, self.certificate_file, self.key_file)
        self._stamp = self._stat()
        self.context = self._load()

    def map_node(self, port: int) -> str | None:
        """For an IP address, the node for a DERP map, as JSON with the certificate's pin.

        Args:
            port: where the relay listens; told unless it is 443.
        """
        if self._address is None:
            return None
        leaf = _leaf(self.certificate_file)
        digest = hashlib.sha256(leaf.public_bytes(serialization.Encoding.DER)).hexdigest()
        node: dict[str, object] = {
            "Name": "custom",
            "RegionID": 900,
            "HostName": self.hostname,
            "CertName": f"sha256-raw:{digest}",
        }
        if port != HTTPS_PORT:
            node["DERPPort"] = port
        node["STUNPort"] = -1  # there is no STUN server here yet
        return json.dumps(node, separators=(",", ":"))

    def reload(self, *, force: bool = False) -> bool:
        """Read the files again if they changed; gives whether a new certificate is in use.

        A pair that cannot be used is logged and the old one stays.

        Args:
            force: read them even if they look unchanged.
        """
        stamp = self._stat()
        if stamp == self._stamp and not force:
            return False
        try:
            context = self._load()
        except ConfigError as e:
            # Not remembered when the pair may be half-written: the next look tries again.
            if stamp != self._stamp or force:
                log.error("certificate not reloaded, the old one stays in use: %s", e)
            self._stamp = stamp
            return False
        self._stamp = stamp
        self.context = context
        log.info("certificate of %s reloaded from %s", self.hostname, self.certificate_file)
        return True

    def _stat(self) -> tuple[tuple[int, int, int], ...]:
        stamps = []
        for path in (self.certificate_file, self.key_file):
            with contextlib.suppress(OSError):
                status = path.stat()
                stamps.append((status.st_mtime_ns, status.st_size, status.st_ino))
        return tuple(stamps)

    def _load(self) -> ssl.SSLContext:
        leaf = _leaf(self.certificate_file)
        if not _valid_for(leaf, self.hostname, self._address):
            raise ConfigError(
                f"certificate {self.certificate_file} is not valid for {self.hostname!r}: "
                f"it names {', '.join(_names(leaf)) or 'no host at all'}"
            )
        left = leaf.not_valid_after_utc - _now()
        if left < _EXPIRES_SOON:
            log.warning(
                "certificate %s %s %s: clients that check will refuse it",
                self.certificate_file,
                "expires on" if left > datetime.timedelta() else "expired on",
                leaf.not_valid_after_utc.date(),
            )
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        context.options |= ssl.OP_NO_RENEGOTIATION | ssl.OP_NO_TICKET
        # The client knows which cipher its hardware does fast: AES-128 for most.
        context.options &= ~ssl.OP_CIPHER_SERVER_PREFERENCE
        context.set_alpn_protocols(["http/1.1"])
        # DERP clients keep no sessions, and a ticket costs a write and its encryption.
        context.num_tickets = 0
        try:
            _load_chain(context, self.certificate_file, self.key_file, self._meta)
        except (ssl.SSLError, OSError) as e:
            raise ConfigError(
                f"cannot use certificate {self.certificate_file} with key {self.key_file}: "
                f"{_explain(e)}"
            ) from e
        if self._address is None:
            # The callback keeps the name, not this object: a context lives as long as its
            # connections, and an old one should not keep its successor alive.
            context.sni_callback = _only(self.hostname)
        return context


def _only(hostname: str) -> Callable[[ssl.SSLObject, str | None, ssl.SSLContext], int | None]:
    def check(_: ssl.SSLObject, name: str | None, __: ssl.SSLContext) -> int | None:
        return None if name == hostname else ssl.ALERT_DESCRIPTION_INTERNAL_ERROR

    return check


def _load_chain(context: ssl.SSLContext, certificate_file: Path, key_file: Path, meta: str) -> None:
    # The ssl module takes a chain only from a file, and the meta certificate is in none.
    # Text around a certificate may have any encoding, so bytes stay bytes.
    chain = certificate_file.read_bytes().rstrip() + b"\n" + meta.encode("ascii")
    with tempfile.NamedTemporaryFile("wb", suffix=".pem") as combined:
        combined.write(chain)
        combined.flush()
        context.load_cert_chain(combined.name, key_file, password=_no_password)


def _no_password() -> str:
    raise OSError(errno.EACCES, "the key is encrypted; give one without a password")


def _explain(error: OSError) -> str:
    reason = getattr(error, "reason", None)
    if reason == "KEY_VALUES_MISMATCH":
        return "the key does not belong to the certificate"
    if isinstance(error, ssl.SSLError) and reason is None:
        return "the key is no private key in PEM form, or not a whole one"
    return str(reason or error.strerror or error)


def _both_exist(*paths: Path) -> bool:
    try:
        return all(path.exists() for path in paths)
    except OSError as e:
        raise ConfigError(f"cannot look into {paths[0].parent}: {e.strerror}") from e


def _leaf(path: Path) -> x509.Certificate:
    try:
        return x509.load_pem_x509_certificates(path.read_bytes())[0]
    except OSError as e:
        raise ConfigError(f"cannot read certificate {path}: {e.strerror}") from e
    except (ValueError, IndexError) as e:
        raise ConfigError(f"{path} holds no certificate in PEM form") from e


def _names(leaf: x509.Certificate) -> list[str]:
    try:
        san = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except (x509.ExtensionNotFound, ValueError):
        return []
    return [
        *san.get_values_for_type(x509.DNSName),
        *(str(address) for address in san.get_values_for_type(x509.IPAddress)),
    ]


def _valid_for(
    leaf: x509.Certificate,
    hostname: str,
    address: ipaddress.IPv4Address | ipaddress.IPv6Address | None,
) -> bool:
    # Subject alternative names only, as every TLS client today; expiry is not looked at.
    names = _names(leaf)
    if address is not None:
        return str(address) in names
    wanted = hostname.lower().rstrip(".")
    parent = wanted.partition(".")[2]
    for name in names:
        pattern = name.lower()
        if pattern == wanted or (parent and pattern == f"*.{parent}"):
            return True
    return False


def _as_address(hostname: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        return ipaddress.ip_address(hostname)
    except ValueError:
        return None


def _now() -> datetime.datetime:
    return datetime.datetime.now(datetime.UTC)


def _make_self_signed(
    address: ipaddress.IPv4Address | ipaddress.IPv6Address, certificate_file: Path, key_file: Path
) -> None:
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, str(address))])
    now = _now()
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
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(int.from_bytes(os.urandom(16), "big") >> 1 or 1)
        .not_valid_before(now)
        .not_valid_after(now + _SELF_SIGNED_VALIDITY)
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(address)]), critical=False)
        .add_extension(usage, critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    pem_key = key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.TraditionalOpenSSL,
        serialization.NoEncryption(),
    )
    try:
        certificate_file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        write_atomically(key_file, pem_key, mode=0o600)
        pem = certificate.public_bytes(serialization.Encoding.PEM)
        write_atomically(certificate_file, pem, mode=0o644)
    except OSError as e:
        raise ConfigError(
            f"cannot save the self-signed certificate in {certificate_file.parent}: {e.strerror}"
        ) from e
    log.info("made a self-signed certificate for %s: %s", address, certificate_file)
