"""Checks of a server's certificate beyond those of OpenSSL, and the errors of both.

OpenSSL verifies chains and, in most cases, names. This module checks a certificate that must be
for another name than the one in the handshake, and a pinned one.
"""

from __future__ import annotations

import contextlib
import datetime
import hashlib
import inspect
import ssl
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final

from cryptography import x509

from pyderp import certnames
from pyderp.addresses import ip_literal
from pyderp.errors import CertificateError, FailureReason, PinMismatch, TLSError
from pyderp.maps.region import PIN_PREFIX
from pyderp.text import name_words, printable
from pyderp.wire.metacert import META_NAME_PREFIX, common_name_untrusted

__all__ = [
    "UNNAMED",
    "Rule",
    "describe",
    "intercepted",
    "interceptor",
    "is_for",
    "make_rule",
    "presented_chain",
    "quotable",
    "reading",
    "self_signed_issuer",
    "verify_by_program",
]

UNNAMED: Final = "the unnamed server"
"""Name in errors for a node of a map that has no HostName."""
_UNREADABLE: Final = (
    ValueError,
    TypeError,  # a name that is a string of bits
    x509.DuplicateExtension,
    x509.UnsupportedGeneralNameType,
    x509.InvalidVersion,
)
_NAMES_SHOWN: Final = 4
"""Names of a certificate in an error; a certificate may have hundreds."""
_LONGEST_TEXT: Final = 120
# Makers of firewalls that intercept TLS, by a part of the issuer's name or by its e-mail address.
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
    """Parse a certificate, for use within the block: its fields are parsed when they are read.

    Raises:
        CertificateError: the certificate, or a field that the block reads, is malformed.
    """
    with warnings.catch_warnings():
        # They are about oddities of the server's certificate, which the program cannot fix.
        warnings.simplefilter("ignore")
        try:
            yield x509.load_der_x509_certificate(der)
        except _UNREADABLE as e:
            raise CertificateError(f"the certificate cannot be read: {e}") from e


def describe(der: bytes) -> str:
    """Returns names and issuer of a certificate, for the text of an error."""
    try:
        with reading(der) as certificate:
            names = certnames.alternative_names(certificate)
            issuer = certificate.issuer.rfc4514_string()
    except CertificateError:
        return "the certificate cannot be read"
    shown = ", ".join(names[:_NAMES_SHOWN]) + (", …" if len(names) > _NAMES_SHOWN else "")
    by = quotable(issuer) or "an unnamed issuer"
    return f"it is for {quotable(shown) or 'no name'}, issued by {by}"


def intercepted(chain: Sequence[bytes]) -> str:
    """Returns a warning for the end of an error if a known firewall issued the certificate."""
    maker = interceptor(chain[0]) if chain else None
    return f"; firewalls of {maker} present such certificates to intercept TLS" if maker else ""


def self_signed_issuer(der: bytes) -> str | None:
    """Returns the issuer of a self-signed certificate; `None` for another or a malformed one."""
    try:
        with reading(der) as certificate:
            if certificate.issuer != certificate.subject:
                return None
            return quotable(certificate.issuer.rfc4514_string())
    except CertificateError:
        return None


def is_for(der: bytes, name: str) -> bool:
    """Whether a name is among a certificate's alternative names.

    Raises:
        CertificateError: the certificate is malformed.
    """
    with reading(der) as certificate:
        return certnames.is_for(certificate, name)


def interceptor(der: bytes) -> str | None:
    """Returns the maker of the firewall that issued a certificate; `None`: no known one."""
    try:
        with reading(der) as certificate:
            issuer = certificate.issuer.rfc4514_string().lower()
            names = certnames.subject_names(certificate)
            emails = [] if names is None else names.get_values_for_type(x509.RFC822Name)
    except CertificateError:
        return None
    addresses = " ".join(emails).lower()
    makers = [maker for part, maker in _BY_ISSUER.items() if part in issuer]
    makers += [maker for address, maker in _BY_EMAIL.items() if address in addresses]
    return makers[0] if makers else None


def quotable(text: str) -> str:
    """Returns text of a certificate as it may stand in a line of a log."""
    return printable(text, _LONGEST_TEXT)


