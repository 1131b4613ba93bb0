from __future__ import annotations

from ipaddress import IPv4Address, IPv6Address, ip_address

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyderp.addresses import as_16_bytes, parse_ip, unmapped


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("192.0.2.1", "192.0.2.1"),
        ("2001:DB8:0::1", "2001:db8::1"),
        ("::ffff:192.0.2.1", "192.0.2.1"),
        ("::ffff:c000:201", "192.0.2.1"),
        ("::192.0.2.1", "::192.0.2.1"),
        ("fe80::1%eth0", "fe80::1%eth0"),
    ],
)
def test_addresses(text: str, address: str) -> None:
    assert parse_ip(text) == ip_address(address)


@pytest.mark.parametrize(
    "text",
    ["", "@", "none", "derp.example.com", "192.0.2.01", "192.0.2.1:80", "[::1]", "::1%", " ::1"],
)
def test_texts_that_are_no_address(text: str) -> None:
    assert parse_ip(text) is None


@given(st.ip_addresses())
def test_sixteen_bytes_are_the_address_again(address: IPv4Address | IPv6Address) -> None:
    packed = as_16_bytes(address)
    assert len(packed) == 16
    assert unmapped(IPv6Address(packed)) == unmapped(address)


def test_sixteen_bytes() -> None:
    assert as_16_bytes(IPv4Address("192.0.2.1")).hex() == "00000000000000000000ffffc0000201"
    assert as_16_bytes(IPv6Address("fe80::1%eth0")) == IPv6Address("fe80::1").packed
