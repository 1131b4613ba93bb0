"""What a server's certificate says: its names, its issuer, and whether a firewall issued it."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator, Sequence
from typing import Final

from cryptography import x509

from pyderp import certnames
from pyderp.errors import CertificateError
from pyderp.text import printable

__all__ = [
    "describe",
    "intercepted",
    "interceptor",
    "is_for",
    "quotable",
    "reading",
    "self_signed_issuer",
]

_UNREADABLE: Final = (
    ValueError,
    TypeError,  # a name that is a string of bits
    x509.DuplicateExtension,
    x509.UnsupportedGeneralNameType,
    x509.InvalidVersion,
)
_NAMES_TOLD: Final = 4
"""Names of a certificate in an error; one may have hundreds."""
_LONGEST_TEXT: Final = 120
_BY_ISSUER: Final = {
    "aruba": "Aruba Networks",
    "cisco": "Cisco",
    "fortinet": "Fortinet",
    "palo alto networks": "Palo Alto Networks",
    "pan-fw": "Palo Alto Networks",
    "sophos": "Sophos",
    "unifi": "Ubiquiti",
    "ubiquiti": "Ubiquiti",
}
_BY_EMAIL: Final = {
    "support@fortinet.com": "Fortinet",
    "mobile@huawei.com": "Huawei",
}


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


def describe(der: bytes) -> str:
    """The names and the issuer of a certificate, for the text of an error."""
    try:
        with reading(der) as certificate:
            names = certnames.alternative_names(certificate)
            issuer = certificate.issuer.rfc4514_string()
    except CertificateError:
        return "the certificate cannot be read"
    told = ", ".join(names[:_NAMES_TOLD]) + (", …" if len(names) > _NAMES_TOLD else "")
    return f"it is for {quotable(told) or 'no name'}, issued by {quotable(issuer) or 'nobody'}"


def intercepted(chain: Sequence[bytes]) -> str:
    """A warning, as the end of an error, if a known kind of firewall sits in between."""
    maker = interceptor(chain[0]) if chain else None
    return f"; firewalls of {maker} present such certificates when they read along" if maker else ""


def self_signed_issuer(der: bytes) -> str | None:
    """The issuer of a certificate that signed itself; `None`: it did not, or it is unreadable."""
    try:
        with reading(der) as certificate:
            if certificate.issuer != certificate.subject:
                return None
            return quotable(certificate.issuer.rfc4514_string())
    except CertificateError:
        return None


def is_for(der: bytes, name: str) -> bool:
    """Whether a name is among a certificate's alternative names."""
    with reading(der) as certificate:
        return certnames.is_for(certificate, name)


def interceptor(der: bytes) -> str | None:
    """The maker of the firewall that issued a certificate, if it is one that is known."""
    try:
        with reading(der) as certificate:
            issuer = certificate.issuer.rfc4514_string().lower()
            emails = _emails(certificate)
    except CertificateError:
        return None
    for part, maker in _BY_ISSUER.items():
        if part in issuer:
            return maker
    for address, maker in _BY_EMAIL.items():
        if address in emails:
            return maker
    return None


def _emails(certificate: x509.Certificate) -> str:
    try:
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName)
    except x509.ExtensionNotFound:
        return ""
    return " ".join(names.value.get_values_for_type(x509.RFC822Name)).lower()


def quotable(text: str) -> str:
    """Text of a certificate, for a line of a log."""
    return printable(text, _LONGEST_TEXT)
