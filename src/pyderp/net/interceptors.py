"""Firewalls that read along in TLS, known by the certificates they present (`blockblame`)."""

from __future__ import annotations

from typing import Final

from cryptography import x509

from pyderp.errors import CertificateError
from pyderp.net.certificate import reading

__all__ = ["interceptor"]

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
