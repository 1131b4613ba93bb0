"""Certificates of a relay: from files, self-signed, or from an authority by ACME."""

from __future__ import annotations

from pyderp.certs.context import ServerContexts, meta_certificate
from pyderp.certs.credential import CertificateInfo, CertificateSource, Credential
from pyderp.certs.manual import ManualCertificates, manual_paths
from pyderp.config import ManualTLS, TLSSettings

__all__ = [
    "CertificateInfo",
    "CertificateSource",
    "Credential",
    "ServerContexts",
    "make_certificates",
    "meta_certificate",
]


def make_certificates(tls: TLSSettings) -> CertificateSource:
    """The source of a relay's certificates.

    Settings and files are checked at once; no authority is asked before
    `CertificateSource.start`.

    Raises:
        ConfigError: a setting or a file that cannot be used.
    """
    if isinstance(tls, ManualTLS):
        return ManualCertificates(
            tls.certdir,
            tls.hostname,
            files=None if tls.cert_file is None else manual_paths(tls),
            any_server_name=tls.any_server_name,
        )
    # Not at the top: it brings an HTTP library with it.
    from pyderp.certs.acme import ACMECertificates

    return ACMECertificates(tls)
