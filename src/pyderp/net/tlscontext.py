"""Which certificates a client trusts, and the `ssl` contexts made from that."""

from __future__ import annotations

import functools
import logging
import os
import ssl
from collections.abc import Callable, Sequence
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
    """Which authorities are trusted. All that is on holds at once; nothing here skips a check.

    A program's own functions add to the checks: whatever they do, a chain, a name or a pin that
    would be verified without them still is.
    """

    system_roots: bool = True
    """The system's certificates; `SSL_CERT_FILE` and `SSL_CERT_DIR` say where others are."""

    extra_roots: Sequence[str | Path | bytes] = ()
    """Certificates to trust as well: paths of files, or `bytes`; PEM (any number) or DER (one).
    Not only roots: a server's own certificate may be here. Files are read once a process.
    Becomes a tuple; a single root is a `ConfigError`."""

    builtin_roots: bool = True
    """Let's Encrypt's roots, which most relays' certificates come from."""

    prepare: Callable[[ssl.SSLContext], None] | None = None
    """Called with each context before its first use, to add to it: a client certificate
    (`load_cert_chain`), a newer least version, other ciphers, revocation lists. A context that
    then verifies less is a `ConfigError` at each connect. There are up to three (for names, for
    chains, for pins), each made once for equal settings; a program may keep them to load a
    renewed client certificate."""

    verify: Callable[[str, tuple[bytes, ...]], None] | None = None
    """Called with the server's name and its certificates (DER, its own first) once all else was
    found good, before anything is sent. It refuses by an exception: `CertificateError` is raised
    as it is, another one becomes the cause of one."""

    def __post_init__(self) -> None:
        if isinstance(self.extra_roots, str | bytes | Path):
            root = repr(self.extra_roots)[:80]
            raise ConfigError(f"extra_roots: want a sequence of roots, and this is one: {root}")
        object.__setattr__(self, "extra_roots", tuple(self.extra_roots))
        for name in ("prepare", "verify"):
            function = getattr(self, name)
            if function is not None and not callable(function):
                raise ConfigError(f"{name} is a {type(function).__name__}; want a function")


def client_context(
    config: TLSConfig, *, chain: bool, hostname: bool, keylog_file: str
) -> ssl.SSLContext:
    """A client's context; the same one for the same arguments, as a store takes long to fill.

    Args:
        chain: whether OpenSSL verifies the certificate.
        hostname: whether OpenSSL also compares names; only with `chain`.
        keylog_file: TLS secrets are appended here; empty: nowhere.

    Raises:
        ConfigError: a file cannot be used, or `config.prepare` failed or weakened it.
    """
    context = _context(config, chain=chain, hostname=hostname, keylog_file=keylog_file)
    if config.prepare is not None:
        _check_prepared(context, chain=chain, hostname=hostname)
    return context


@functools.lru_cache(maxsize=_CONTEXTS)
def _context(config: TLSConfig, *, chain: bool, hostname: bool, keylog_file: str) -> ssl.SSLContext:
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
    if config.prepare is not None:
        try:
            config.prepare(context)
        except Exception as e:
            raise ConfigError(f"TLSConfig.prepare raised {type(e).__name__}: {e}") from e
    return context


def _check_prepared(context: ssl.SSLContext, *, chain: bool, hostname: bool) -> None:
    """Refuse a context that a program has weakened, now or after an earlier connect.

    Raises:
        ConfigError: with what to use in place of that.
    """
    if chain and context.verify_mode != ssl.CERT_REQUIRED:
        raise ConfigError(
            "TLSConfig.prepare: verify_mode is not CERT_REQUIRED; to trust a certificate of "
            "one's own use extra_roots or a pin"
        )
    if hostname and not context.check_hostname:
        raise ConfigError(
            "TLSConfig.prepare: check_hostname is off; for a certificate with another name use "
            "a node's cert_name"
        )
    if context.minimum_version < ssl.TLSVersion.TLSv1_2:
        raise ConfigError("TLSConfig.prepare: minimum_version is below TLS 1.2")
    # What reads the certificates that a pin or `verify` is about.
    context.sslobject_class = ssl.SSLObject
    context.options |= ssl.OP_NO_RENEGOTIATION


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
