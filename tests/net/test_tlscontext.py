"""Which certificates a client's context trusts."""

from __future__ import annotations

import hashlib
import ssl
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from pyderp.errors import ConfigError
from pyderp.net import tlscontext
from pyderp.net.tlscontext import LETS_ENCRYPT, TLSConfig, client_context

from .certificates import ROOT, certificate

SECOND = certificate(common_name="second", authority=True)
NOTHING = TLSConfig(system_roots=False, builtin_roots=False)


@pytest.fixture(autouse=True)
def _empty_cache() -> None:
    tlscontext._context.cache_clear()


def context(config: TLSConfig, *, chain: bool = True, hostname: bool = True) -> ssl.SSLContext:
    return client_context(config, chain=chain, hostname=hostname, keylog_file="")


def trusted(config: TLSConfig) -> set[bytes]:
    return set(context(config).get_ca_certs(binary_form=True))


@pytest.fixture
def system_roots(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The file of the system's roots."""
    path = tmp_path / "system.pem"
    path.write_bytes(SECOND.pem())
    monkeypatch.setenv("SSL_CERT_FILE", str(path))
    monkeypatch.setenv("SSL_CERT_DIR", str(tmp_path / "none"))
    return path


BUILTIN = {
    ssl.PEM_cert_to_DER_cert(text + ssl.PEM_FOOTER)
    for text in (
        ssl.PEM_HEADER + part
        for part in LETS_ENCRYPT.read_text().replace(ssl.PEM_FOOTER, "").split(ssl.PEM_HEADER)[1:]
    )
}


@pytest.mark.usefixtures("system_roots")
def test_all_roots_hold_at_once() -> None:
    assert len(BUILTIN) == 4
    # The certificates do not contain the names that Let's Encrypt uses.
    assert trusted(TLSConfig(extra_roots=(ROOT.der,))) >= {SECOND.der, ROOT.der}
    assert len(trusted(TLSConfig(extra_roots=(ROOT.der,)))) == 6
    assert trusted(TLSConfig(builtin_roots=False)) == {SECOND.der}
    assert len(trusted(TLSConfig(system_roots=False))) == 4
    assert trusted(NOTHING) == set()


def test_without_system_roots_the_built_in_ones_hold(system_roots: Path) -> None:
    system_roots.unlink()
    assert len(trusted(TLSConfig())) == 4
    assert len(trusted(TLSConfig(extra_roots=(ROOT.der,)))) == 5


def test_extra_roots_can_be_files_pem_and_der(tmp_path: Path) -> None:
    pem, der = tmp_path / "roots.pem", tmp_path / "root.der"
    pem.write_bytes("# Zertifikat für Prüfungen\n".encode() + ROOT.pem() + b"\n" + SECOND.pem())
    der.write_bytes(ROOT.der)
    forms: list[tuple[str | Path | bytes, ...]] = [
        (pem,),
        (str(pem),),
        (der, SECOND.pem()),
        (ROOT.pem() + SECOND.pem(),),
        (ROOT.der, SECOND.der),
        (ROOT.der, ROOT.der, SECOND.pem(), pem),
    ]
    for roots in forms:
        config = TLSConfig(system_roots=False, builtin_roots=False, extra_roots=roots)
        assert trusted(config) == {ROOT.der, SECOND.der}


@pytest.mark.parametrize(
    "root",
    [
        "/nonexistent/roots.pem",
        "/",
        b"",
        b"no certificate",
        b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n",
        b"-----BEGIN",
    ],
)
def test_extra_roots_that_are_no_certificates_are_refused(root: str | bytes) -> None:
    with pytest.raises(ConfigError, match=r"^extra_roots: "):
        context(TLSConfig(extra_roots=(root,)))


def test_roots_may_be_in_a_list() -> None:
    config = TLSConfig(system_roots=False, builtin_roots=False, extra_roots=[ROOT.der, SECOND.der])
    assert trusted(config) == {ROOT.der, SECOND.der}
    assert config == replace(config, extra_roots=(ROOT.der, SECOND.der))


@pytest.mark.parametrize("root", ["ca.pem", Path("ca.pem"), b"-----BEGIN CERTIFICATE-----" * 10])
def test_a_single_root_is_refused_as_extra_roots(root: Any) -> None:
    with pytest.raises(ConfigError, match=r"^extra_roots: want a sequence") as caught:
        TLSConfig(extra_roots=root)
    assert len(str(caught.value)) < 150


def test_versions_and_checks_of_a_context() -> None:
    for chain, hostname in [(True, True), (True, False), (False, False)]:
        made = context(NOTHING, chain=chain, hostname=hostname)
        assert made.minimum_version is ssl.TLSVersion.TLSv1_2
        assert made.maximum_version is ssl.TLSVersion.TLSv1_3
        assert made.check_hostname is hostname
        assert (made.verify_mode is ssl.CERT_REQUIRED) is chain
        assert made.options & ssl.OP_NO_RENEGOTIATION


def test_equal_configurations_share_one_context() -> None:
    first = context(TLSConfig(extra_roots=(ROOT.der,)))
    assert context(TLSConfig(extra_roots=(ROOT.der,))) is first
    others = [
        context(TLSConfig(extra_roots=(ROOT.der,)), hostname=False),
        context(TLSConfig(extra_roots=(ROOT.der,)), chain=False, hostname=False),
        context(TLSConfig(extra_roots=(SECOND.der,))),
        context(TLSConfig()),
    ]
    assert len({id(each) for each in [first, *others]}) == 5


# The roots that are built in

ROOTS = x509.load_pem_x509_certificates(LETS_ENCRYPT.read_bytes())


def test_the_roots_are_those_that_let_s_encrypt_publishes() -> None:
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
def test_each_root_is_a_self_signed_authority(root: x509.Certificate) -> None:
    root.verify_directly_issued_by(root)
    constraints = root.extensions.get_extension_for_class(x509.BasicConstraints)
    assert constraints.critical
    assert constraints.value.ca
