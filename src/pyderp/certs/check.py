"""Settings of ACME that cannot work, told before anybody is asked."""

from __future__ import annotations

import base64
import binascii
import ssl
from pathlib import Path
from typing import Final

from pyderp.addresses import parse_ip
from pyderp.certs.credential import check_host_name
from pyderp.config import ACMETLS, GOOGLE, LETSENCRYPT, LETSENCRYPT_STAGING
from pyderp.errors import ConfigError

__all__ = ["PUBLIC", "authority_context", "check_acme", "eab_key", "normal_name"]

PUBLIC: Final = frozenset({LETSENCRYPT, LETSENCRYPT_STAGING, GOOGLE})
"""Authorities that issue only for what the whole internet can reach."""

_DIFFERENT_IN_IDNA: Final = frozenset("ßς\u200c\u200d")
"""Python knows the older IDNA, which maps these to something else."""


def check_acme(tls: ACMETLS) -> None:
    """Refuse settings that no authority, or not this one, can do.

    Raises:
        ConfigError: says what to do instead.
    """
    if tls.directory == GOOGLE:
        _check_google(tls)
    address = parse_ip(tls.hostname)
    if address is None:
        name = normal_name(tls.hostname)
        if tls.directory in PUBLIC and "." not in name:
            raise ConfigError(f"hostname {name!r} is no full DNS name, which this authority needs")
    elif not tls.ip_certs:
        raise ConfigError(
            f"hostname {tls.hostname} is an IP address: permit certificates for addresses "
            "(ip_certs, --acme-ip-certs), or use a self-signed one (--certmode=manual)"
        )
    if tls.ip_certs and tls.http_port is None:
        raise ConfigError(
            "certificates for IP addresses need plain HTTP beside TLS: the authority asks there; "
            "set http_port (--http-port)"
        )
    if tls.eab_key:
        eab_key(tls.eab_key)
    if tls.ca_file is not None:
        authority_context(tls.ca_file)


def _check_google(tls: ACMETLS) -> None:
    if tls.ip_certs:
        raise ConfigError("--acme-ip-certs requires --certmode=letsencrypt")
    if parse_ip(tls.hostname) is not None:
        raise ConfigError(
            f"hostname {tls.hostname} is an IP address; --certmode=gcp needs a DNS name"
        )
    needed = {
        "--acme-eab-kid": tls.eab_kid,
        "--acme-eab-key": tls.eab_key,
        "--acme-email": tls.email,
    }
    missing = [flag for flag, value in needed.items() if not value]
    if missing:
        raise ConfigError(f"--certmode=gcp needs {', '.join(missing)}")


def authority_context(ca_file: Path) -> ssl.SSLContext:
    """TLS to an authority that this file vouches for, or the system does.

    Raises:
        ConfigError: the file cannot be used.
    """
    context = ssl.create_default_context()
    # A private authority's certificate is not always by the book.
    context.verify_flags &= ~ssl.VERIFY_X509_STRICT
    context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
    try:
        context.load_verify_locations(ca_file)
    except OSError as e:
        reason = (
            "it holds no certificate in PEM form" if isinstance(e, ssl.SSLError) else e.strerror
        )
        raise ConfigError(f"cannot use the CA file {ca_file}: {reason}") from e
    return context


def eab_key(text: str) -> bytes:
    """The key of an external account binding, from base64url or base64, padded or not.

    Raises:
        ConfigError: it is neither; the text is not repeated, it is a secret.
    """
    plain = text.strip().replace("-", "+").replace("_", "/").rstrip("=")
    try:
        key = base64.b64decode(plain + "=" * (-len(plain) % 4), validate=True)
    except (binascii.Error, ValueError):
        key = b""
    if not key:
        raise ConfigError("invalid base64 encoding for EAB key")
    return key


def normal_name(hostname: str) -> str:
    """A DNS name as certificates and clients spell it: lower case, ASCII, no dot at its end.

    Raises:
        ConfigError: it is none.
    """
    name = hostname.lower().removesuffix(".")
    if not name.isascii():
        if _DIFFERENT_IN_IDNA.intersection(name):
            raise ConfigError(f"hostname {hostname!r}: give it in its ASCII form (xn--…)")
        try:
            name = name.encode("idna").decode("ascii")
        except UnicodeError as e:
            raise ConfigError(f"hostname {hostname!r} is no international name: {e}") from e
    check_host_name(name)
    return name
