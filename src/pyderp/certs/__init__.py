"""Certificates of a relay: from files, self-signed, or from a certificate authority by ACME."""

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
    """Return the source of a relay's certificates.

    Settings and files are checked here; no authority is asked before `CertificateSource.start`.

    Raises:
        ConfigError: a setting or a file cannot be used.
        MissingExtra: the settings ask for ACME, and the extra `relay` is not installed.
    """
    # Imported here: both need a library for X.509, and ACME one for HTTP, which a relay without
    # TLS does not need.
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
    """Return the class of the source that gets certificates by ACME.

    Raises:
        MissingExtra: the extra `relay` is not installed.
    """
    with needs("relay", "certificates by ACME"):
        from pyderp.certs.acme import ACMECertificates

    return ACMECertificates
