"""From credentials to TLS contexts, whatever the source is."""

from __future__ import annotations

import gc
import ssl
import weakref
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa

from pyderp.certs import CertificateInfo, Credential, ServerContexts
from pyderp.certs import context as context_module
from pyderp.certs.context import authority_context
from pyderp.certs.manual import ManualCertificates
from pyderp.errors import ConfigError
from tests.server.certificates import write_pair

from .authority import issue
from .handshake import ANY, META, NAME, SERVER, presented

INFO = CertificateInfo((NAME,), datetime.now(UTC), datetime.now(UTC) + timedelta(days=1))


class Source:
    """A source with one credential for one name."""

    challenge_pending = False

    def __init__(self) -> None:
        self.current = Credential(*issue(NAME), INFO)
        self.asked: list[tuple[str, str | None]] = []

    def credential(self, local_address: str, server_name: str | None) -> Credential | None:
        self.asked.append((local_address, server_name))
        return self.current if server_name == NAME else None

    def challenge_credential(self, hello: memoryview) -> Credential | None:
        return self.current if hello else None


def contexts_of(source: Source) -> ServerContexts:
    made: Any = source
    return ServerContexts(made, META)


def test_the_source_is_asked_with_address_and_name_in_each_handshake() -> None:
    source = Source()
    contexts = contexts_of(source)
    assert len(presented(contexts.context(ANY), NAME)) == 2
    with pytest.raises(ssl.SSLError, match="INTERNAL_ERROR"):
        presented(contexts.context("::1"), "other.example.com")
    assert source.asked == [(ANY, NAME), ("::1", "other.example.com")]


def test_the_next_handshake_presents_a_new_credential_and_the_old_one_is_freed() -> None:
    source = Source()
    context = contexts_of(source).context(ANY)
    first = presented(context)
    assert f"derpkey{SERVER.untyped_hex()}".encode() in first[-1]
    old = weakref.ref(source.current)
    source.current = Credential(*issue(NAME), INFO)
    assert old() is None
    assert presented(context)[0] != first[0]


def test_contexts_are_cached_for_a_bounded_number_of_addresses(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(context_module, "_MOST_ADDRESSES", 2)
    contexts = contexts_of(Source())
    first = contexts.context("192.0.2.1")
    contexts.context("192.0.2.2")
    assert contexts.context("192.0.2.1") is first
    contexts.context("192.0.2.3")
    assert contexts.context("192.0.2.1") is not first
    challenge = contexts.challenge_context(memoryview(b"hello"))
    assert challenge is contexts.challenge_context(memoryview(b"hello"))
    assert challenge is not None
    assert len(presented(challenge)) == 1, "without the meta certificate"
    assert contexts.challenge_context(memoryview(b"")) is None


def test_nothing_is_left_for_the_cyclic_collector() -> None:
    gc.disable()
    try:
        contexts = contexts_of(Source())
        presented(contexts.context(ANY))
        left = weakref.ref(contexts), weakref.ref(contexts.context(ANY))
        del contexts
        assert [each() for each in left] == [None, None]
    finally:
        gc.enable()


def test_the_repr_of_a_credential_has_no_key() -> None:
    assert "PRIVATE" not in repr(Source().current)


def test_a_ca_file_must_hold_certificates(tmp_path: Path) -> None:
    bad = tmp_path / "bad.pem"
    bad.write_text("none")
    with pytest.raises(ConfigError, match=r"bad\.pem: it holds no certificate"):
        authority_context(bad)
    with pytest.raises(ConfigError, match=r"gone\.pem: No such file"):
        authority_context(tmp_path / "gone.pem")
    write_pair(tmp_path, "ca")
    authority_context(tmp_path / "ca.crt")


def _key_of(kind: str) -> bytes:
    key = (
        rsa.generate_private_key(public_exponent=65537, key_size=2048)
        if kind == "rsa"
        else ec.generate_private_key(ec.SECP256R1())
    )
    return key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )


@pytest.mark.parametrize("kind", ["ec", "rsa"])
def test_a_key_of_another_certificate_is_reported_as_such(tmp_path: Path, kind: str) -> None:
    """Also if it is of another type, for which OpenSSL reports NO_CERTIFICATE_ASSIGNED."""
    write_pair(tmp_path, NAME)
    (tmp_path / f"{NAME}.key").write_bytes(_key_of(kind))
    with pytest.raises(ConfigError, match="the key does not belong to the certificate"):
        ManualCertificates(tmp_path, NAME)


def test_a_missing_line_break_between_certificates_is_reported(tmp_path: Path) -> None:
    write_pair(tmp_path, NAME)
    write_pair(tmp_path, "issuer.example.com")
    chain = tmp_path / f"{NAME}.crt"
    second = (tmp_path / "issuer.example.com.crt").read_bytes()
    chain.write_bytes(chain.read_bytes().rstrip() + second)
    with pytest.raises(ConfigError, match="lacks the line break between two of its parts"):
        ManualCertificates(tmp_path, NAME)
