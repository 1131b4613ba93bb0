"""Which certificates a client trusts, and the `ssl` contexts made from that."""

from __future__ import annotations

import functools
import logging
import os
import ssl
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from pyderp.errors import ConfigError
from pyderp.text import system_words

__all__ = ["LETS_ENCRYPT", "TLSConfig", "client_context"]

_log = logging.getLogger("pyderp.tls")

LETS_ENCRYPT: Final = Path(__file__).with_name("letsencrypt.pem")
"""The roots that Go's client carries, too, from https://letsencrypt.org/certificates/: for
machines whose own store is old, small or missing."""
_CONTEXTS: Final = 16
"""Contexts that are kept; a program has one configuration, in three ways to verify."""


@dataclass(frozen=True, kw_only=True)
class TLSConfig:
    """Which authorities are trusted. All that is on holds at once; nothing here skips a check."""

    system_roots: bool = True
    """The system's certificates; `SSL_CERT_FILE` and `SSL_CERT_DIR` say where others are."""

    extra_roots: Sequence[str | Path | bytes] = ()
    """Certificates to trust as well: paths of files, or `bytes`; PEM (any number) or DER (one).
    Not only roots: a server's own certificate may be here. Files are read once a process.
    Becomes a tuple; a single root is a `ConfigError`."""

    builtin_roots: bool = True
    """Let's Encrypt's roots, which most relays' certificates come from."""

    def __post_init__(self) -> None:
        if isinstance(self.extra_roots, str | bytes | Path):
            root = repr(self.extra_roots)[:80]
            raise ConfigError(f"extra_roots: want a sequence of roots, and this is one: {root}")
        object.__setattr__(self, "extra_roots", tuple(self.extra_roots))


@functools.lru_cache(maxsize=_CONTEXTS)
def client_context(
    config: TLSConfig, *, chain: bool, hostname: bool, keylog_file: str
) -> ssl.SSLContext:
    """A client's context; the same one for the same arguments, as a store takes long to fill.

    Args:
        chain: whether OpenSSL verifies the certificate.
        hostname: whether OpenSSL also compares names; only with `chain`.
        keylog_file: TLS secrets are appended here; empty: nowhere.

    Raises:
        ConfigError: a file cannot be used.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.maximum_version = ssl.TLSVersion.TLSv1_3
    # A renegotiation could bring another certificate, long after the checks. Go refuses it, too.
    context.options |= ssl.OP_NO_RENEGOTIATION
    context.check_hostname = hostname
    if chain:
        context.hostname_checks_common_name = False
        # As in Go, any certificate in the store ends a chain, not only a self-signed one.
        context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
        _fill(context, config)
    else:
        context.verify_mode = ssl.CERT_NONE
    if keylog_file:
        _log_keys(context, keylog_file)
    return context


def _fill(context: ssl.SSLContext, config: TLSConfig) -> None:
    if config.system_roots:
        context.load_default_certs(ssl.Purpose.SERVER_AUTH)
    if config.builtin_roots:
        context.load_verify_locations(cafile=LETS_ENCRYPT)
    for root in config.extra_roots:
        name = "bytes" if isinstance(root, bytes) else str(root)
        try:
            data = root if isinstance(root, bytes) else Path(root).read_bytes()
            # Of PEM only comments have other characters, and ssl refuses all of it for them.
            pem = b"-----BEGIN" in data
            context.load_verify_locations(cadata=data.decode("ascii", "ignore") if pem else data)
        except (OSError, ValueError) as e:  # SSLError is an OSError; ValueError: it is empty
            why = "there is no whole one in it, in PEM or DER form"
            if isinstance(e, OSError) and not isinstance(e, ssl.SSLError):
                why = system_words(e)
            text = f"extra_roots: {name}: no certificates could be read: {why}"
            raise ConfigError(text) from e


def _log_keys(context: ssl.SSLContext, path: str) -> None:
    try:
        # OpenSSL would make a file that others can read.
        os.close(os.open(path, os.O_CREAT | os.O_APPEND | os.O_WRONLY, 0o600))
        context.keylog_filename = path
    except OSError as e:
        raise ConfigError(f"TLS key log {path}: {e.strerror or e}") from e
    _log.warning("TLS secrets are written to %s: who reads them can read the traffic", path)
