"""Answers to the challenges of a certificate authority, while a challenge is pending.

The thread of the ACME session stores them, and the event loop looks them up. Each access is one
operation on a dictionary, which is atomic, so there is no lock.
"""

from __future__ import annotations

import contextlib
import datetime
import hashlib
from collections.abc import Iterator
from typing import Final

from cryptography import x509

from pyderp.certs.context import ACME_TLS
from pyderp.certs.credential import Credential, utc_now
from pyderp.certs.leaf import self_signed
from pyderp.errors import RemoteProtocolError
from pyderp.wire.clienthello import parse_client_hello_untrusted

__all__ = ["Challenges", "challenge_credential"]

_ACME_IDENTIFIER: Final = x509.ObjectIdentifier("1.3.6.1.5.5.7.1.31")
_OCTET_STRING_OF_32: Final = b"\x04\x20"


class Challenges:
    """The answers to the pending challenges."""

    def __init__(self) -> None:
        self._bodies: dict[str, bytes] = {}
        self._credentials: dict[str, Credential] = {}

    @contextlib.contextmanager
    def by_http(self, path: str, authorization: str) -> Iterator[None]:
        """Answer HTTP-01 at this path while the block runs (RFC 8555 §8.3)."""
        self._bodies[path] = authorization.encode("ascii")
        try:
            yield
        finally:
            del self._bodies[path]

    @contextlib.contextmanager
    def by_tls(self, name: str, authorization: str) -> Iterator[None]:
        """Answer TLS-ALPN-01 for this name while the block runs (RFC 8737)."""
        self._credentials[name] = challenge_credential(name, authorization)
        try:
            yield
        finally:
            del self._credentials[name]

    @property
    def tls_pending(self) -> bool:
        """Whether any challenge by TLS is pending."""
        return bool(self._credentials)

    def body(self, path: str) -> bytes | None:
        """Return the body that answers HTTP-01 at a path, if that is pending."""
        return self._bodies.get(path)

    def credential(self, hello: memoryview) -> Credential | None:
        """Return the certificate that answers TLS-ALPN-01, if the ClientHello asks for it."""
        if not self._credentials:
            return None
        try:
            asked = parse_client_hello_untrusted(hello)
        except RemoteProtocolError:
            return None  # the handshake will fail and report it
        if asked is None or ACME_TLS.encode() not in asked.protocols:
            return None
        return self._credentials.get(asked.server_name.lower())


def challenge_credential(name: str, authorization: str) -> Credential:
    """Return a self-signed certificate that proves control over a name (RFC 8737 §3).

    Args:
        authorization: the key authorization; the certificate has its SHA-256 hash.
    """
    now = utc_now()
    day = datetime.timedelta(days=1)  # in both directions, should the clocks differ
    digest = hashlib.sha256(authorization.encode("ascii")).digest()
    proof = x509.UnrecognizedExtension(_ACME_IDENTIFIER, _OCTET_STRING_OF_32 + digest)
    # A fixed common name, as it may have 64 characters at most and the authority ignores it.
    return self_signed(
        "ACME challenge", x509.DNSName(name), (now - day, now + day), [(proof, True)]
    )
