from __future__ import annotations

import hashlib
import ssl
from types import SimpleNamespace
from typing import Any

import pytest
from cryptography import x509

from pyderp.certs import ServerContexts
from pyderp.certs.challenges import Challenges
from tests.server.certificates import trusting_nobody

from .handshake import META, NAME, presented, shake_hands

PATH = "/.well-known/acme-challenge/token"


def hello(name: str | None, protocols: list[str]) -> bytes:
    client = trusting_nobody()
    if protocols:
        client.set_alpn_protocols(protocols)
    outgoing = ssl.MemoryBIO()
    with pytest.raises(ssl.SSLWantReadError):
        client.wrap_bio(ssl.MemoryBIO(), outgoing, server_hostname=name).do_handshake()
    return outgoing.read()


def test_http_is_answered_within_the_block() -> None:
    challenges = Challenges()
    assert challenges.body(PATH) is None
    with challenges.by_http(PATH, "token.thumb"):
        assert challenges.body(PATH) == b"token.thumb"
        assert challenges.body(PATH + "x") is None
        assert not challenges.tls_pending
    assert challenges.body(PATH) is None


def test_tls_is_answered_to_a_client_with_the_name_and_the_protocol() -> None:
    challenges = Challenges()
    asking = memoryview(hello(NAME, ["acme-tls/1"]))
    assert challenges.credential(asking) is None
    with challenges.by_tls(NAME, "token.thumb"):
        assert challenges.tls_pending
        credential = challenges.credential(asking)
        assert credential is not None
        assert challenges.credential(memoryview(hello(NAME.upper(), ["acme-tls/1"]))) is credential
        assert challenges.credential(memoryview(hello(NAME, ["http/1.1"]))) is None
        assert challenges.credential(memoryview(hello(NAME, []))) is None
        assert challenges.credential(memoryview(hello("other.example.com", ["acme-tls/1"]))) is None
        assert challenges.credential(asking[:-1]) is None
        assert challenges.credential(memoryview(b"GET / HTTP/1.1\r\n")) is None
    assert challenges.credential(asking) is None
    assert not challenges.tls_pending


def test_the_certificate_proves_the_authorization() -> None:
    challenges = Challenges()
    name = "a" * 60 + "." + NAME
    with challenges.by_tls(name, "token.thumb"):
        source: Any = SimpleNamespace(challenge_credential=challenges.credential)
        contexts = ServerContexts(source, META)
        context = contexts.challenge_context(memoryview(hello(name, ["acme-tls/1"])))
    assert context is not None
    (leaf,) = presented(context, name)
    certificate = x509.load_der_x509_certificate(leaf)
    san = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert san.get_values_for_type(x509.DNSName) == [name]
    oid = x509.ObjectIdentifier("1.3.6.1.5.5.7.1.31")
    proof = certificate.extensions.get_extension_for_oid(oid)
    assert proof.critical
    assert isinstance(proof.value, x509.UnrecognizedExtension)
    assert proof.value.value == b"\x04\x20" + hashlib.sha256(b"token.thumb").digest()
    client = trusting_nobody()
    client.set_alpn_protocols(["acme-tls/1"])
    assert shake_hands(context, name, client).selected_alpn_protocol() == "acme-tls/1"
