"""From credentials to the `ssl` module: the contexts of a relay, in one place."""

from __future__ import annotations

import contextlib
import errno
import os
import ssl
from collections.abc import Iterator
from pathlib import Path
from typing import Final
from weakref import WeakKeyDictionary

from pyderp.certs.credential import CertificateSource, Credential, utc_now
from pyderp.errors import ConfigError
from pyderp.keys import NodePublic
from pyderp.text import openssl_words
from pyderp.wire.metacert import make_meta_certificate

__all__ = [
    "ACME_TLS",
    "HTTP",
    "REFUSE_NAME",
    "ServerContexts",
    "authority_context",
    "check_credential",
    "meta_certificate",
    "plain_context",
]

HTTP: Final = "http/1.1"
"""The ALPN protocol of all other connections."""
ACME_TLS: Final = "acme-tls/1"
"""The ALPN protocol of TLS-ALPN-01."""
_MOST_ADDRESSES: Final = 256
_NOT_THE_KEY: Final = ("KEY_VALUES_MISMATCH", "NO_CERTIFICATE_ASSIGNED", "KEY_TYPE_MISMATCH")
"""OpenSSL's reasons where a key is not that of the first certificate."""

REFUSE_NAME: Final = ssl.ALERT_DESCRIPTION_INTERNAL_ERROR
"""The alert for a name that there is no certificate for; `derper` sends it."""


