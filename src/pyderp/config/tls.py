"""Settings of a relay's certificate: from files, or from an authority by ACME."""

from __future__ import annotations

from dataclasses import dataclass, fields
from pathlib import Path
from typing import Final, TypeAlias

from pyderp.addresses import normal_name, parse_ip
from pyderp.config.rules import check_port, check_setting, check_type
from pyderp.errors import ConfigError

__all__ = ["ACMETLS", "GOOGLE", "LETSENCRYPT", "LETSENCRYPT_STAGING", "PUBLIC", "ManualTLS"]
__all__ += ["TLSSettings"]

LETSENCRYPT: Final = "https://acme-v02.api.letsencrypt.org/directory"
LETSENCRYPT_STAGING: Final = "https://acme-staging-v02.api.letsencrypt.org/directory"
GOOGLE: Final = "https://dv.acme-v02.api.pki.goog/directory"
PUBLIC: Final = frozenset({LETSENCRYPT, LETSENCRYPT_STAGING, GOOGLE})
"""Authorities that issue certificates only for public DNS names and IP addresses."""


@dataclass(frozen=True, kw_only=True)
class ManualTLS:
    """A certificate from files (`derper -certmode=manual`)."""

    certdir: Path
    """Directory of `HOSTNAME.crt` and `HOSTNAME.key`, PEM."""

    hostname: str
    """Name or IP address of the certificate. For an address, a self-signed certificate is made if
    a file is missing."""

    http_port: int | None = None
    """Port for plain HTTP beside TLS, on the same address, that redirects; `None`: none."""

    cert_file: Path | None = None
    """The certificate chain, PEM, in place of the one in `certdir`. It must exist."""

    cert_key_file: Path | None = None
    """The private key of `cert_file`, PEM; both files or neither."""

    any_server_name: bool = False
    """Present the certificate to clients with any server name (SNI), or with none."""

    def __post_init__(self) -> None:
        """Accept paths as text too; refuse an invalid port, and one file without the other."""
        _check_tls(self)
        check_type("any_server_name", self.any_server_name, bool)
        if (self.cert_file is None) != (self.cert_key_file is None):
            raise ConfigError(
                "{} and {} belong together: give both",
                settings=("cert-file", "cert-key-file"),
            )
        if self.cert_file is not None and self.cert_key_file is not None:
            object.__setattr__(self, "cert_file", Path(self.cert_file))
            object.__setattr__(self, "cert_key_file", Path(self.cert_key_file))


@dataclass(frozen=True, kw_only=True)
class ACMETLS:
    """A certificate from a certificate authority, by ACME (`derper -certmode=letsencrypt`)."""

    certdir: Path
    """Directory that keeps the account, certificates and keys; made if missing."""

    hostname: str
    """Name to get a certificate for: a DNS name, or with `ip_certs` also an IP address."""

    http_port: int | None = 80
    """Port for plain HTTP beside TLS, where the authority fetches the answer to HTTP-01. `None`:
    no such port; the authority can only use TLS-ALPN-01 then."""

    directory: str = LETSENCRYPT
    """URL of the authority's ACME directory."""

    email: str = ""
    """Contact for the authority."""

    eab_kid: str = ""
    eab_key: str = ""
    """External account binding, base64url or base64; both or neither."""

    ip_certs: bool = False
    """Also get certificates for the IP addresses that clients connect to."""

    ca_file: Path | None = None
    """PEM file with the issuer of a private authority's own HTTPS certificate. It is trusted beside
    the system's certificates."""

    def __post_init__(self) -> None:
        """Refuse settings that do not fit together, or that the authority cannot serve.

        Raises:
            ConfigError: the text says what to do instead.
        """
        for name in ("directory", "email", "eab_kid", "eab_key"):
            check_type(name, getattr(self, name), str)
        _check_tls(self)
        if bool(self.eab_kid) != bool(self.eab_key):
            raise ConfigError(
                "an external account binding needs both {} and {}",
                settings=("tls.eab_kid", "tls.eab_key"),
            )
        if self.directory == GOOGLE:
            self._check_google()
        if parse_ip(self.hostname) is None:
            name = normal_name(self.hostname)
            if self.directory in PUBLIC and "." not in name:
                raise ConfigError(
                    "{}={name} is not a full DNS name such as relay.example.com; {authority} needs "
                    "one. {} takes a certificate for any name from files",
                    settings=("tls.hostname", "certmode=manual"),
                    authority="Google" if self.directory == GOOGLE else "Let's Encrypt",
                    name=name,
                )
        elif not self.ip_certs:
            raise ConfigError(
                "{}={name} is an IP address: give {} for a certificate from Let's Encrypt, or {} "
                "for a self-signed one",
                settings=("tls.hostname", "tls.ip_certs", "certmode=manual"),
                name=self.hostname,
            )
        if self.ip_certs and self.http_port is None:
            raise ConfigError(
                "certificates for IP addresses need plain HTTP beside TLS: the authority asks "
                "there; set {}",
                settings=("tls.http_port",),
            )

    def _check_google(self) -> None:
        if self.ip_certs:
            raise ConfigError(
                "{} needs {}; it is gcp", settings=("tls.ip_certs", "certmode=letsencrypt")
            )
        if parse_ip(self.hostname) is not None:
            raise ConfigError(
                "{}={name} is an IP address; {} needs a DNS name",
                settings=("tls.hostname", "certmode=gcp"),
                name=self.hostname,
            )
        missing = [name for name in ("eab_kid", "eab_key", "email") if not getattr(self, name)]
        if missing:
            raise ConfigError(
                "{} needs " + ", ".join("{}" for _ in missing),
                settings=("certmode=gcp", *(f"tls.{name}" for name in missing)),
            )


TLSSettings: TypeAlias = ManualTLS | ACMETLS


def _check_tls(tls: TLSSettings) -> None:
    object.__setattr__(tls, "certdir", Path(tls.certdir))
    check_type("hostname", tls.hostname, str)
    check_port("http_port", tls.http_port)
    for each in fields(tls):
        check_setting(f"tls.{each.name}", getattr(tls, each.name))
