"""Certificates of a relay: from files, self-signed, or from an authority by ACME."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pyderp.certs.context import ServerContexts, meta_certificate
from pyderp.certs.credential import CertificateInfo, CertificateSource, Credential
from pyderp.config import ManualTLS, TLSSettings
from pyderp.extras import needs

if TYPE_CHECKING:
    from pyderp.certs.acme import ACMECertificates

__all__ = [
    "CertificateInfo",
    "CertificateSource",
    "Credential",
    "ServerContexts",
    "import_acme",
    "make_certificates",
    "meta_certificate",
]


def make_certificates(tls: TLSSettings) -> CertificateSource:
    """The source of a relay's certificates.

    Settings and files are checked at once; no authority is asked before
    `CertificateSource.start`.

    Raises:
        ConfigError: a setting or a file that cannot be used.
        MissingExtra: certificates by ACME without the extra `relay`.
    """
    # Not at the top: both bring a library for X.509 with them, and ACME one for HTTP.
    if isinstance(tls, ManualTLS):
        from pyderp.certs.manual import ManualCertificates, manual_paths

        return ManualCertificates(
            tls.certdir,
            tls.hostname,
            files=None if tls.cert_file is None else manual_paths(tls),
            any_server_name=tls.any_server_name,
        )
    return import_acme()(tls)


def import_acme() -> type[ACMECertificates]:
    """The source of certificates by ACME.

    Raises:
        MissingExtra: the extra `relay` is not installed.
    """
    with needs("relay", "certificates by ACME"):
        from pyderp.certs.acme import ACMECertificates

    return ACMECertificates