def plain_context(protocol: str = HTTP) -> ssl.SSLContext:
    """A server-side context that has no certificate yet.

    Args:
        protocol: the only one that ALPN offers. Clients that want another, or none, are
            served all the same.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.options |= ssl.OP_NO_RENEGOTIATION | ssl.OP_NO_TICKET
    # The client knows which cipher its hardware does fast: AES-128 for most.
    context.options &= ~ssl.OP_CIPHER_SERVER_PREFERENCE
    context.set_alpn_protocols([protocol])
    # DERP clients keep no sessions, and a ticket costs a write and its encryption.
    context.num_tickets = 0
    return context


def meta_certificate(server: NodePublic) -> bytes:
    """The meta certificate of a relay, PEM."""
    return ssl.DER_cert_to_PEM_cert(make_meta_certificate(server, now=utc_now())).encode("ascii")


class ServerContexts:
    """The TLS contexts of a relay, filled from the credentials of a certificate source.

    Here alone a credential becomes an `ssl.SSLContext`.

    Args:
        source: has the credentials.
        meta: the relay's meta certificate, PEM; it is presented after each chain.
    """

    def __init__(self, source: CertificateSource, meta: bytes) -> None:
        self.source = source
        self.meta = meta
        self._filled = _Filled(meta)
        self._sni_contexts: dict[str, ssl.SSLContext] = {}
        """By local address."""

    @property
    def challenge_pending(self) -> bool:
        """Whether `challenge_context` may return one; false nearly always."""
        return self.source.challenge_pending

    def context(self, local_address: str) -> ssl.SSLContext:
        """The server side of TLS for a new connection.

        It has no certificate itself: the handshake switches to one that has when the
        ClientHello names the host, or ends with `REFUSE_NAME`.

        Args:
            local_address: the relay's own IP address that the client connected to.
        """
        context = self._sni_contexts.get(local_address)
        if context is None:
            # A machine may have a whole network. What is forgotten is made anew in 0.1 ms.
            if len(self._sni_contexts) >= _MOST_ADDRESSES:
                self._sni_contexts.clear()
            context = _sni_context(self.source, local_address, self._filled)
            self._sni_contexts[local_address] = context
        return context

    def challenge_context(self, hello: memoryview) -> ssl.SSLContext | None:
        """The context that answers TLS-ALPN-01; `None`: the client does not ask for that.

        Args:
            hello: a whole ClientHello, as `pyderp.wire.clienthello` reads it.
        """
        credential = self.source.challenge_credential(hello)
        return None if credential is None else self.filled(credential, challenge=True)

    def filled(self, credential: Credential, *, challenge: bool = False) -> ssl.SSLContext:
        """The context with a credential.

        Args:
            challenge: it answers a check by TLS-ALPN-01 (RFC 8737).
        """
        return self._filled.of(credential, challenge=challenge)


class _Filled:
    """One context for each credential, as long as that is in use.

    Apart from `ServerContexts`, whose contexts hold this: so they do not hold themselves.
    """

    def __init__(self, meta: bytes) -> None:
        self._meta = meta
        self._contexts: WeakKeyDictionary[Credential, ssl.SSLContext] = WeakKeyDictionary()

    def of(self, credential: Credential, *, challenge: bool = False) -> ssl.SSLContext:
        """The context with a credential.

        Args:
            challenge: it answers a check by TLS-ALPN-01 (RFC 8737).
        """
        context = self._contexts.get(credential)
        if context is None:
            context = plain_context(ACME_TLS) if challenge else plain_context()
            _fill(context, credential, b"" if challenge else self._meta)
            self._contexts[credential] = context
        return context


def _sni_context(source: CertificateSource, local_address: str, filled: _Filled) -> ssl.SSLContext:
    def choose(tls: ssl.SSLObject, name: str | None, _: ssl.SSLContext) -> int | None:
        credential = source.credential(local_address, name)
        if credential is None:
            return REFUSE_NAME
        tls.context = filled.of(credential)
        return None

    context = plain_context()
    context.sni_callback = choose
    return context


def check_credential(credential: Credential, where: str) -> None:
    """Refuse a credential that cannot be served.

    OpenSSL finds out: it has a mind of its own about keys that are too short.

    Args:
        where: the files it is from, for the error.

    Raises:
        ConfigError: key and certificate do not fit, or one of them is none.
    """
    try:
        _fill(plain_context(), credential)
    except (ssl.SSLError, OSError) as e:
        raise ConfigError(f"cannot use {where}: {_explain(e, credential)}") from e


def _fill(context: ssl.SSLContext, credential: Credential, meta: bytes = b"") -> None:
    chain = credential.chain.rstrip() + b"\n" + meta
    # The ssl module takes both only from files.
    with _as_file(chain) as chain_file, _as_file(credential.key) as key_file:
        context.load_cert_chain(chain_file, key_file, password=_no_password)


@contextlib.contextmanager
def _as_file(data: bytes) -> Iterator[str]:
    """A path to read the bytes from, not on disk where that can be had."""
    with contextlib.ExitStack() as stack:
        if hasattr(os, "memfd_create"):
            memory = os.memfd_create("pyderp-certificate", os.MFD_CLOEXEC)
            stack.callback(os.close, memory)
            os.write(memory, data)
            path = f"/proc/self/fd/{memory}"
            if os.access(path, os.R_OK):  # there may be no /proc in a container
                yield path
                return
        import tempfile

        file = stack.enter_context(tempfile.NamedTemporaryFile("wb", suffix=".pem"))
        file.write(data)
        file.flush()
        yield file.name


def _no_password() -> str:
    raise OSError(errno.EACCES, "the key is encrypted; give one without a password")


def _explain(error: OSError, credential: Credential) -> str:
    if not isinstance(error, ssl.SSLError):
        return error.strerror or str(error)
    # Not at the top: no relay that can start needs it.
    from pyderp.certs.pem import chain_problem, foreign_key_problem, key_problem

    # OpenSSL does not say which of the two it could not read.
    if problem := key_problem(credential.key):
        return f"the key {problem}"
    if problem := chain_problem(credential.chain):
        return f"the chain {problem}"
    if error.reason in _NOT_THE_KEY:
        other = foreign_key_problem(credential.chain, credential.key)
        return other or openssl_words(error)
    return openssl_words(error)


def authority_context(ca_file: Path) -> ssl.SSLContext:
    """TLS to an authority whose own certificate this file vouches for, or the system does.

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
