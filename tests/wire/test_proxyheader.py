"""PROXY headers, according to HAProxy's specification."""

from __future__ import annotations

import ipaddress
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyderp.errors import RemoteProtocolError
from pyderp.wire.proxyheader import (
    MAX_PROXY_HEADER,
    ProxyHeader,
    parse_proxy_header_untrusted,
)

SIGNATURE = b"\r\n\r\n\0\r\nQUIT\n"


def v2(body: bytes, *, command: int = 0x21, family: int = 0x11) -> bytes:
    return SIGNATURE + struct.pack(">BBH", command, family, len(body)) + body


TCP4 = v2(bytes((192, 0, 2, 1, 198, 51, 100, 2)) + struct.pack(">HH", 4711, 443))
TCP6 = v2(
    ipaddress.ip_address("2001:db8::1").packed
    + ipaddress.ip_address("2001:db8::2").packed
    + struct.pack(">HH", 4711, 443),
    family=0x21,
)
GOOD = [
    (b"PROXY TCP4 192.0.2.1 198.51.100.2 4711 443\r\n", "192.0.2.1", "198.51.100.2"),
    (b"PROXY TCP6 2001:db8::1 2001:db8::2 4711 443\r\n", "2001:db8::1", "2001:db8::2"),
    (b"PROXY TCP6 ::ffff:192.0.2.1 2001:db8::2 4711 443\r\n", "192.0.2.1", "2001:db8::2"),
    (TCP4, "192.0.2.1", "198.51.100.2"),
    (TCP6, "2001:db8::1", "2001:db8::2"),
    (v2(TCP4[16:] + b"\x04\0\x03abc"), "192.0.2.1", "198.51.100.2"),
]
WITHOUT_ADDRESSES = [
    b"PROXY UNKNOWN\r\n",
    b"PROXY UNKNOWN ffff::1 ffff::2 1 2\r\n",
    v2(b"", command=0x20, family=0),
    v2(TCP4[16:], command=0x20),
    v2(bytes(216), family=0x31),
    v2(b"", family=0),
]
BAD = [
    b"GET / HTTP/1.1\r\n",
    b"\x16\x03\x01",
    b"PROXY TCP4 192.0.2.1 198.51.100.2 4711\r\n",
    b"PROXY TCP4 2001:db8::1 2001:db8::2 4711 443\r\n",
    b"PROXY TCP4 192.0.2.1 198.51.100.2 65536 443\r\n",
    b"PROXY TCP4 192.0.2.1 198.51.100.2 -1 443\r\n",
    "PROXY TCP4 192.0.2.1 198.51.100.2 ٣ 443\r\n".encode(),
    b"PROXY TCP4 192.0.2.1 198.51.100.2  443\r\n",
    b"PROXY TCP4 host 198.51.100.2 1 443\r\n",
    b"PROXY UDP4 192.0.2.1 198.51.100.2 4711 443\r\n",
    b"PROXY \r\n",
    b"PROXY TCP4 " + b"1" * 96,
    v2(TCP4[16:], command=0x11),
    v2(TCP4[16:], command=0x22),
    v2(TCP4[16:-1]),
    v2(TCP6[16:-1], family=0x21),
    SIGNATURE + struct.pack(">BBH", 0x21, 0x11, MAX_PROXY_HEADER),
]


@pytest.mark.parametrize(("data", "source", "destination"), GOOD)
@pytest.mark.parametrize("behind", [b"", b"\x16\x03\x01", b"PROXY TCP4 \r\n"])
def test_source_and_destination_are_read(
    data: bytes, source: str, destination: str, behind: bytes
) -> None:
    header = ProxyHeader(len(data), (source, 4711), (destination, 443))
    assert parse_proxy_header_untrusted(data + behind) == header


@pytest.mark.parametrize("data", WITHOUT_ADDRESSES)
def test_a_connection_of_the_balancer_itself_has_no_addresses(data: bytes) -> None:
    assert parse_proxy_header_untrusted(data + b"x") == ProxyHeader(len(data))


@pytest.mark.parametrize("data", [data for data, *_ in GOOD] + WITHOUT_ADDRESSES)
def test_an_incomplete_header_needs_more(data: bytes) -> None:
    for size in range(len(data)):
        assert parse_proxy_header_untrusted(data[:size]) is None


@pytest.mark.parametrize("data", BAD)
def test_invalid_headers_are_refused(data: bytes) -> None:
    with pytest.raises(RemoteProtocolError):
        parse_proxy_header_untrusted(data)


@given(
    st.sampled_from([b"", b"PROXY ", b"PROXY TCP4 ", b"PROXY TCP6 ::1 ", SIGNATURE, TCP4[:14]]),
    st.binary(max_size=120),
)
def test_hostile_bytes_raise_only_the_protocol_error(start: bytes, rest: bytes) -> None:
    data = start + rest
    try:
        header = parse_proxy_header_untrusted(data)
    except RemoteProtocolError:
        return
    assert header is None or header.length <= len(data)
