"""Finds out what is wrong with a file of certificates or a key, and says what to do.

The errors of OpenSSL and cryptography usually say that something could not be read, and not
whether it was the chain or the key.
"""

from __future__ import annotations

import re
from typing import Final

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    PublicFormat,
    load_pem_private_key,
)

__all__ = ["chain_problem", "foreign_key_problem", "key_problem"]

_BEGIN: Final = re.compile(rb"-----BEGIN ([A-Z0-9 ]+)-----")
_CERTIFICATE: Final = re.compile(
    rb"-----BEGIN ((?:X509 )?CERTIFICATE)-----.+?-----END \1-----", re.DOTALL
)
_JOINED: Final = re.compile(rb"-----END [A-Z0-9 ]+----------BEGIN")
"""Two PEM blocks without a line break between them, as `cat` writes if the first file lacks its
last line break."""
_DER: Final = b"\x30"
"""The first byte of certificates and keys in DER form: an ASN.1 SEQUENCE."""


def chain_problem(chain: bytes) -> str:
    """Return why a chain cannot be read, as the end of a sentence; empty if it can be read."""
    labels = _labels(chain)
    count = len([each for each in labels if each in ("CERTIFICATE", "X509 CERTIFICATE")])
    if not count:
        return f"holds no certificate in PEM form{_instead(chain, labels)}"
    if _JOINED.search(chain):
        return "lacks the line break between two of its parts"
    if b"\n" not in chain.strip():
        return "lacks the line breaks that PEM has"
    whole = [found[0] for found in _CERTIFICATE.finditer(chain)]
    for number, each in enumerate(whole, 1):
        try:
            x509.load_pem_x509_certificate(each)
        except ValueError:
            if count > 1:
                return f"is damaged: certificate {number} of {count} cannot be read"
            return "holds no certificate in PEM form that can be read"
    if len(whole) < count:
        if count > 1:
            return f"is incomplete: only {len(whole)} of {count} certificates have an end"
        return "holds no certificate in PEM form that is complete"
    return ""


def key_problem(key: bytes) -> str:
    """Return the same as `chain_problem` for a private key; empty too if it has a password."""
    labels = _labels(key)
    if not any(each.endswith("PRIVATE KEY") for each in labels):
        return f"is not a private key in PEM form{_instead(key, labels)}"
    if _JOINED.search(key):
        return "lacks the line break between two of its parts"
    try:
        load_pem_private_key(key, None)
    except TypeError:
        return ""  # it has a password
    except (ValueError, UnsupportedAlgorithm):
        return "is not a private key in PEM form: it is incomplete, or of an unsupported kind"
    return ""


def foreign_key_problem(chain: bytes, key: bytes) -> str:
    """Return which later certificate of a chain a key belongs to, as text; empty if to none."""
    wanted = _public(load_pem_private_key(key, None).public_key())
    for number, certificate in enumerate(x509.load_pem_x509_certificates(chain), 1):
        if number > 1 and _public(certificate.public_key()) == wanted:
            return (
                f"the key belongs to certificate {number} of the chain: the server's own must "
                "come first"
            )
    return ""


def _public(key: object) -> bytes:
    encoded: bytes = key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)  # type: ignore[attr-defined]
    return encoded


def _labels(data: bytes) -> list[str]:
    return [found.decode("ascii") for found in _BEGIN.findall(data)]


def _instead(data: bytes, labels: list[str]) -> str:
    """Return what a file is instead of the wanted kind of PEM, as the end of a sentence."""
    if labels:
        kind = labels[0].lower()
        swapped = "private key" in kind or kind == "certificate"
        return f", but a {kind}{': are the two files swapped?' if swapped else ''}"
    if data.startswith(_DER):
        return "; it seems to be in DER form, which `openssl … -inform der` makes PEM of"
    return "" if data.strip() else "; it is empty"
