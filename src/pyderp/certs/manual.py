"""Certificates from files, or self-signed for an IP address; read again when the files change."""

from __future__ import annotations

import hashlib
import logging
import os
import re
from datetime import datetime, timedelta
from pathlib import Path
from typing import Final

from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.x509.oid import ExtendedKeyUsageOID

from pyderp.addresses import IPAddress, bare_name, check_host_name, parse_ip
from pyderp.certs.context import check_credential
from pyderp.certs.credential import (
    CertificateInfo,
    CertificateSource,
    CertificateState,
    Credential,
    day,
    utc_now,
)
from pyderp.certs.leaf import info_of, parse_chain, parse_leaf, self_signed, valid_for
from pyderp.config import ManualTLS
from pyderp.errors import ConfigError
from pyderp.maps.region import PIN_PREFIX
from pyderp.secretfiles import FileStamp, file_stamp, make_private_folder, write_atomically

__all__ = ["ManualCertificates", "certificate_paths", "manual_paths"]

log = logging.getLogger("pyderp.tls")

_VALIDITY: Final = timedelta(days=365)
"""The lifetime of a self-signed certificate."""
_NAME_CHARACTERS: Final = re.compile(r"[^A-Za-z0-9.-]")


def certificate_paths(certdir: Path, hostname: str) -> tuple[Path, Path]:
    """Return the paths of a host's certificate chain and key: `HOST.crt` and `HOST.key`.

    `HOST` is the name as the operator wrote it or, if there is no such file, the name in lower
    case and without a dot at its end.
    """
    # Other characters are removed, as in derper: a name must not lead out of the directory.
    pairs = [
        (certdir / f"{name}.crt", certdir / f"{name}.key")
        for name in (_NAME_CHARACTERS.sub("", each) for each in (hostname, bare_name(hostname)))
    ]
    return pairs[0] if os.path.exists(pairs[0][0]) else pairs[1]


def manual_paths(tls: ManualTLS) -> tuple[Path, Path]:
    """Return the paths of certificate chain and key that the settings name."""
    if tls.cert_file is not None and tls.cert_key_file is not None:
        return tls.cert_file, tls.cert_key_file
    return certificate_paths(tls.certdir, tls.hostname)


