"""What functions of a program can add to TLS, and what they cannot weaken."""

from __future__ import annotations

import hashlib
import ssl
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives import serialization

from pyderp.errors import CertificateError, ConfigError, PinMismatch, TLSError
from pyderp.net.tls import TLSConfig, TlsLink
from pyderp.net.tlscontext import client_context

from .certificates import ROOT, Identity, certificate
from .tlspeer import NAME, MemoryLink, TlsPeer, handshake

GOOD = certificate(NAME, issuer=ROOT)
ALONE = certificate(NAME, common_name="a self-signed server")
PIN = "sha256-raw:" + hashlib.sha256(ALONE.der).hexdigest()


def config(**hooks: Any) -> TLSConfig:
    return TLSConfig(system_roots=False, builtin_roots=False, extra_roots=(ROOT.der,), **hooks)


def attempt(
    hooked: TLSConfig,
    identity: Identity = GOOD,
    *,
    server: Callable[[ssl.SSLContext], None] = lambda _: None,
    cert_name: str = "",
) -> tuple[TlsLink, TlsPeer]:
    context = identity.server()
    server(context)
    peer = TlsPeer(context)
    link = MemoryLink(peer.answer)
    try:
        tls = handshake(link, server_name=NAME, cert_name=cert_name, insecure=False, config=hooked)
    except BaseException:
        assert link.aborted
        assert bytes(peer.received) == b""
        raise
    tls.write(b"hello")
    return tls, peer


def files(identity: Identity, folder: Path) -> tuple[Path, Path]:
    chain, key = folder / "me.pem", folder / "me.key"
    chain.write_bytes(identity.pem())
    key.write_bytes(
        identity.key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
    )
    return chain, key


def asks_for_certificates(context: ssl.SSLContext) -> None:
    context.verify_mode = ssl.CERT_REQUIRED
    context.load_verify_locations(cadata=ROOT.der)


# Additions


@pytest.mark.parametrize("pinned", [False, True])
def test_a_client_certificate_can_be_sent(tmp_path: Path, pinned: bool) -> None:
    me = certificate("client.example.com", issuer=ROOT)
    chain, key = files(me, tmp_path)
    hooked = config(prepare=lambda context: context.load_cert_chain(chain, key))
    identity, cert_name = (ALONE, PIN) if pinned else (GOOD, "")
    _, peer = attempt(hooked, identity, server=asks_for_certificates, cert_name=cert_name)
    assert bytes(peer.received) == b"hello"
    assert peer.tls.getpeercert(binary_form=True) == me.der


def test_a_server_that_wants_a_client_certificate_refuses_without_one() -> None:
    _, peer = attempt(config(), server=asks_for_certificates)
    assert peer.error is not None
    assert bytes(peer.received) == b""


def test_the_least_version_can_be_raised() -> None:
    def newer(context: ssl.SSLContext) -> None:
        context.minimum_version = ssl.TLSVersion.TLSv1_3

    def older(context: ssl.SSLContext) -> None:
        context.maximum_version = ssl.TLSVersion.TLSv1_2

    assert attempt(config(prepare=newer))[0].state.version == "TLSv1.3"
    with pytest.raises(TLSError):
        attempt(config(prepare=newer), server=older)


def test_verify_is_called_last_and_before_anything_is_sent() -> None:
    seen: list[tuple[str, tuple[bytes, ...]]] = []

    def verify(name: str, chain: tuple[bytes, ...]) -> None:
        seen.append((name, chain))

    attempt(config(verify=verify))
    attempt(config(verify=verify), ALONE, cert_name=PIN)
    assert seen == [(NAME, (GOOD.der,)), (NAME, (ALONE.der,))]
    with pytest.raises(CertificateError):
        attempt(config(verify=verify), ALONE)
    assert len(seen) == 2


@pytest.mark.parametrize("pinned", [False, True])
def test_verify_refuses_by_raising(pinned: bool) -> None:
    mine = CertificateError("not in our transparency log")

    def refuses(_name: str, _chain: object) -> None:
        raise mine

    def fails(_name: str, _chain: object) -> None:
        raise KeyError("x")

    identity, cert_name = (ALONE, PIN) if pinned else (GOOD, "")
    with pytest.raises(CertificateError) as caught:
        attempt(config(verify=refuses), identity, cert_name=cert_name)
    assert caught.value is mine
    with pytest.raises(
        CertificateError, match=r"TLSConfig\.verify refused it by KeyError: 'x'$"
    ) as caught:
        attempt(config(verify=fails), identity, cert_name=cert_name)
    assert isinstance(caught.value.__cause__, KeyError)


