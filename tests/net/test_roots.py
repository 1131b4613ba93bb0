"""The roots that we bring along."""

from __future__ import annotations

import hashlib

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from pyderp.net.roots import LETS_ENCRYPT_ROOTS

ROOTS = x509.load_pem_x509_certificates(LETS_ENCRYPT_ROOTS.encode())


def test_they_are_those_that_let_s_encrypt_publishes() -> None:
    prints = {
        root.subject.rfc4514_string(): hashlib.sha256(root.public_bytes(Encoding.DER)).hexdigest()
        for root in ROOTS
    }
    group = "O=Internet Security Research Group,C=US"
    assert prints == {
        f"CN=ISRG Root X1,{group}": (
            "96bcec06264976f37460779acf28c5a7cfe8a3c0aae11a8ffcee05c0bddf08c6"
        ),
        f"CN=ISRG Root X2,{group}": (
            "69729b8e15a86efc177a57afb7171dfc64add28c2fca8cf1507e34453ccb1470"
        ),
        "CN=Root YE,O=ISRG,C=US": (
            "e14ffcad5b0025731006caa43a121a22d8e9700f4fb9cf852f02a708aa5d5666"
        ),
        "CN=Root YR,O=ISRG,C=US": (
            "e57b7e6f150c419102e8d5c055729ff967b9d1a829bf00cec89ca604ebf4a86f"
        ),
    }


@pytest.mark.parametrize("root", ROOTS, ids=lambda root: root.subject.rfc4514_string())
def test_each_is_an_authority_that_signed_itself(root: x509.Certificate) -> None:
    root.verify_directly_issued_by(root)
    constraints = root.extensions.get_extension_for_class(x509.BasicConstraints)
    assert constraints.critical
    assert constraints.value.ca
