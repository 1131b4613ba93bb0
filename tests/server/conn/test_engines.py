"""TLS engines choose the same certificate, whichever library makes the records."""

from __future__ import annotations

import contextlib
import logging
import os
import ssl
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from pyderp.certs import ServerContexts, meta_certificate
from pyderp.certs.challenges import challenge_credential
from pyderp.certs.credential import Credential
from pyderp.certs.manual import ManualCertificates
from pyderp.errors import RemoteProtocolError
from pyderp.keys import NodePrivate
from pyderp.native import NativeModule, NativeUse, load
from pyderp.server.conn.engines import Engine, RustlsEngine, SSLEngine
from pyderp.server.conn.records import NO_CERTIFICATE, PLAIN_HTTP, RecordLayer
from tests.server.certificates import trusting_nobody, write_pair

NAME = "derp.example.com"
NATIVE = load(NativeUse.AUTO)
Make = Callable[[ServerContexts, bytes], Engine]


def with_rustls(contexts: ServerContexts, server_name: bytes) -> Engine:
    assert NATIVE is not None
    return RustlsEngine(NATIVE, contexts, server_name)


@pytest.fixture(params=["ssl", "rustls"] if NATIVE else ["ssl"])
def make(request: pytest.FixtureRequest) -> Make:
    """The function that makes an engine."""
    return SSLEngine if request.param == "ssl" else with_rustls


class Source(ManualCertificates):
    """The certificates of a directory, and the certificate of an ACME challenge if one is set."""

    answer: Credential | None = None

    def challenge_credential(self, hello: memoryview) -> Credential | None:
        return self.answer if b"acme-tls/1" in bytes(hello) else None


def source_of(directory: Path, name: str = NAME) -> Source:
    write_pair(directory, name)
    return Source(directory, name)


META = meta_certificate(NodePrivate.generate().public)


@dataclass
class Client:
    """The client's side of a handshake in memory."""

    server_name: str | None = NAME
    protocols: list[str] = field(default_factory=list)
    version: ssl.TLSVersion = ssl.TLSVersion.TLSv1_3

    def __post_init__(self) -> None:
        context = trusting_nobody()
        context.minimum_version = context.maximum_version = self.version
        if self.protocols:
            context.set_alpn_protocols(self.protocols)
        self.incoming, self.outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self.tls = context.wrap_bio(self.incoming, self.outgoing, server_hostname=self.server_name)

    def step(self) -> bytes:
        """Return what the client writes next in the handshake."""
        with contextlib.suppress(ssl.SSLWantReadError):
            self.tls.do_handshake()
        return self.outgoing.read()

    def shake_hands(self, engine: Engine, local: str = "") -> RecordLayer:
        """Do the whole handshake; return the server's records."""
        records: RecordLayer | None = None
        while data := self.step():
            records = records or engine.records(local, data)
            assert records is not None
            records.feed(memoryview(bytearray(data)), memoryview(bytearray(1 << 16)))
            self.incoming.write(records.output())
        assert records is not None
        return records


def refusal(engine: Engine, client: Client) -> RecordLayer:
    """Return the records that failed on the first bytes of a client."""
    hello = client.step()
    records = engine.records("", hello)
    assert records is not None
    assert records.feed(memoryview(bytearray(hello)), memoryview(bytearray(1 << 16))) == 0
    assert records.news
    return records


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
@pytest.mark.parametrize("known", [b"derp.example.com", b"other.example.com"])
def test_the_named_certificate_is_presented(
    make: Make, tmp_path: Path, version: ssl.TLSVersion, known: bytes
) -> None:
    """Also if it is not the name that most clients send."""
    engine = make(ServerContexts(source_of(tmp_path), META), known)
    client = Client(version=version)
    records = client.shake_hands(engine)
    assert records.version == version.name.removeprefix("TLSv").replace("_", ".")
    assert client.tls.getpeercert(binary_form=True) == leaf(tmp_path)


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
def test_a_name_in_another_case_is_the_same_name(
    make: Make, tmp_path: Path, version: ssl.TLSVersion
) -> None:
    """The fast search for the name in lower case does not find it."""
    engine = make(ServerContexts(source_of(tmp_path), META), NAME.encode())
    client = Client("DERP.Example.COM", version=version)
    client.tls.context.check_hostname = False
    assert client.shake_hands(engine).version
    assert client.tls.getpeercert(binary_form=True) == leaf(tmp_path)


def leaf(directory: Path) -> bytes:
    return ssl.PEM_cert_to_DER_cert((directory / f"{NAME}.crt").read_text())


@pytest.mark.parametrize("word", [b"CERTIFICATE", b"X509 CERTIFICATE"])
def test_the_whole_chain_is_presented(make: Make, tmp_path: Path, word: bytes) -> None:
    """Also blocks with the old name that OpenSSL accepts."""
    first = ssl.DER_cert_to_PEM_cert(write_pair(tmp_path, NAME))
    file = tmp_path / f"{NAME}.crt"
    above = meta_certificate(NodePrivate.generate().public)  # any certificate will do
    file.write_bytes(file.read_bytes() + above.replace(b"CERTIFICATE", word))
    engine = make(ServerContexts(Source(tmp_path, NAME), META), NAME.encode())
    client = Client()
    client.shake_hands(engine)
    chain = client.tls._sslobj.get_unverified_chain()  # type: ignore[attr-defined]
    presented = [each.public_bytes() for each in chain]
    assert presented == [first, above.decode(), META.decode()]


@pytest.mark.parametrize("name", [None, "other.example.com", "example.com", "erp.example.com"])
def test_an_unknown_server_name_is_refused(make: Make, tmp_path: Path, name: str | None) -> None:
    engine = make(ServerContexts(source_of(tmp_path), META), NAME.encode())
    records = refusal(engine, Client(name))
    assert records.failure == NO_CERTIFICATE
    assert records.output() == bytes((21, 3, 3, 0, 2, 2, 80))
    assert records.output() == records.close() == records.seal([b"x"]) == b""
    assert records.version == ""