def test_a_result_of_verify_is_an_error() -> None:
    """A function that returns False, or is `async`, would otherwise accept all certificates."""

    async def asynchronous(_name: str, _chain: object) -> None:
        pass

    for verify in (lambda *_: False, lambda *_: True, asynchronous):
        with pytest.raises(CertificateError, match="it must return None, or raise"):
            attempt(config(verify=verify))


# Weaker settings


def trusts_all(context: ssl.SSLContext) -> None:
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE


def no_names(context: ssl.SSLContext) -> None:
    context.check_hostname = False


def old(context: ssl.SSLContext) -> None:
    context.minimum_version = ssl.TLSVersion.MINIMUM_SUPPORTED


@pytest.mark.parametrize(
    ("prepare", "expected"),
    [(trusts_all, "verify_mode"), (no_names, "check_hostname"), (old, "minimum_version")],
)
def test_a_weaker_context_is_refused_each_time(
    prepare: Callable[[ssl.SSLContext], None], expected: str
) -> None:
    hooked = config(prepare=prepare)
    for _ in range(2):
        with pytest.raises(ConfigError, match=expected):
            attempt(hooked)


def test_a_context_that_is_weakened_later_is_refused() -> None:
    kept: list[ssl.SSLContext] = []
    hooked = config(prepare=kept.append)
    attempt(hooked)
    (context,) = kept
    trusts_all(context)
    with pytest.raises(ConfigError, match="verify_mode"):
        attempt(hooked, ALONE)


def test_with_another_name_the_chain_is_still_verified() -> None:
    for name in (NAME, "other.example.com"):
        with pytest.raises(ConfigError, match=r"verify_mode|check_hostname"):
            attempt(config(prepare=trusts_all), cert_name=name)


def test_a_pin_holds_with_any_context() -> None:
    """Also if the program replaces the class that reads the certificate."""

    class FalseChain(ssl.SSLObject):
        def get_unverified_chain(self) -> list[bytes]:
            return [ALONE.der]

    def presents_false_chain(context: ssl.SSLContext) -> None:
        trusts_all(context)
        context.sslobject_class = FalseChain

    attempt(config(prepare=presents_false_chain), ALONE, cert_name=PIN)
    with pytest.raises(PinMismatch):
        attempt(config(prepare=presents_false_chain), GOOD, cert_name=PIN)


@pytest.mark.parametrize("pinned", [False, True])
def test_ciphers_without_a_certificate_are_refused(pinned: bool) -> None:
    def anonymous(context: ssl.SSLContext) -> None:
        context.set_ciphers("ADH:AECDH:@SECLEVEL=0")
        context.maximum_version = ssl.TLSVersion.TLSv1_2

    with pytest.raises(CertificateError, match="presented no certificate"):
        attempt(config(prepare=anonymous), server=anonymous, cert_name=PIN if pinned else "")


# Calls


def test_a_context_is_prepared_once_for_each_kind_of_verification() -> None:
    kept: list[ssl.SSLContext] = []
    hooked = config(prepare=kept.append)
    for _ in range(2):
        attempt(hooked)
        attempt(hooked, ALONE, cert_name=PIN)
    assert len(kept) == 2
    found = client_context(hooked, chain=True, hostname=True, keylog_file="")
    assert found is kept[0]


def test_an_error_of_prepare_is_a_configuration_error(tmp_path: Path) -> None:
    missing = tmp_path / "none.pem"
    hooked = config(prepare=lambda context: context.load_cert_chain(missing))
    with pytest.raises(ConfigError, match=r"TLSConfig\.prepare raised FileNotFoundError: "):
        attempt(hooked)


@pytest.mark.parametrize("name", ["prepare", "verify"])
def test_only_functions_are_taken(name: str) -> None:
    with pytest.raises(ConfigError, match=f"{name} is a SSLContext; want a function"):
        config(**{name: ssl.create_default_context()})
