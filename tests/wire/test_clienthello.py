from __future__ import annotations

import ssl

import pytest

from pyderp.errors import RemoteProtocolError
from pyderp.wire.clienthello import (
    MAX_CLIENT_HELLO,
    ClientHello,
    parse_client_hello_untrusted,
)


def block(size: int, data: bytes) -> bytes:
    return len(data).to_bytes(size, "big") + data


def extension(kind: int, body: bytes) -> bytes:
    return kind.to_bytes(2, "big") + block(2, body)


def sni(name: bytes, kind: int = 0) -> bytes:
    return extension(0, block(2, bytes((kind,)) + block(2, name)))


def alpn(*names: bytes) -> bytes:
    return extension(16, block(2, b"".join(block(1, name) for name in names)))


def message(*extensions: bytes, tail: bytes = b"") -> bytes:
    body = b"\x03\x03" + bytes(32) + block(1, b"s" * 32) + block(2, b"\x13\x01") + block(1, b"\0")
    if extensions:
        body += block(2, b"".join(extensions))
    return b"\x01" + block(3, body + tail)


def record(data: bytes, kind: int = 22) -> bytes:
    return bytes((kind, 3, 1)) + block(2, data)


FULL = record(message(extension(43, b"\x02\x03\x04"), sni(b"a.example"), alpn(b"h2", b"http/1.1")))
WANT = ClientHello("a.example", (b"h2", b"http/1.1"))


def test_name_and_protocols_are_read() -> None:
    assert parse_client_hello_untrusted(FULL) == WANT


def test_a_client_hello_may_have_no_name_and_no_protocols() -> None:
    assert parse_client_hello_untrusted(record(message())) == ClientHello("", ())
    assert parse_client_hello_untrusted(record(message(extension(43, b"")))) == ClientHello("", ())


def test_an_incomplete_hello_needs_more_and_bytes_behind_it_are_ignored() -> None:
    for end in range(len(FULL)):
        assert parse_client_hello_untrusted(FULL[:end]) is None
    assert parse_client_hello_untrusted(memoryview(FULL + b"\x14junk")) == WANT
    assert parse_client_hello_untrusted(bytearray(FULL)) == WANT


@pytest.mark.parametrize("size", [3, 4, 5, 50])
def test_a_client_hello_may_be_split_into_records(size: int) -> None:
    whole = FULL[5:]
    data = b"".join(record(whole[at : at + size]) for at in range(0, len(whole), size))
    assert parse_client_hello_untrusted(data) == WANT
    assert parse_client_hello_untrusted(data[:-1]) is None


def test_a_client_hello_of_openssl_is_read() -> None:
    client = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    client.set_alpn_protocols(["acme-tls/1"])
    outgoing = ssl.MemoryBIO()
    with pytest.raises(ssl.SSLWantReadError):
        client.wrap_bio(
            ssl.MemoryBIO(), outgoing, server_hostname="derp.example.com"
        ).do_handshake()
    want = ClientHello("derp.example.com", (b"acme-tls/1",))
    assert parse_client_hello_untrusted(outgoing.read()) == want


@pytest.mark.parametrize(
    ("data", "error"),
    [
        (b"GET / HTTP/1.1\r\n\r\n", "not a handshake"),
        (b"\x15", "not a handshake"),
        (b"\x16\x02\x00\x00\x05", "bad header"),
        (b"\x16\x03\x01\x00\x00", "bad header"),
        (b"\x16\x03\x01\x40\x01", "bad header"),
        (record(b"\x02\0\0\0"), "does not begin with a ClientHello"),
        (record(b"\x01" + (MAX_CLIENT_HELLO + 1).to_bytes(3, "big")), "does not begin"),
        (record(b"\x01\0\0\1") + record(b"x", kind=23), "not a handshake"),
        (record(b"\x01\0\0\0"), "cut inside"),
        (record(message(tail=b"\0\x05x")), "cut inside"),
        (record(message(sni(b"a"), tail=b"x")), "after its end"),
        (record(message(sni(b"a"), sni(b"a"))), "twice"),
        (record(message(sni(b"\xff.example"))), "bad server name"),
        (record(message(sni(b"a\0b"))), "bad server name"),
        (record(message(sni(b"a", kind=1))), "bad server name"),
        (record(message(extension(0, b""))), "cut inside"),
        (record(message(extension(0, block(2, b"\0\0\1a\0\0\1b")))), "bad server name"),
        (record(message(extension(0, block(2, b"\0\0\1a") + b"x"))), "bad server name"),
        (record(message(alpn())), "bad list of protocols"),
        (record(message(alpn(b"h2", b""))), "bad list of protocols"),
        (record(message(extension(16, block(2, b"\2h2") + b"x"))), "bad list of protocols"),
        (record(message(extension(16, block(2, b"\3h2")))), "cut inside"),
    ],
)
def test_an_invalid_client_hello_is_refused(data: bytes, error: str) -> None:
    with pytest.raises(RemoteProtocolError, match=error):
        parse_client_hello_untrusted(data)


def test_the_size_of_a_client_hello_is_bounded() -> None:
    body = b"\x01" + block(3, bytes(MAX_CLIENT_HELLO))
    half = len(body) // 2
    data = record(body[:half]) + record(body[half:])
    assert parse_client_hello_untrusted(data[:-1]) is None
    with pytest.raises(RemoteProtocolError, match="after its end"):
        parse_client_hello_untrusted(data)


def test_the_number_of_records_is_bounded() -> None:
    whole = FULL[5:]
    data = b"".join(record(whole[at : at + 1]) for at in range(len(whole)))
    with pytest.raises(RemoteProtocolError, match="too many records"):
        parse_client_hello_untrusted(data)