_DER: Final = 2
"""`_ssl.ENCODING_DER`."""
_REASONS: Final = {
    # Codes of OpenSSL: X509_V_ERR_…
    9: FailureReason.CERTIFICATE_NOT_YET_VALID,  # CERT_NOT_YET_VALID
    10: FailureReason.CERTIFICATE_EXPIRED,  # CERT_HAS_EXPIRED
    62: FailureReason.CERTIFICATE_OTHER_NAME,  # HOSTNAME_MISMATCH
    64: FailureReason.CERTIFICATE_OTHER_NAME,  # IP_ADDRESS_MISMATCH
    # Refused whichever authorities are trusted, so that more of them do not help.
    7: FailureReason.CERTIFICATE_UNUSABLE,  # CERT_SIGNATURE_FAILURE
    22: FailureReason.CERTIFICATE_UNUSABLE,  # CERT_CHAIN_TOO_LONG
    23: FailureReason.CERTIFICATE_UNUSABLE,  # CERT_REVOKED
    24: FailureReason.CERTIFICATE_UNUSABLE,  # INVALID_CA
    26: FailureReason.CERTIFICATE_UNUSABLE,  # INVALID_PURPOSE
    66: FailureReason.CERTIFICATE_UNUSABLE,  # EE_KEY_TOO_SMALL
    67: FailureReason.CERTIFICATE_UNUSABLE,  # CA_KEY_TOO_SMALL
    68: FailureReason.CERTIFICATE_UNUSABLE,  # CA_MD_TOO_WEAK
}


@dataclass(frozen=True, kw_only=True)
class Rule:
    """The conditions for a server's certificate."""

    server_name: str
    """The name to connect to, or an IP address; sent in the handshake unless it is an address."""

    chain: bool = True
    """Whether a trusted authority must have signed the certificate."""

    other_name: str = ""
    """If set, the certificate must be for this name, and need not be for `server_name`."""

    pin: str | None = None
    """SHA-256 of the certificate, 64 lower-case hex digits; `chain` is then false."""

    @property
    def server(self) -> str:
        """The server as errors and logs name it."""
        return self.server_name or UNNAMED

    @property
    def hostname(self) -> bool:
        """Whether OpenSSL compares the names."""
        return self.chain and not self.other_name

    def check(self, chain: Sequence[bytes], *, now: datetime.datetime) -> None:
        """Check a pin or `other_name`; to be called after the handshake, before data is sent.

        Args:
            chain: DER certificates, as presented, the server's own first.
            now: aware time.

        Raises:
            PinMismatch: another certificate is pinned.
            CertificateError: it is for another name or time.
        """
        if not chain and (self.chain or self.pin is not None):
            # Possible with ciphers without certificates, which a program's `prepare` may allow.
            text = "the server presented no certificate"
            name = self.server_name
            raise CertificateError(f"{name}: {text}", host=name, short=text)
        if self.pin is not None:
            host = "" if ip_literal(self.server_name) else self.server_name
            _check_pin(chain, self.pin, host, now)
        elif self.other_name and not is_for(chain[0], self.other_name):
            raise CertificateError(
                f"certificate of {self.server}: not valid for {self.other_name!r}, the name"
                f" it must have; {describe(chain[0])}",
                reason=FailureReason.CERTIFICATE_OTHER_NAME,
            )

    def explain(
        self, error: ssl.SSLCertVerificationError, chain: Sequence[bytes]
    ) -> CertificateError:
        """Returns the error to raise for a certificate that OpenSSL refused."""
        problem = error.verify_message.rstrip(".")
        wanted = f" (to be for {self.other_name!r})" if self.other_name else ""
        seen = f"; {describe(chain[0])}" if chain else ""
        text = f"{wanted}: {problem}{seen}{intercepted(chain)}"
        return CertificateError(
            f"certificate of {self.server}{text}",
            reason=_REASONS.get(error.verify_code),
            host=self.server_name,
            short=f"certificate{text}",
        )


