"""A certificate of a stranger, to look at."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator
from typing import Final

from cryptography import x509

from pyderp.errors import CertificateError

__all__ = ["reading"]

_UNREADABLE: Final = (
    ValueError,
    TypeError,  # a name that is a string of bits
    x509.DuplicateExtension,
    x509.UnsupportedGeneralNameType,
    x509.InvalidVersion,
)


@contextlib.contextmanager
def reading(der: bytes) -> Iterator[x509.Certificate]:
    """The certificate that `der` is, to be read within the block, as much is parsed only then.

    Raises:
        CertificateError: it cannot be read, or not what the block wants of it.
    """
    with warnings.catch_warnings():
        # About peculiarities of a certificate that is not ours.
        warnings.simplefilter("ignore")
        try:
            yield x509.load_der_x509_certificate(der)
        except _UNREADABLE as e:
            raise CertificateError(f"the certificate cannot be read: {e}") from e
