"""From flags to where the relay's certificate comes from."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path

from pyderp import defaults
from pyderp.addresses import parse_address, parse_ip, unix_path
from pyderp.cli.relayflags.settings import Settings
from pyderp.cli.relayflags.state import state_directory
from pyderp.config import (
    ACMETLS,
    GOOGLE,
    LETSENCRYPT,
    LETSENCRYPT_STAGING,
    ManualTLS,
    TLSSettings,
)
from pyderp.errors import ConfigError

__all__ = ["DERPER_HOSTNAME", "tls_settings"]

log = logging.getLogger("pyderp.relay")

DERPER_HOSTNAME = "derp.tailscale.com"
"""`derper`'s default; only Tailscale gets certificates for it."""


def tls_settings(
    settings: Settings, address: str, environment: Mapping[str, str]
) -> TLSSettings | None:
    """What the flags say about TLS; `None`: none is spoken.

    Raises:
        ConfigError: flags are missing, or do not fit together.
    """
    if not _speaks_tls(settings, address):
        return None
    hostname = settings["hostname"]
    if not hostname:
        raise ConfigError(_hostname_missing(settings))
    mode = settings["certmode"] or _guess_mode(settings, hostname)
    if settings["acme-ip-certs"] and mode != "letsencrypt":
        raise ConfigError(
            f"{settings.flag('acme-ip-certs')} needs {settings.flag('certmode')}=letsencrypt; "
            f"it is {mode}"
        )
    if mode == "manual":
        return _manual(settings, hostname, environment)
    # Not at the top: the other commands begin without it.
    from pyderp.certs.check import check_acme

    tls = _acme(settings, hostname, mode, environment)
    check_acme(tls)
    return tls


def _speaks_tls(settings: Settings, address: str) -> bool:
    port = None if unix_path(address) is not None else parse_address(address)[1]
    if port == defaults.HTTPS_PORT:
        return True
    if settings.derper:
        # As derper: with other modes, no TLS on other ports.
        return bool(settings["certmode"] == "manual")
    if settings.given("certmode"):
        return True
    if settings.given("certdir", "hostname") and not settings["public-port"]:
        where = address if port is None else f"port {port}"
        log.warning(
            "plain HTTP on %s: give --certmode for TLS, or --public-port if a proxy in front "
            "ends TLS",
            where,
        )
    return False


def _hostname_missing(settings: Settings) -> str:
    if settings.given("certmode"):
        return (
            f"{settings.flag('certmode')}={settings['certmode']} needs "
            f"{settings.flag('hostname')}, the name that the certificate is for"
        )
    return (
        "port 443 needs a certificate: give --hostname=NAME for one from Let's Encrypt, "
        "--hostname=IP for a self-signed one, --certmode=manual with --certdir for your own, "
        "another port with -a for plain HTTP, or --dev to try things out"
    )


def _guess_mode(settings: Settings, hostname: str) -> str:
    is_ip = parse_ip(hostname) is not None
    return "manual" if is_ip and not settings["acme-ip-certs"] else "letsencrypt"


def _certdir(settings: Settings, environment: Mapping[str, str]) -> Path:
    certdir: Path | None = settings["certdir"]
    return certdir or state_directory(environment) / "certs"


def _http_port(settings: Settings) -> int | None:
    port: int = settings["http-port"]
    return None if port < 0 else port


def _manual(settings: Settings, hostname: str, environment: Mapping[str, str]) -> ManualTLS:
    if settings["certdir"] is None and parse_ip(hostname) is None:
        raise ConfigError(
            f"{settings.flag('certmode')}=manual needs {settings.flag('certdir')}=DIR, "
            "the directory of the certificate"
        )
    return ManualTLS(
        certdir=_certdir(settings, environment), hostname=hostname, http_port=_http_port(settings)
    )


def _acme(settings: Settings, hostname: str, mode: str, environment: Mapping[str, str]) -> ACMETLS:
    if parse_ip(hostname) is not None and not settings["acme-ip-certs"]:
        raise ConfigError(
            f"{settings.flag('hostname')}={hostname} is an IP address: give "
            f"{settings.flag('acme-ip-certs')} for a certificate from Let's Encrypt, or "
            f"{settings.flag('certmode')}=manual for a self-signed one"
        )
    if hostname == DERPER_HOSTNAME and not settings.given("hostname"):
        raise ConfigError(
            f"{settings.flag('hostname')} is missing: derper's default, {DERPER_HOSTNAME}, "
            "is a name that only Tailscale gets a certificate for"
        )
    if bool(settings["acme-eab-kid"]) != bool(settings["acme-eab-key"]):
        raise ConfigError(
            f"an external account binding needs both {settings.flag('acme-eab-kid')} and "
            f"{settings.flag('acme-eab-key')}"
        )
    return ACMETLS(
        certdir=_certdir(settings, environment),
        hostname=hostname,
        http_port=_http_port(settings),
        directory=_directory(settings, mode),
        email=settings["acme-email"] or "",
        eab_kid=settings["acme-eab-kid"] or "",
        eab_key=settings["acme-eab-key"] or "",
        ip_certs=settings["acme-ip-certs"],
        ca_file=settings["acme-ca-file"],
    )


def _directory(settings: Settings, mode: str) -> str:
    directory: str = settings["acme-directory"] or ""
    if settings["acme-staging"]:
        if directory or mode == "gcp":
            other = settings.flag("acme-directory") if directory else "certmode gcp"
            raise ConfigError(
                f"{settings.flag('acme-staging')} is Let's Encrypt's; it does not go with {other}"
            )
        return LETSENCRYPT_STAGING
    return directory or (GOOGLE if mode == "gcp" else LETSENCRYPT)
