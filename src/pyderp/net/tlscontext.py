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
"""Let's Encrypt's roots, from https://letsencrypt.org/certificates/, for machines whose own store
is old, small or missing. Go's client contains them, too."""
_CONTEXTS: Final = 16
"""Contexts that are kept. A program usually has one `TLSConfig`, and up to three contexts of it."""


@dataclass(frozen=True, kw_only=True)
class TLSConfig:
    """Which authorities are trusted, and a program's own checks. No setting skips a check.

    The roots of all settings are trusted together. A program's functions only add checks: a chain,
    a name or a pin that would be verified without them still is.
    """

    system_roots: bool = True
    """The system's certificates, or those at `SSL_CERT_FILE` and `SSL_CERT_DIR`."""

    extra_roots: Sequence[str | Path | bytes] = ()
    """Further certificates to trust: paths of files, or `bytes`; PEM (any number) or DER (one).
    A server's own certificate may be here, too. Files are read once per process. The sequence
    becomes a tuple; a single root in its place is a `ConfigError`."""

    builtin_roots: bool = True
    """Let's Encrypt's roots, which most relays' certificates come from."""

    prepare: Callable[[ssl.SSLContext], None] | None = None
    """Called with each context before its first use, to add to it: a client certificate
    (`load_cert_chain`), a higher minimum version, other ciphers, revocation lists. If the context
    then verifies less, each connect raises `ConfigError`. There are up to three contexts (for
    names, for chains, for pins), each made once for equal settings; a program may keep them to
    load a renewed client certificate."""

    verify: Callable[[str, tuple[bytes, ...]], None] | None = None
    """Called with the server's name and its certificates (DER, its own first) after all other
    checks, before anything is sent. It refuses by an exception: a `CertificateError` is raised as
    it is, any other error becomes the cause of one."""

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
    """Returns a client's context, the same one for equal arguments: to load roots takes long.

    Args:
        chain: whether OpenSSL verifies the certificate.
        hostname: whether OpenSSL also compares names; only with `chain`.
        keylog_file: TLS secrets are appended to this file; empty: to none.

    Raises:
        ConfigError: a file cannot be used, or `config.prepare` failed or weakened it.
    """
    context = _context(config, chain=chain, hostname=hostname, keylog_file=keylog_file)
    # At every call and not only when it is made: the program may have kept the context.
    if config.prepare is not None:
        _check_prepared(context, chain=chain, hostname=hostname)
    return context


@functools.lru_cache(maxsize=_CONTEXTS)
def _context(config: TLSConfig, *, chain: bool, hostname: bool, keylog_file: str) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.maximum_version = ssl.TLSVersion.TLSv1_3
    # In a renegotiation (TLS 1.2) the server could present another certificate, after the checks.
    # Go's client refuses it, too.
    context.options |= ssl.OP_NO_RENEGOTIATION
    context.check_hostname = hostname
    if chain:
        context.hostname_checks_common_name = False
        # As in Go, any trusted certificate ends a chain, and not only a self-signed one. So a
        # server's own certificate, or an intermediate one, can be in `extra_roots`.
        context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
        _fill(context, config)
    else:
        # For a pin, which `Rule.check` compares after the handshake, and for InsecureForTests.
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
    """Refuse a context that a program has weakened, in `prepare` or later.

    Raises:
        ConfigError: it verifies less; the text says which setting to use instead.
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
    # Set again: the certificates for a pin and for `verify` are read from an `SSLObject`, and a
    # renegotiation would come after the checks.
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
            # Comments around PEM may have non-ASCII characters, for which ssl would refuse it all.
            pem = b"-----BEGIN" in data
            context.load_verify_locations(cadata=data.decode("ascii", "ignore") if pem else data)
        except (OSError, ValueError) as e:  # SSLError is an OSError; ValueError: it is empty
            why = "it contains no complete certificate in PEM or DER form"
            if isinstance(e, OSError) and not isinstance(e, ssl.SSLError):
                why = system_words(e)
            text = f"extra_roots: {name}: no certificates could be read: {why}"
            raise ConfigError(text) from e


def _log_keys(context: ssl.SSLContext, path: str) -> None:
    try:
        # Made here with mode 0600, as OpenSSL would make it readable for other users.
        os.close(os.open(path, os.O_CREAT | os.O_APPEND | os.O_WRONLY, 0o600))
        context.keylog_filename = path
    except OSError as e:
        raise ConfigError(f"TLS key log {path}: {e.strerror or e}") from e
    _log.warning("TLS secrets are written to %s: with that file the traffic can be decrypted", path)
