"""A certificate authority without a network."""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from pyderp.addresses import parse_ip
from pyderp.certs.leaf import pem_of_key


class FakeAuthority:
    """Issues certificates at once, unless the test sets a failure (an `Authority`)."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, int]] = []
        self.advice_asked = 0
        self.failure: Exception | None = None
        self.lifetime = timedelta(days=90)
        self.age = timedelta(minutes=1)
        self.renew_at: float | None = None
        self.advice_failure: Exception | None = None
        self.names = ""
        """The name that it certifies instead of the requested one."""
        self.before: Callable[[], None] = lambda: None
        """Called within a request."""
        self.before_advice: Callable[[], None] = lambda: None

    def obtain(self, subject: str, attempt: int) -> tuple[bytes, bytes]:
        self.asked.append((subject, attempt))
        self.before()
        if self.failure is not None:
            raise self.failure
        return issue(self.names or subject, self.lifetime, self.age)

    def renewal(self, chain: bytes) -> tuple[float | None, float]:
        self.advice_asked += 1
        self.before_advice()
        if self.advice_failure is not None:
            raise self.advice_failure
        return self.renew_at, time.time() + 3600


_CA_KEY = ec.generate_private_key(ec.SECP256R1())


def issue(
    subject: str,
    lifetime: timedelta = timedelta(days=90),
    age: timedelta = timedelta(days=1),
    *,
    self_signed: bool = False,
) -> tuple[bytes, bytes]:
    """Return a certificate and its key, as PEM.

    Args:
        self_signed: signed by its own key; issuer and subject have the same name in any case.
    """
    key = ec.generate_private_key(ec.SECP256R1())
    address = parse_ip(subject)
    name = x509.DNSName(subject) if address is None else x509.IPAddress(address)
    issuer = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "Fake authority")])
    start = datetime.now(UTC) - age
    certificate = (
        x509.CertificateBuilder()
        .subject_name(issuer)
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(start)
        .not_valid_after(start + lifetime)
        .add_extension(x509.SubjectAlternativeName([name]), critical=False)
        .sign(key if self_signed else _CA_KEY, hashes.SHA256())
    )
    return certificate.public_bytes(serialization.Encoding.PEM), pem_of_key(key)
