"""Certificate and key files that cannot be used, and the reason in each error."""

from __future__ import annotations

from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_private_key,
)

from pyderp.certs.manual import ManualCertificates
from pyderp.certs.pem import chain_problem, key_problem
from pyderp.errors import ConfigError
from tests.server.certificates import write_pair

from .handshake import NAME

DAMAGED = b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"


def pair(folder: Path, name: str = NAME) -> tuple[bytes, bytes]:
    write_pair(folder, name)
    return (folder / f"{name}.crt").read_bytes(), (folder / f"{name}.key").read_bytes()


def refusal(folder: Path, chain: bytes, key: bytes) -> str:
    """Return the error for the two files."""
    (folder / f"{NAME}.crt").write_bytes(chain)
    (folder / f"{NAME}.key").write_bytes(key)
    with pytest.raises(ConfigError) as caught:
        ManualCertificates(folder, NAME)
    return str(caught.value)


def test_a_good_pair_has_no_problem(tmp_path: Path) -> None:
    chain, key = pair(tmp_path)
    for line_break in (b"\n", b"\r\n"):
        assert chain_problem(chain.replace(b"\n", line_break) * 2) == ""
        assert key_problem(key.replace(b"\n", line_break)) == ""


def test_an_encrypted_key_is_valid_pem(tmp_path: Path) -> None:
    write_pair(tmp_path, NAME, password="secret")
    assert key_problem((tmp_path / f"{NAME}.key").read_bytes()) == ""


def test_a_missing_line_break_between_keys_is_reported(
    tmp_path: Path,
) -> None:
    chain, key = pair(tmp_path)
    problem = refusal(tmp_path, chain, key.rstrip() + key)
    assert problem.endswith("the key lacks the line break between two of its parts")


def test_a_chain_in_the_wrong_order_is_reported_as_such(tmp_path: Path) -> None:
    """The first certificate is for the name: otherwise that would be the error."""
    chain, key = pair(tmp_path)
    other, _ = pair(tmp_path, "other.example.com")
    problem = refusal(tmp_path, pair(tmp_path)[0] + other + chain, key)
    assert problem.endswith(
        "the key belongs to certificate 3 of the chain: the server's own must come first"
    )


@pytest.mark.parametrize(
    ("second", "problem"),
    [
        (DAMAGED, "is damaged: certificate 2 of 2 cannot be read"),
        (DAMAGED[:40], "is incomplete: only 1 of 2 certificates have an end"),
    ],
)
def test_a_bad_later_certificate_is_reported_by_its_number(
    tmp_path: Path, second: bytes, problem: str
) -> None:
    chain, key = pair(tmp_path)
    assert problem in refusal(tmp_path, chain + second, key)


@pytest.mark.parametrize("line_break", [b"", b"\\n"])
def test_a_chain_in_one_line_is_reported_as_such(tmp_path: Path, line_break: bytes) -> None:
    """Like in an environment variable, or in a settings file of another program."""
    chain, key = pair(tmp_path)
    problem = refusal(tmp_path, chain.replace(b"\n", line_break), key)
    assert problem.endswith("lacks the line breaks that PEM has")


def test_other_content_is_recognised_and_named(tmp_path: Path) -> None:
    chain, key = pair(tmp_path)
    private = load_pem_private_key(key, None)
    assert isinstance(private, ec.EllipticCurvePrivateKey)
    request = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([]))
    public = private.public_key()
    own = x509.load_pem_x509_certificate(chain)
    swapped = "are the two files swapped?"
    for data, problem in (
        (key, f"but a private key: {swapped}"),
        (own.public_bytes(Encoding.DER), "it seems to be in DER form"),
        (
            request.sign(private, hashes.SHA256()).public_bytes(Encoding.PEM),
            "but a certificate request",
        ),
        (b"", "it is empty"),
    ):
        text = refusal(tmp_path, data, key)
        assert "holds no certificate in PEM form" in text
        assert text.endswith(problem) or problem in text
    for data, problem in (
        (chain, f"but a certificate: {swapped}"),
        (private.private_bytes(Encoding.DER, PrivateFormat.PKCS8, NoEncryption()), "in DER form"),
        (
            public.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo),
            "but a public key",
        ),
        (b"", "it is empty"),
        (key[:100], "it is incomplete"),
    ):
        text = refusal(tmp_path, chain, data)
        assert "the key is not a private key in PEM form" in text
        assert problem in text
