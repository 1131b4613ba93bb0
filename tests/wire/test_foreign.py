"""Which other protocols are known by their first bytes."""

from __future__ import annotations

import ssl

import pytest

from pyderp.wire.foreign import foreign_protocol_untrusted, is_tls, server_name_untrusted


def hello(name: str | None) -> bytes:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    tls = context.wrap_bio(incoming, outgoing, server_hostname=name)
    with pytest.raises(ssl.SSLWantReadError):
        tls.do_handshake()
    return outgoing.read()


def test_of_tls_the_server_name_is_repeated() -> None:
    data = hello("derp.example.com")
    assert is_tls(data)
    asked = "it asks for the server name 'derp.example.com'"
    assert foreign_protocol_untrusted(data) == f"TLS on a plain HTTP port: {asked}"
    assert server_name_untrusted(hello(None)) == "it asks for no server name (SNI)"
    assert server_name_untrusted(data[:60]) == "the ClientHello is incomplete"
    assert server_name_untrusted(b"\x16\x03\x01\0\x05\x02aaaaa") == (
        "a TLS handshake that does not begin with a ClientHello"
    )


@pytest.mark.parametrize("data", [b"", b"G", b"GET / HTTP/1.1\r\n", b"PROX", b"\x16", bytes(30)])
def test_what_is_not_known_has_no_name(data: bytes) -> None:
    assert foreign_protocol_untrusted(data) == ""