def make_rule(server_name: str, *, cert_name: str = "", insecure: bool = False) -> Rule:
    """Returns the rule for a node of the DERP map (`tailcfg.DERPNode`).

    Args:
        server_name: host name or IP address.
        cert_name: `CertName`: another name that the certificate must be for; or `sha256-raw:`
            and 64 lower-case hex digits, the SHA-256 of the certificate, which then needs no
            authority. The same name as `server_name` means the same as empty.
        insecure: `InsecureForTests`: no verification, unless `cert_name` is set.

    Raises:
        TLSError: one of the names cannot be a server's.
    """
    name = _bare(server_name)
    if cert_name.startswith(PIN_PREFIX):
        return Rule(server_name=name, chain=False, pin=cert_name.removeprefix(PIN_PREFIX))
    other = _bare(cert_name)
    if other == name:
        other = ""
    return Rule(server_name=name, chain=not insecure or bool(other), other_name=other)


def verify_by_program(
    verify: Callable[[str, tuple[bytes, ...]], object], name: str, chain: tuple[bytes, ...]
) -> None:
    """Let a function of the program check a certificate that has passed all other checks.

    Raises:
        CertificateError: the function raised an error, or returned a value other than `None`:
            otherwise a function that returns False or is `async` would accept everything.
    """
    try:
        answer = verify(name, chain)
    except CertificateError:
        raise
    except Exception as e:
        # With its type, as the error may come from a mistake in the function.
        detail = f": {e}" if str(e) else ""
        text = f"TLSConfig.verify refused it by {type(e).__name__}{detail}"
        raise CertificateError(
            f"certificate of {name}: {text}", host=name, short=f"certificate: {text}"
        ) from e
    if answer is not None:
        if inspect.iscoroutine(answer):
            answer.close()
        raise CertificateError(
            f"certificate of {name}: TLSConfig.verify returned a {type(answer).__name__}; it must "
            "return None, or raise CertificateError to refuse"
        )


def presented_chain(tls: ssl.SSLObject) -> tuple[bytes, ...]:
    """Returns the certificates that the server sent, DER, in its order; empty if none came yet.

    Not the verified chain, which never contains the relay's meta certificate.
    """
    if sys.version_info >= (3, 13):
        return tuple(tls.get_unverified_chain())
    # Before Python 3.13 the method exists, but is private and returns objects of another class.
    private: Any = tls
    chain = private._sslobj.get_unverified_chain() or ()  # noqa: SLF001
    return tuple(certificate.public_bytes(_DER) for certificate in chain)


def _check_pin(chain: Sequence[bytes], pin: str, host: str, now: datetime.datetime) -> None:
    others = [der for der in chain if not common_name_untrusted(der).startswith(META_NAME_PREFIX)]
    # Go accepts the pinned certificate anywhere in the chain. But the handshake proves only that
    # the server has the key of the first certificate: any server could present the pinned one
    # behind its own.
    if not others or others[0] != chain[0]:
        raise PinMismatch("expected cert not presented: a relay's meta certificate took its place")
    got = hashlib.sha256(chain[0]).hexdigest()
    if got != pin:
        raise PinMismatch(
            f"cert hash does not match expected cert hash: expected {quotable(pin)}, got {got};"
            f" {describe(chain[0])}"
        )
    # Name and dates as well: a pin replaces the authority only.
    if host and not is_for(chain[0], host):
        text = f": {describe(chain[0])}"
        raise CertificateError(
            f'cert does not match server name "{quotable(host)}"{text}',
            reason=FailureReason.CERTIFICATE_OTHER_NAME,
            host=host,
            short=f"cert does not match the server name{text}",
        )
    with reading(chain[0]) as certificate:
        start, end = certificate.not_valid_before_utc, certificate.not_valid_after_utc
    if now > end:
        raise CertificateError(
            f"cert expired {end}; {describe(chain[0])}", reason=FailureReason.CERTIFICATE_EXPIRED
        )
    if now < start:
        raise CertificateError(
            f"cert not yet valid until {start}; is your clock correct?",
            reason=FailureReason.CERTIFICATE_NOT_YET_VALID,
        )
    if len(others) > 1:
        raise PinMismatch(
            "unexpected multiple certs presented", reason=FailureReason.PIN_OF_SEVERAL
        )


def _bare(server_name: str) -> str:
    """Returns a name as certificates have it: without brackets, zone or last dot, in ASCII."""
    name = server_name.removeprefix("[").removesuffix("]")
    if ":" in name:
        return name.partition("%")[0]
    name = name.rstrip(".")
    try:
        return name.encode("idna").decode("ascii")
    except UnicodeError as e:
        raise TLSError(f"{server_name!r} cannot be a server's name: {name_words(e)}") from e
