from __future__ import annotations

from ipaddress import IPv4Address, IPv6Address, ip_address
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyderp.addresses import (
    as_16_bytes,
    bracketed,
    format_address,
    ip_literal,
    is_loopback,
    normal_name,
    parse_address,
    parse_ip,
    unix_path,
    unmapped,
    unmapped_text,
)
from pyderp.errors import ConfigError


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
def test_an_address_is_split_into_host_and_port(text: str, address: str) -> None:
    assert parse_ip(text) == ip_address(address)


@pytest.mark.parametrize(
    "text",
    ["", "@", "none", "derp.example.com", "192.0.2.01", "192.0.2.1:80", "[::1]", "::1%", " ::1"],
)
def test_other_texts_are_refused(text: str) -> None:
    assert parse_ip(text) is None
    assert ip_literal(text) is None


def test_a_literal_stays_as_it_is_written() -> None:
    assert ip_literal("::ffff:192.0.2.1") == IPv6Address("::ffff:192.0.2.1")


@given(st.ip_addresses())
def test_sixteen_bytes_are_the_address_again(address: IPv4Address | IPv6Address) -> None:
    packed = as_16_bytes(address)
    assert len(packed) == 16
    assert unmapped(IPv6Address(packed)) == unmapped(address)


def test_sixteen_bytes_become_an_address() -> None:
    assert as_16_bytes(IPv4Address("192.0.2.1")).hex() == "00000000000000000000ffffc0000201"
    assert as_16_bytes(IPv6Address("fe80::1%eth0")) == IPv6Address("fe80::1").packed


@pytest.mark.parametrize(
    ("text", "want"),
    [
        (":443", ("", 443)),
        (":0", ("", 0)),
        ("127.0.0.1:3340", ("127.0.0.1", 3340)),
        ("[::1]:8443", ("::1", 8443)),
        ("[::]:65535", ("::", 65535)),
        ("derp.example.com:https", ("derp.example.com", 443)),
        (":http", ("", 80)),
    ],
)
def test_addresses_as_derper_takes_them(text: str, want: tuple[str, int]) -> None:
    assert parse_address(text) == want


@pytest.mark.parametrize(
    "text",
    [
        "",
        "127.0.0.1",
        "443",
        "::1",
        "::1:443",
        "127.0.0.1:",
        ":",
        ":65536",
        ":-1",
        ":+1",
        ": 80",
        ":80x",
        ":٤٤٣",
        ":" + "9" * 5000,
    ],
)
def test_other_addresses_are_refused_with_the_text_given(text: str) -> None:
    with pytest.raises(ConfigError, match="invalid server address"):
        parse_address(text)


def test_format_puts_brackets_around_ipv6_only() -> None:
    assert format_address("192.0.2.1", 80) == "192.0.2.1:80"
    assert format_address("2001:db8::1", 80) == "[2001:db8::1]:80"
    assert format_address("derp.example.com", 443) == "derp.example.com:443"
    assert bracketed("2001:db8::1") == "[2001:db8::1]"
    assert bracketed("192.0.2.1") == "192.0.2.1"


@pytest.mark.parametrize(
    ("host", "want"),
    [
        ("::ffff:192.0.2.1", "192.0.2.1"),
        ("192.0.2.1", "192.0.2.1"),
        ("2001:db8::1", "2001:db8::1"),
        ("::1", "::1"),
        ("fe80::1%eth0", "fe80::1%eth0"),
    ],
)
def test_unmapped_text_shows_ipv4_addresses_as_such(host: str, want: str) -> None:
    assert unmapped_text(host) == want


def test_a_missing_bracket_is_reported() -> None:
    with pytest.raises(ConfigError, match="a bracket is missing"):
        parse_address("[::1:0")


@pytest.mark.parametrize("address", ["unix:", "unix:relay.sock", "unix:./relay.sock"])
def test_a_unix_socket_needs_a_whole_path(address: str) -> None:
    with pytest.raises(ConfigError, match="unix:/absolute/path"):
        unix_path(address)


def test_other_addresses_are_no_unix_sockets() -> None:
    assert unix_path("127.0.0.1:443") is None
    assert unix_path("unix:/run/x.sock") == Path("/run/x.sock")


@pytest.mark.parametrize(
    ("address", "want"),
    [
        ("127.0.0.1:80", True),
        ("[::1]:80", True),
        ("192.0.2.1:80", False),
        (":80", False),
        ("localhost:80", False),
        ("unix:/run/x.sock", False),
    ],
)
def test_addresses_that_only_this_machine_reaches(address: str, want: bool) -> None:
    assert is_loopback(address) is want


@pytest.mark.parametrize(
    ("given", "normal"),
    [
        ("DERP.Example.COM.", "derp.example.com"),
        ("Bücher.example", "xn--bcher-kva.example"),
        ("xn--bcher-kva.example", "xn--bcher-kva.example"),
    ],
)
def test_names_have_one_form(given: str, normal: str) -> None:
    assert normal_name(given) == normal


@pytest.mark.parametrize("name", ["straße.example", "ü" * 70 + ".example", "ü..example"])
def test_international_names_that_are_in_doubt_are_refused(name: str) -> None:
    with pytest.raises(ConfigError, match=r"international|ASCII form"):
        normal_name(name)
