"""TLS contexts of a relay: its certificate chain with the meta certificate last."""

from __future__ import annotations

import contextlib
import errno
import os
import ssl
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final, TypeAlias

from pyderp.certs.leaf import utc_now
from pyderp.errors import ConfigError
from pyderp.keys import NodePublic
from pyderp.wire.metacert import make_meta_certificate

__all__ = [
    "REFUSE_NAME",
    "OnName",
    "authority_context",
    "meta_certificate",
    "plain_context",
    "server_context",
]

OnName: TypeAlias = Callable[[ssl.SSLObject, str | None, ssl.SSLContext], int | None]
"""Called with the name that a client asks for; gives an alert, or `None` to go on."""

REFUSE_NAME: Final = ssl.ALERT_DESCRIPTION_INTERNAL_ERROR
"""The alert for a name that there is no certificate for; `derper` sends it."""


def plain_context(protocol: str = "http/1.1") -> ssl.SSLContext:
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


def server_context(
    chain: bytes, key: bytes, meta: bytes, *, where: str = "", protocol: str = "http/1.1"
) -> ssl.SSLContext:
    """The context that presents a certificate.

    Args:
        chain: the leaf, then who vouches for it; PEM. Text around them may have any encoding.
        key: the leaf's private key, PEM, not encrypted.
        meta: the meta certificate, PEM; comes last. Empty: none.
        where: the files they are from, for the error.

    Raises:
        ConfigError: key and certificate do not fit, or one of them is none.
    """
    context = plain_context(protocol)
    try:
        # The ssl module takes both only from files.
        with _as_file(chain.rstrip() + b"\n" + meta) as chain_file, _as_file(key) as key_file:
            context.load_cert_chain(chain_file, key_file, password=_no_password)
    except (ssl.SSLError, OSError) as e:
        raise ConfigError(f"cannot use {where or 'the certificate'}: {_explain(e)}") from e
    return context


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
        file = stack.enter_context(tempfile.NamedTemporaryFile("wb", suffix=".pem"))
        file.write(data)
        file.flush()
        yield file.name


def _no_password() -> str:
    raise OSError(errno.EACCES, "the key is encrypted; give one without a password")


def _explain(error: OSError) -> str:
    reason = getattr(error, "reason", None)
    if reason == "KEY_VALUES_MISMATCH":
        return "the key does not belong to the certificate"
    if isinstance(error, ssl.SSLError) and reason is None:
        return "the key is no private key in PEM form, or not a whole one"
    return str(reason or error.strerror or error)


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
