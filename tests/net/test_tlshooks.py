"""What a program's own functions add to TLS, and what they cannot take from it."""

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


# What they add


@pytest.mark.parametrize("pinned", [False, True])
def test_a_client_certificate(tmp_path: Path, pinned: bool) -> None:
    me = certificate("client.example.com", issuer=ROOT)
    chain, key = files(me, tmp_path)
    hooked = config(prepare=lambda context: context.load_cert_chain(chain, key))
    identity, cert_name = (ALONE, PIN) if pinned else (GOOD, "")
    _, peer = attempt(hooked, identity, server=asks_for_certificates, cert_name=cert_name)
    assert bytes(peer.received) == b"hello"
    assert peer.tls.getpeercert(binary_form=True) == me.der


def test_without_it_the_server_refuses() -> None:
    _, peer = attempt(config(), server=asks_for_certificates)
    assert peer.error is not None
    assert bytes(peer.received) == b""


def test_a_newer_least_version() -> None:
    def newer(context: ssl.SSLContext) -> None:
        context.minimum_version = ssl.TLSVersion.TLSv1_3

    def older(context: ssl.SSLContext) -> None:
        context.maximum_version = ssl.TLSVersion.TLSv1_2

    assert attempt(config(prepare=newer))[0].state.version == "TLSv1.3"
    with pytest.raises(TLSError):
        attempt(config(prepare=newer), server=older)


def test_a_verification_of_ones_own_comes_last_and_before_anything_is_sent() -> None:
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
def test_it_refuses_by_raising(pinned: bool) -> None:
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


def test_what_it_returns_is_no_refusal_that_goes_unnoticed() -> None:
    """A function that says False, or is `async`, would accept all."""

    async def asynchronous(_name: str, _chain: object) -> None:
        pass

    for verify in (lambda *_: False, lambda *_: True, asynchronous):
        with pytest.raises(CertificateError, match="it must return None, or raise"):
            attempt(config(verify=verify))


# What they cannot take


def trusts_all(context: ssl.SSLContext) -> None:
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE


def no_names(context: ssl.SSLContext) -> None:
    context.check_hostname = False


def old(context: ssl.SSLContext) -> None:
    context.minimum_version = ssl.TLSVersion.MINIMUM_SUPPORTED


@pytest.mark.parametrize(
    ("prepare", "told"),
    [(trusts_all, "verify_mode"), (no_names, "check_hostname"), (old, "minimum_version")],
)
def test_a_weaker_context_is_refused_each_time(
    prepare: Callable[[ssl.SSLContext], None], told: str
) -> None:
    hooked = config(prepare=prepare)
    for _ in range(2):
        with pytest.raises(ConfigError, match=told):
            attempt(hooked)


def test_a_context_that_is_weakened_later_is_refused() -> None:
    kept: list[ssl.SSLContext] = []
    hooked = config(prepare=kept.append)
    attempt(hooked)
    (context,) = kept
    trusts_all(context)
    with pytest.raises(ConfigError, match="verify_mode"):
        attempt(hooked, ALONE)


def test_for_another_name_a_chain_is_still_wanted() -> None:
    for name in (NAME, "other.example.com"):
        with pytest.raises(ConfigError, match=r"verify_mode|check_hostname"):
            attempt(config(prepare=trusts_all), cert_name=name)


def test_a_pin_holds_whatever_the_context_says() -> None:
    """Also if what reads the certificate is the program's own."""

    class Liar(ssl.SSLObject):
        def get_unverified_chain(self) -> list[bytes]:
            return [ALONE.der]

    def lies(context: ssl.SSLContext) -> None:
        trusts_all(context)
        context.sslobject_class = Liar

    attempt(config(prepare=lies), ALONE, cert_name=PIN)
    with pytest.raises(PinMismatch):
        attempt(config(prepare=lies), GOOD, cert_name=PIN)


@pytest.mark.parametrize("pinned", [False, True])
def test_ciphers_without_a_certificate_are_no_way_around(pinned: bool) -> None:
    def anonymous(context: ssl.SSLContext) -> None:
        context.set_ciphers("ADH:AECDH:@SECLEVEL=0")
        context.maximum_version = ssl.TLSVersion.TLSv1_2

    with pytest.raises(CertificateError, match="presented no certificate"):
        attempt(config(prepare=anonymous), server=anonymous, cert_name=PIN if pinned else "")


# How they are called


def test_a_context_is_prepared_once_for_each_way_to_verify() -> None:
    kept: list[ssl.SSLContext] = []
    hooked = config(prepare=kept.append)
    for _ in range(2):
        attempt(hooked)
        attempt(hooked, ALONE, cert_name=PIN)
    assert len(kept) == 2
    found = client_context(hooked, chain=True, hostname=True, keylog_file="")
    assert found is kept[0]


def test_what_it_raises_is_a_configuration_error(tmp_path: Path) -> None:
    missing = tmp_path / "none.pem"
    hooked = config(prepare=lambda context: context.load_cert_chain(missing))
    with pytest.raises(ConfigError, match=r"TLSConfig\.prepare raised FileNotFoundError: "):
        attempt(hooked)


@pytest.mark.parametrize("name", ["prepare", "verify"])
def test_only_functions_are_taken(name: str) -> None:
    with pytest.raises(ConfigError, match=f"{name} is a SSLContext; want a function"):
        config(**{name: ssl.create_default_context()})
