"""Certificates from files: which are accepted, which clients get them, and which are made."""

from __future__ import annotations

import asyncio
import hashlib
import json
import re
import socket
import ssl
import stat
import subprocess
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, load_pem_private_key
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

import pyderp
from pyderp import ConfigError, ManualTLS
from pyderp.config import RelayConfig
from tests.interop.peers import need
from tests.interop.relays import Kind, Relay, Setup, each_derper, running
from tests.server.certificates import trusting_nobody, write_pair

from .support import BOUND, GetRelay, both, one_and_other

NAME = "relay.test"


def leaf(relay: Relay, server_name: str | None) -> bytes | str:
    """The certificate that a client gets for this name, or the alert."""
    with socket.create_connection((relay.address, relay.port), timeout=BOUND) as sock:
        try:
            with trusting_nobody().wrap_socket(sock, server_hostname=server_name) as tls:
                return tls.getpeercert(binary_form=True) or b""
        except ssl.SSLError as e:
            return e.reason or ""


@both
@pytest.mark.parametrize(
    ("setup", "server_name", "served"),
    [
        ("named", "localhost", True),
        ("named", "LOCALHOST", False),
        ("named", "localhost.localdomain", False),
        ("named", None, False),
        ("pinned", None, True),
        ("pinned", "localhost", True),
        ("pinned", "127.0.0.1", True),
        ("pinned", "192.0.2.1", True),
    ],
)
def test_the_requested_name_selects_the_certificate(
    kind: Kind, setup: Setup, server_name: str | None, served: bool, relays: GetRelay
) -> None:
    """A name's certificate goes to clients that request it, an address's to all.

    derper compares letter by letter.
    """
    served = served or (kind == "pyderp" and server_name == "LOCALHOST")
    relay = relays(kind, setup)
    shown = leaf(relay, server_name)
    if not served:
        assert shown == "TLSV1_ALERT_INTERNAL_ERROR"
        return
    assert isinstance(shown, bytes)
    if relay.pin is not None:
        assert relay.pin == f"sha256-raw:{hashlib.sha256(shown).hexdigest()}"


# Certificates made for an address


@one_and_other
def test_a_certificate_is_made_for_an_address(one: Kind, other: Kind, tmp_path: Path) -> None:
    """The same except for key, serial number and times; the other relay uses it, and so keeps the
    pin that clients have."""
    with running(one, "pinned", tmp_path) as relay:
        shown = leaf(relay, None)
        logged = re.search(r'\{"Name":"custom".*?\}', relay.log_text())
        assert logged is not None
        node = {"Name": "custom", "RegionID": 900, "HostName": "127.0.0.1", "CertName": relay.pin}
        assert node.items() <= json.loads(logged[0]).items()
    for suffix, mode in {"crt": 0o644, "key": 0o600}.items():
        assert stat.S_IMODE((tmp_path / f"127.0.0.1.{suffix}").stat().st_mode) == mode
    certificate = x509.load_pem_x509_certificate((tmp_path / "127.0.0.1.crt").read_bytes())
    assert certificate.public_bytes(Encoding.DER) == shown
    check_self_signed(certificate)
    text = (tmp_path / "127.0.0.1.key").read_bytes()
    assert text.startswith(b"-----BEGIN EC PRIVATE KEY-----")
    key = load_pem_private_key(text, None)
    assert isinstance(key, ec.EllipticCurvePrivateKey)
    assert key.public_key() == certificate.public_key()
    with running(other, "pinned", tmp_path) as second:
        assert second.pin == relay.pin
        assert leaf(second, None) == shown


def check_self_signed(certificate: x509.Certificate) -> None:
    names = certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME)
    assert [name.value for name in names] == ["127.0.0.1"]
    assert certificate.issuer == certificate.subject
    assert 2**64 < certificate.serial_number < 2**128
    lifetime = certificate.not_valid_after_utc - certificate.not_valid_before_utc
    assert 364 <= lifetime.days <= 367
    key = certificate.public_key()
    assert isinstance(key, ec.EllipticCurvePublicKey)
    assert isinstance(key.curve, ec.SECP256R1)
    extensions = certificate.extensions
    alternative = extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert [str(each.value) for each in alternative] == ["127.0.0.1"]
    usage = extensions.get_extension_for_class(x509.KeyUsage)
    assert usage.critical
    assert usage.value.digital_signature
    assert usage.value.key_encipherment
    assert not usage.value.key_cert_sign
    extended = extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    assert list(extended) == [ExtendedKeyUsageOID.SERVER_AUTH]
    assert not extensions.get_extension_for_class(x509.BasicConstraints).value.ca


