"""Which other protocols are recognised by their first bytes."""

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


def test_tls_is_recognised_with_its_server_name() -> None:
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
def test_unknown_bytes_have_no_protocol(data: bytes) -> None:
    assert foreign_protocol_untrusted(data) == ""


RDP = bytes.fromhex("03000013 0e e0 0000 0000 00 01000800 03000000")
"""X.224 connection request in TPKT, with the negotiation of MS-RDPBCGR 2.2.1.1."""


@pytest.mark.parametrize(
    ("data", "name"),
    [
        (RDP, "RDP (Remote Desktop)"),
        (RDP[:5] + b"\xd0" + RDP[6:], ""),  # a confirm, which a server sends
        (RDP[:5], ""),
        (b"SSH-2.0-OpenSSH_9.6\r\n", "SSH"),
        (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", "HTTP/2, which a relay does not speak"),
        (b"PROXY TCP4 192.0.2.1 192.0.2.2 1 2\r\n", "PROXY header, but proxy-protocol is off"),
        (b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x0c", "PROXY header, but proxy-protocol is off"),
    ],
)
def test_other_protocols_are_named(data: bytes, name: str) -> None:
    found = foreign_protocol_untrusted(data)
    assert found.startswith(name)
    assert bool(found) == bool(name)