@pytest.mark.parametrize("name", [None, "other.example.com"])
def test_the_certificate_of_an_address_is_presented_for_every_name(
    make: Make, tmp_path: Path, name: str | None
) -> None:
    engine = make(ServerContexts(source_of(tmp_path, "127.0.0.1"), META), b"")
    Client(name).shake_hands(engine)


@pytest.mark.parametrize(
    ("offered", "agreed"),
    [([], None), (["http/1.1"], "http/1.1"), (["h2", "http/1.1"], "http/1.1"), (["h2"], None)],
)
def test_a_common_alpn_protocol_is_agreed_or_none(
    make: Make, tmp_path: Path, offered: list[str], agreed: str | None
) -> None:
    engine = make(ServerContexts(source_of(tmp_path), META), NAME.encode())
    client = Client(protocols=offered)
    client.shake_hands(engine)
    assert client.tls.selected_alpn_protocol() == agreed


def test_an_acme_authority_gets_the_certificate_of_its_challenge(
    make: Make, tmp_path: Path
) -> None:
    source = source_of(tmp_path)
    engine = make(ServerContexts(source, META), NAME.encode())
    source.answer, source.challenge_pending = challenge_credential(NAME, "token.thumbprint"), True
    checking = Client(protocols=["acme-tls/1"])
    checking.shake_hands(engine)
    assert checking.tls.selected_alpn_protocol() == "acme-tls/1"
    presented = checking.tls.getpeercert(binary_form=True)
    assert presented == ssl.PEM_cert_to_DER_cert(source.answer.chain.decode())
    other = Client()
    other.shake_hands(engine)
    assert other.tls.getpeercert(binary_form=True) == leaf(tmp_path)


def test_after_a_reload_the_new_certificate_is_presented(make: Make, tmp_path: Path) -> None:
    source = source_of(tmp_path)
    engine = make(ServerContexts(source, META), NAME.encode())
    Client().shake_hands(engine)
    write_pair(tmp_path, NAME)
    assert source.reload(force=True)
    client = Client()
    client.shake_hands(engine)
    assert client.tls.getpeercert(binary_form=True) == leaf(tmp_path)


def test_plain_http_is_recognised(make: Make, tmp_path: Path) -> None:
    engine = make(ServerContexts(source_of(tmp_path), META), NAME.encode())
    data = b"GET / HTTP/1.1\r\n\r\n"
    records = engine.records("", data)
    assert records is not None
    records.feed(memoryview(data), memoryview(bytearray(1 << 16)))
    assert records.failure == PLAIN_HTTP


def test_an_incomplete_client_hello_waits_and_garbage_is_refused(
    make: Make, tmp_path: Path
) -> None:
    engine = make(ServerContexts(source_of(tmp_path), META), NAME.encode())
    hello = Client("other.example.com").step()
    message = hello[5:]
    first, rest = message[:100], message[100:]
    record = hello[:3] + len(first).to_bytes(2) + first
    assert engine.records("", record) is None
    whole = record + hello[:3] + len(rest).to_bytes(2) + rest
    records = engine.records("", whole)
    assert records is not None
    with pytest.raises(RemoteProtocolError):
        engine.records("", hello[:5] + os.urandom(1) + b"\xff" * (len(hello) - 6))


def test_a_client_hello_in_two_records_may_have_alpn_in_the_second(
    make: Make, tmp_path: Path
) -> None:
    engine = make(ServerContexts(source_of(tmp_path), META), NAME.encode())
    for cut in range(80, 200, 3):
        client = Client(protocols=["http/1.1"])
        hello = client.step()
        first, rest = hello[5 : 5 + cut], hello[5 + cut :]
        whole = b"".join(hello[:3] + len(part).to_bytes(2) + part for part in (first, rest))
        records = engine.records("", whole)
        assert records is not None
        records.feed(memoryview(bytearray(whole)), memoryview(bytearray(1 << 16)))
        client.incoming.write(records.output())
        client.step()
        assert client.tls.selected_alpn_protocol() == "http/1.1"


def test_a_server_name_that_is_not_ascii_is_refused(make: Make, tmp_path: Path) -> None:
    """The ssl module would print a traceback for each, or log a line."""
    engine = make(ServerContexts(source_of(tmp_path, "127.0.0.1"), META), b"")
    hello = Client().step().replace(NAME.encode(), b"derp.ex\xffmple.com")
    with pytest.raises(RemoteProtocolError):
        engine.records("", hello)


class Picky(Exception):
    """The exception of a native part that refuses a certificate."""


def test_a_certificate_that_rustls_refuses_is_served_by_the_ssl_module(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """One warning is logged for each certificate, however many connections there are."""
    asked: list[str] = []

    def refuse(chain: bytes, key: bytes, *, alpn: str) -> Any:
        asked.append(alpn)
        raise Picky("UnsupportedCurve")

    native = cast("NativeModule", SimpleNamespace(TlsConfig=refuse, TlsError=Picky))
    engine = RustlsEngine(native, ServerContexts(source_of(tmp_path), META), NAME.encode())
    with caplog.at_level(logging.WARNING, "pyderp.tls"):
        for _ in range(3):
            client = Client()
            client.shake_hands(engine)
            assert client.tls.getpeercert(binary_form=True) == leaf(tmp_path)
    assert asked == ["http/1.1"]
    text = (
        f"rustls refuses the certificate of {NAME}, so the ssl module serves it: UnsupportedCurve"
    )
    assert caplog.messages == [text]