class ManualCertificates(CertificateSource):
    """The certificate of one host name or IP address, from files.

    The certificate of a DNS name is presented to clients whose SNI is that name, in upper or lower
    case. The certificate of an IP address is presented to all clients; if one of its files is
    missing, a self-signed one is made. After `reload` found changed files, new handshakes get the
    new certificate.

    A certificate that is not valid today does not replace one that is. At the start it is used
    even so, as there is no other.

    Args:
        certdir: directory of the two files.
        hostname: name or IP address that the certificate must be valid for.
        files: certificate chain and key, in place of those in `certdir`; none is made then.
        any_server_name: present the certificate of a DNS name to all clients too.

    Raises:
        ConfigError: a file is missing, unreadable, or not valid for `hostname`.
    """

    challenge_pending = False

    def __init__(
        self,
        certdir: Path,
        hostname: str,
        *,
        files: tuple[Path, Path] | None = None,
        any_server_name: bool = False,
    ) -> None:
        check_host_name(bare_name(hostname))
        self.hostname = bare_name(hostname)
        self.certificate_file, self.key_file = files or certificate_paths(certdir, hostname)
        self._address = parse_ip(hostname)
        # Clients that connect to an IP address send no server name (RFC 6066 section 3).
        self._to_all = any_server_name or self._address is not None
        # Files that the settings name are never made: the operator must learn that one is missing.
        there = files is not None or _both_exist(self.certificate_file, self.key_file)
        if self._address is not None and not there:
            _make_self_signed(self._address, self.certificate_file, self.key_file)
        self._stamps_read = self._stamps()
        self._valid_from: datetime | None = None
        """When the certificate in the files becomes valid, if it is not used because of that."""
        self._failures = 0
        self._error = ""
        """Why the files are not used; empty if they are."""
        self._credential = self._load()

    async def start(self) -> None:
        """Log an error if the certificate is not valid today."""
        # Not logged when it is read: `--check` reads it too, and prints a message of its own.
        self._log_if_invalid()

    def credential(self, local_address: str, server_name: str | None) -> Credential | None:
        """Return the certificate, for a DNS name only if the client's SNI is that name."""
        if not self._to_all and bare_name(server_name or "") != self.hostname:
            return None
        return self._credential

    def certificates(self) -> list[CertificateInfo]:
        """Return the names and dates of the one certificate."""
        return [self._credential.info]

    def states(self) -> list[CertificateState]:
        """Return the state of the one certificate."""
        info = self._credential.info
        return [CertificateState(self.hostname, info, self._failures, None, self._error)]

    @property
    def cert_name(self) -> str:
        """The certificate's pin for an IP address (`derper` logs the same); empty for a name."""
        if self._address is None:
            return ""
        leaf = parse_leaf(self._credential.chain, self.certificate_file)
        digest = hashlib.sha256(leaf.public_bytes(serialization.Encoding.DER)).hexdigest()
        return f"{PIN_PREFIX}{digest}"

    def reload(self, *, force: bool = False) -> bool:
        """Read the files again if they changed. Returns whether a new certificate is in use.

        If the files cannot be used, that is logged and the old certificate stays in use.

        Args:
            force: read them even if they look unchanged.
        """
        # Before the files are read: if they change meanwhile, the next call reads them again.
        stamps = self._stamps()
        # Files that were not valid yet are read again once they are, without a change.
        due = self._valid_from is not None and self._valid_from <= utc_now()
        if stamps == self._stamps_read and not (force or due):
            return False
        # Noted also if the files cannot be used, so that the error is logged once. Files that are
        # half written now will change again.
        self._stamps_read, self._valid_from = stamps, None
        try:
            found = self._load()
            if not force and (found.chain, found.key) == self._content:
                return False  # written again with the same content
            self._check_better(found.info)
        except ConfigError as e:
            self._failures += 1
            self._error = str(e)
            log.error("certificate not reloaded, the old one stays in use: %s", e)
            return False
        self._failures, self._error = 0, ""
        self._credential = found
        self._log_if_invalid()
        log.info("certificate of %s reloaded from %s", self.hostname, self.certificate_file)
        return True

    def _check_better(self, new: CertificateInfo) -> None:
        """Refuse a certificate that is not valid today, while the one in use is."""
        now = utc_now()
        old = self._credential.info
        if new.is_valid(now) or not old.is_valid(now):
            return
        if new.not_before > now:
            self._valid_from = new.not_before  # `reload` uses it then, without another change
        raise ConfigError(
            f"the one in {self.certificate_file} {_dates(new, now)}, the old one is valid until "
            f"{day(old.not_after)}"
        )

    def _log_if_invalid(self) -> None:
        now = utc_now()
        info = self._credential.info
        if not info.is_valid(now):
            log.error(
                "the certificate in %s %s: it is served all the same, and clients refuse it; "
                "replace it",
                self.certificate_file,
                _dates(info, now),
            )

    @property
    def _content(self) -> tuple[bytes, bytes]:
        return self._credential.chain, self._credential.key

    def _stamps(self) -> tuple[FileStamp | None, ...]:
        return file_stamp(self.certificate_file), file_stamp(self.key_file)

    def _load(self) -> Credential:
        chain = _read(self.certificate_file, "certificate")
        leaf = parse_leaf(chain, self.certificate_file)
        info = info_of(leaf)
        if not valid_for(leaf, self.hostname):
            why = f"it names {', '.join(info.names) or 'no host at all'}"
            # A common mistake: the files were joined in the wrong order.
            if any(valid_for(each, self.hostname) for each in parse_chain(chain)[1:]):
                why = (
                    "the first in the file must be that of the host, and it is a later one; put "
                    "it first, then its issuer's"
                )
            raise ConfigError(
                f"certificate {self.certificate_file} is not valid for {self.hostname!r}: {why}"
            )
        found = Credential(chain, _read(self.key_file, "key"), info)
        check_credential(found, f"certificate {self.certificate_file} with key {self.key_file}")
        return found


def _dates(info: CertificateInfo, now: datetime) -> str:
    if info.not_before > now:
        return f"is valid from {day(info.not_before)} only"
    return f"has expired on {day(info.not_after)}"


def _read(path: Path, what: str) -> bytes:
    try:
        return path.read_bytes()
    except OSError as e:
        raise ConfigError(f"cannot read {what} {path}: {e.strerror}") from e


def _both_exist(*paths: Path) -> bool:
    try:
        return all(path.exists() for path in paths)
    except OSError as e:
        raise ConfigError(f"cannot look into {paths[0].parent}: {e.strerror}") from e


def _make_self_signed(address: IPAddress, certificate_file: Path, key_file: Path) -> None:
    """Make a key and a certificate for an address, and overwrite both files.

    Raises:
        ConfigError: they cannot be saved.
    """
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
    now = utc_now()
    made = self_signed(
        str(address),
        x509.IPAddress(address),
        (now, now + _VALIDITY),
        [
            (usage, True),
            (x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), False),
            (x509.BasicConstraints(ca=False, path_length=None), True),
        ],
    )
    try:
        make_private_folder(certificate_file.parent)
        write_atomically(key_file, made.key, mode=0o600)
        write_atomically(certificate_file, made.chain, mode=0o644)
    except OSError as e:
        raise ConfigError(
            f"cannot save the self-signed certificate in {certificate_file.parent}: {e.strerror}"
        ) from e
    log.info("made a self-signed certificate for %s: %s", address, certificate_file)
