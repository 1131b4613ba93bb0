"""Certificates from a directory, or made for an IP address; read again on change."""

from __future__ import annotations

import hashlib
import logging
import re
import ssl
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Final

from cryptography.hazmat.primitives import serialization

from pyderp.addresses import parse_ip
from pyderp.certs.context import REFUSE_NAME, OnName, meta_certificate, server_context
from pyderp.certs.leaf import check_host_name, day, info_of, parse_leaf, utc_now, valid_for
from pyderp.certs.selfsigned import make_self_signed
from pyderp.certs.source import CertificateInfo
from pyderp.errors import ConfigError
from pyderp.keyfile import FileStamp, file_stamp
from pyderp.keys import NodePublic

__all__ = ["ManualCertificates", "certificate_paths"]

log = logging.getLogger("pyderp.tls")

_NAME_CHARACTERS: Final = re.compile(r"[^A-Za-z0-9.-]")


def certificate_paths(certdir: Path, hostname: str) -> tuple[Path, Path]:
    """Where the certificate chain and the key of a host are kept: `HOST.crt` and `HOST.key`."""
    name = _NAME_CHARACTERS.sub("", hostname)
    return certdir / f"{name}.crt", certdir / f"{name}.key"


@dataclass(frozen=True, slots=True)
class _Loaded:
    context: ssl.SSLContext
    info: CertificateInfo
    digest: str


class ManualCertificates:
    """The certificate of one host name or IP address, from files (a `CertificateSource`).

    A DNS name is served to clients that ask for exactly it by SNI; the certificate of an IP
    address is served to all, and made here if a file is missing. When `reload` finds changed
    files, new connections get the new certificate; handshakes that have begun keep the old.
    One that is not valid today does not replace one that is; if there is no other, it is served.

    Args:
        certdir: directory of the two files.
        hostname: name or IP address that the certificate must be valid for.
        server: the relay's key, for the meta certificate.

    Raises:
        ConfigError: a file is missing, unreadable, or not valid for `hostname`.
    """

    challenge_pending = False

    def __init__(self, certdir: Path, hostname: str, server: NodePublic) -> None:
        check_host_name(hostname)
        self.hostname = hostname
        self.certificate_file, self.key_file = certificate_paths(certdir, hostname)
        self._address = parse_ip(hostname)
        self._meta = meta_certificate(server)
        if self._address is not None and not _both_exist(self.certificate_file, self.key_file):
            make_self_signed(self._address, self.certificate_file, self.key_file)
        self._stamps_read = self._stamps()
        self._valid_from: datetime | None = None
        """Of a pair that is not valid yet, and not in use."""
        self._use(self._load())

    def context(self, local_address: str) -> ssl.SSLContext:
        """The same for all, until the files change."""
        return self._loaded.context

    def challenge_context(self, hello: memoryview) -> ssl.SSLContext | None:
        """Nobody challenges a certificate that is there."""
        return None

    def http_challenge(self, path: str) -> bytes | None:
        """Nobody challenges a certificate that is there."""
        return None

    def certificates(self) -> list[CertificateInfo]:
        """The one certificate."""
        return [self._loaded.info]

    def map_node(self) -> dict[str, object] | None:
        """For an IP address, it and the certificate's pin (`derper` logs the same)."""
        if self._address is None:
            return None
        return {"HostName": self.hostname, "CertName": f"sha256-raw:{self._loaded.digest}"}

    async def start(self) -> None:
        """There is nothing to begin."""

    async def aclose(self) -> None:
        """There is nothing to end."""

    def reload(self, *, force: bool = False) -> bool:
        """Read the files again if they changed; gives whether a new certificate is in use.

        A pair that cannot be used is logged and the old one stays.

        Args:
            force: read them even if they look unchanged.
        """
        stamps = self._stamps()
        due = self._valid_from is not None and self._valid_from <= utc_now()
        if stamps == self._stamps_read and not (force or due):
            return False
        # Remembered also if it cannot be used: a pair that is half-written changes again.
        self._stamps_read, self._valid_from = stamps, None
        try:
            found = self._load()
            self._check_better(found.info)
        except ConfigError as e:
            log.error("certificate not reloaded, the old one stays in use: %s", e)
            return False
        self._use(found)
        log.info("certificate of %s reloaded from %s", self.hostname, self.certificate_file)
        return True

    def _check_better(self, new: CertificateInfo) -> None:
        """Refuse a certificate that clients refuse, while they accept the one in use."""
        now = utc_now()
        old = self._loaded.info
        if _valid(new, now) or not _valid(old, now):
            return
        if new.not_before > now:
            self._valid_from = new.not_before
        raise ConfigError(
            f"the one in {self.certificate_file} {_dates(new, now)}, the old one is good until "
            f"{day(old.not_after)}"
        )

    def _use(self, found: _Loaded) -> None:
        now = utc_now()
        if not _valid(found.info, now):
            log.error(
                "the certificate in %s %s: it is served all the same, and clients refuse it; "
                "replace it",
                self.certificate_file,
                _dates(found.info, now),
            )
        self._loaded = found

    def _stamps(self) -> tuple[FileStamp | None, ...]:
        return file_stamp(self.certificate_file), file_stamp(self.key_file)

    def _load(self) -> _Loaded:
        chain = _read(self.certificate_file, "certificate")
        leaf = parse_leaf(chain, self.certificate_file)
        info = info_of(leaf)
        if not valid_for(leaf, self.hostname):
            raise ConfigError(
                f"certificate {self.certificate_file} is not valid for {self.hostname!r}: "
                f"it names {', '.join(info.names) or 'no host at all'}"
            )
        where = f"certificate {self.certificate_file} with key {self.key_file}"
        key = _read(self.key_file, "key")
        context = server_context(chain, key, self._meta, where=where)
        if self._address is None:
            # The callback keeps the name, not this object: a context lives as long as its
            # connections, and an old one should not keep its successor alive.
            context.sni_callback = _only(self.hostname)
        der = leaf.public_bytes(serialization.Encoding.DER)
        return _Loaded(context, info, hashlib.sha256(der).hexdigest())


def _valid(info: CertificateInfo, now: datetime) -> bool:
    return info.not_before <= now < info.not_after


def _dates(info: CertificateInfo, now: datetime) -> str:
    if info.not_before > now:
        return f"is valid from {day(info.not_before)} only"
    return f"has expired on {day(info.not_after)}"


def _only(hostname: str) -> OnName:
    def check(_: ssl.SSLObject, name: str | None, __: ssl.SSLContext) -> int | None:
        return None if name == hostname else REFUSE_NAME

    return check


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
