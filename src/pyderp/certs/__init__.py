"""Certificates of a relay: from files, self-signed, or from an authority by ACME."""

from __future__ import annotations

from pyderp.certs.manual import ManualCertificates
from pyderp.certs.source import CertificateInfo, CertificateSource
from pyderp.config import ManualTLS, TLSSettings
from pyderp.keys import NodePublic

__all__ = ["CertificateInfo", "CertificateSource", "make_certificates"]


def make_certificates(tls: TLSSettings, server: NodePublic) -> CertificateSource:
    """What gives a relay its certificates.

    Settings and files are checked at once; nobody is asked over the network before
    `CertificateSource.start`.

    Args:
        server: the relay's key, for the meta certificate.

    Raises:
        ConfigError: a setting or a file that cannot be used.
    """
    if isinstance(tls, ManualTLS):
        return ManualCertificates(tls.certdir, tls.hostname, server)
    # Not at the top: it brings an HTTP library with it.
    from pyderp.certs.acme import ACMECertificates

    return ACMECertificates(tls, server)