# Certificates refused at the start


def refusal_of_derper(derper: Kind, certdir: Path, hostname: str) -> str:
    """Its last log line; empty if it starts."""
    command = [
        *(str(need(derper)), "-stun=false", "-http-port=-1", "-certmode=manual"),
        # A port that cannot be listened on ends it as well: by then the certificate was accepted.
        *("-a=192.0.2.254:443", f"-certdir={certdir}", f"-hostname={hostname}"),
        *("-c", str(certdir.parent / "derper.json")),
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=BOUND, check=False)
    assert done.returncode == 1, done.stderr
    last = done.stderr.splitlines()[-1]
    return "" if "cannot assign requested address" in last else last


def refusal_of(kind: Kind, certdir: Path, hostname: str) -> str:
    if kind == "pyderp":
        return refusal_of_ours(certdir, hostname)
    return refusal_of_derper(kind, certdir, hostname)


def refusal_of_ours(certdir: Path, hostname: str) -> str:
    async def main() -> None:
        tls = ManualTLS(certdir=certdir, hostname=hostname)
        async with pyderp.Relay(RelayConfig(tls=tls)):
            pass

    try:
        asyncio.run(main())
    except ConfigError as e:
        return str(e)
    return ""


@each_derper
@pytest.mark.parametrize(
    ("hostname", "file", "names", "expected"),
    [
        (NAME, NAME, [NAME], ""),
        (NAME, NAME, ["other.test", NAME], ""),
        (NAME, NAME, ["*.test"], ""),
        (NAME, NAME, ["RELAY.Test"], ""),
        (NAME, NAME, ["other.test"], NAME),
        # The common name does not count.
        (NAME, NAME, [], NAME),
        (NAME, "other.test", [NAME], NAME),
        ("192.0.2.1", "192.0.2.1", ["192.0.2.1"], ""),
        ("192.0.2.1", "192.0.2.1", ["192.0.2.2"], "192.0.2.1"),
        ("192.0.2.1", "none", [NAME], ""),
        # Colons are left out of the name of the file.
        ("::1", "1", ["::1"], ""),
        ("::1", "1", ["::2"], "::1"),
    ],
)
def test_both_refuse_the_same(
    derper: Kind, tmp_path: Path, hostname: str, file: str, names: list[str], expected: str
) -> None:
    """A certificate that is not for the host, or is missing, ends both with its name."""
    write_pair(tmp_path, file, names=names)
    theirs, ours = refusal_of(derper, tmp_path, hostname), refusal_of_ours(tmp_path, hostname)
    assert bool(theirs) is bool(ours) is bool(expected)
    assert expected in theirs
    assert expected in ours


@both
@pytest.mark.parametrize("missing", ["crt", "key"])
def test_half_a_pair_of_a_name_is_refused(kind: Kind, tmp_path: Path, missing: str) -> None:
    write_pair(tmp_path, NAME)
    (tmp_path / f"{NAME}.{missing}").unlink()
    assert f"{NAME}.{missing}" in refusal_of(kind, tmp_path, NAME)


@both
@pytest.mark.parametrize("missing", ["crt", "key"])
def test_half_a_pair_of_an_address_is_made_anew(kind: Kind, tmp_path: Path, missing: str) -> None:
    old = write_pair(tmp_path, "192.0.2.1")
    (tmp_path / f"192.0.2.1.{missing}").unlink()
    assert refusal_of(kind, tmp_path, "192.0.2.1") == ""
    made = x509.load_pem_x509_certificate((tmp_path / "192.0.2.1.crt").read_bytes())
    assert made.public_bytes(Encoding.DER) != old
    assert (tmp_path / "192.0.2.1.key").exists()


@both
def test_both_make_a_folder_and_name_the_files_of_an_ipv6_address_alike(
    kind: Kind, tmp_path: Path
) -> None:
    folder = tmp_path / "new"
    assert refusal_of(kind, folder, "::1") == ""
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert {path.name for path in folder.iterdir()} == {"1.crt", "1.key"}
