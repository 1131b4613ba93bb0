"""Makes the contexts of the `ssl` module from credentials; no other module does."""

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
"""The ALPN protocol of all connections but those for TLS-ALPN-01."""
ACME_TLS: Final = "acme-tls/1"
"""The ALPN protocol of TLS-ALPN-01 (RFC 8737)."""
_MOST_ADDRESSES: Final = 256
_NOT_THE_KEY: Final = ("KEY_VALUES_MISMATCH", "NO_CERTIFICATE_ASSIGNED", "KEY_TYPE_MISMATCH")
"""OpenSSL's reasons if a key does not belong to the first certificate."""

REFUSE_NAME: Final = ssl.ALERT_DESCRIPTION_INTERNAL_ERROR
"""The alert for a name without a certificate. RFC 6066 has `unrecognized_name` for that, but
`derper` sends this one."""


def plain_context(protocol: str = HTTP) -> ssl.SSLContext:
    """Return a server-side context without a certificate.

    Args:
        protocol: the only protocol that ALPN selects. Clients that offer others, or send no
            ALPN, are served too, without a selected protocol.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    # A client could make the relay compute handshakes again and again by renegotiation.
    # OP_NO_TICKET turns off the session tickets of TLS 1.2, `num_tickets` those of TLS 1.3: DERP
    # clients do not resume sessions, and each ticket costs its encryption and a write.
    context.options |= ssl.OP_NO_RENEGOTIATION | ssl.OP_NO_TICKET
    context.num_tickets = 0
    # The order of the client's ciphers counts: it knows which its hardware does fast.
    context.options &= ~ssl.OP_CIPHER_SERVER_PREFERENCE
    context.set_alpn_protocols([protocol])
    return context


def meta_certificate(server: NodePublic) -> bytes:
    """Return the meta certificate of a relay, PEM."""
    return ssl.DER_cert_to_PEM_cert(make_meta_certificate(server, now=utc_now())).encode("ascii")


class ServerContexts:
    """The TLS contexts of a relay, with the credentials of a certificate source.

    Args:
        source: returns the credentials.
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
        """Return the context for a new connection.

        It has no certificate itself. OpenSSL calls its SNI callback after the ClientHello, which
        switches to a context with a certificate, or ends the handshake with `REFUSE_NAME`.

        Args:
            local_address: the relay's own IP address that the client connected to.
        """
        context = self._sni_contexts.get(local_address)
        if context is None:
            # A machine may have the addresses of a whole network, so the number of contexts is
            # limited. To make a dropped one again takes 0.1 ms.
            if len(self._sni_contexts) >= _MOST_ADDRESSES:
                self._sni_contexts.clear()
            context = _sni_context(self.source, local_address, self._filled)
            self._sni_contexts[local_address] = context
        return context

    def challenge_context(self, hello: memoryview) -> ssl.SSLContext | None:
        """Return the context that answers TLS-ALPN-01; `None` if the client does not ask for it.

        Args:
            hello: a complete ClientHello, as `pyderp.wire.clienthello` reads it.
        """
        credential = self.source.challenge_credential(hello)
        return None if credential is None else self.filled(credential, challenge=True)

    def filled(self, credential: Credential, *, challenge: bool = False) -> ssl.SSLContext:
        """Return the context with a credential.

        Args:
            challenge: it answers TLS-ALPN-01 (RFC 8737).
        """
        return self._filled.of(credential, challenge=challenge)


class _Filled:
    """One context for each credential, cached while the credential is in use.

    The SNI callbacks refer to this class and not to `ServerContexts`: that refers to the contexts
    of the callbacks, which would be a reference cycle.
    """

    def __init__(self, meta: bytes) -> None:
        self._meta = meta
        self._contexts: WeakKeyDictionary[Credential, ssl.SSLContext] = WeakKeyDictionary()

    def of(self, credential: Credential, *, challenge: bool = False) -> ssl.SSLContext:
        """Return the context with a credential, as `ServerContexts.filled`."""
        context = self._contexts.get(credential)
        if context is None:
            # A challenge is presented without the meta certificate: the authority expects the
            # self-signed certificate alone, and no fast start follows.
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
    """Refuse a credential that OpenSSL does not accept.

    OpenSSL itself checks it, because its rules depend on its build and security level, for example
    those about short keys.

    Args:
        where: the files that it was read from, for the error.

    Raises:
        ConfigError: the key does not belong to the certificate, or one of them cannot be read.
    """
    try:
        _fill(plain_context(), credential)
    except (ssl.SSLError, OSError) as e:
        raise ConfigError(f"cannot use {where}: {_explain(e, credential)}") from e


def _fill(context: ssl.SSLContext, credential: Credential, meta: bytes = b"") -> None:
    chain = credential.chain.rstrip() + b"\n" + meta
    # The ssl module reads both from files only. The password function raises: without one, OpenSSL
    # would ask for a password on the terminal and block the relay.
    with _as_file(chain) as chain_file, _as_file(credential.key) as key_file:
        context.load_cert_chain(chain_file, key_file, password=_no_password)


@contextlib.contextmanager
def _as_file(data: bytes) -> Iterator[str]:
    """Yield a path to read the bytes from. The file is in memory where the system allows it."""
    with contextlib.ExitStack() as stack:
        # A file in memory needs no disk, and leaves no private key there after a crash.
        if hasattr(os, "memfd_create"):
            memory = os.memfd_create("pyderp-certificate", os.MFD_CLOEXEC)
            stack.callback(os.close, memory)
            os.write(memory, data)
            path = f"/proc/self/fd/{memory}"
            if os.access(path, os.R_OK):  # some containers have no /proc
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
    # Imported here: only errors need it.
    from pyderp.certs.pem import chain_problem, foreign_key_problem, key_problem

    # OpenSSL's error does not tell whether it failed to read the key or the chain.
    if problem := key_problem(credential.key):
        return f"the key {problem}"
    if problem := chain_problem(credential.chain):
        return f"the chain {problem}"
    if error.reason in _NOT_THE_KEY:
        other = foreign_key_problem(credential.chain, credential.key)
        return other or openssl_words(error)
    return openssl_words(error)


def authority_context(ca_file: Path) -> ssl.SSLContext:
    """Return a client-side context for an authority: it trusts a file beside the system's roots.

    Raises:
        ConfigError: the file cannot be used.
    """
    context = ssl.create_default_context()
    # The certificates of private authorities often lack extensions that the strict check wants,
    # and the file may have an intermediate certificate without its root.
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
