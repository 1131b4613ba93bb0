"""The first bytes of a peer: ClientHello, PROXY header, STUN request; and a STUN answer.

The first byte of an input chooses the parser.
"""

from __future__ import annotations

import contextlib
from typing import Final

from pyderp.errors import RemoteProtocolError
from pyderp.wire.clienthello import parse_client_hello_untrusted
from pyderp.wire.proxyheader import parse_proxy_header_untrusted
from pyderp.wire.stun import (
    MAX_REQUEST,
    RequestReader,
    parse_request_untrusted,
    parse_response_untrusted,
)

__all__ = ["TOKENS", "one_input"]

TOKENS: Final = (
    b"\x16\x03\x01",
    b"\x01\x00\x00",
    b"\x03\x03",
    b"\x0aacme-tls/1",
    b"PROXY TCP4 192.0.2.1 198.51.100.2 1 2\r\n",
    b"PROXY TCP6 ::1 ::1 1 2\r\n",
    b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x0c",
    b"\x00\x01\x00\x14\x21\x12\xa4\x42",
    b"\x80\x22\x00\x08tailnode",
    b"\x80\x28\x00\x04",
    b"\x00\x20\x00\x08\x00\x01",
)


def _client_hello(data: bytes) -> None:
    hello = parse_client_hello_untrusted(data)
    if hello is not None:
        assert hello.server_name.isascii()
        # Bytes that follow it must not change the result.
        assert parse_client_hello_untrusted(data + b"\x17\x03\x03") == hello


def _proxy_header(data: bytes) -> None:
    header = parse_proxy_header_untrusted(data)
    if header is not None:
        assert header.length <= len(data)
        assert parse_proxy_header_untrusted(data[: header.length]) == header
        assert parse_proxy_header_untrusted(data[: header.length - 1]) is None


def _stun(data: bytes) -> None:
    data = data[: MAX_REQUEST + 1]
    reader = RequestReader()
    reader.buffer[: len(data)] = data
    try:
        tx_id = parse_request_untrusted(data)
    except RemoteProtocolError:
        tx_id = b""
    try:
        fast = reader.read_untrusted(len(data))
    except RemoteProtocolError:
        fast = b""
    assert fast == tx_id
    assert len(tx_id) in (0, 12)


def _stun_answer(data: bytes) -> None:
    answer = parse_response_untrusted(data)
    assert 0 <= answer.port <= 65535


_PARSERS: Final = (_client_hello, _proxy_header, _stun, _stun_answer)


def one_input(data: bytes) -> None:
    """Have one of the parsers read an input; it returns, or raises `RemoteProtocolError`."""
    if not data:
        return
    with contextlib.suppress(RemoteProtocolError):
        _PARSERS[data[0] % len(_PARSERS)](data[1:])
