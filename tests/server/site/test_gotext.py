"""Go's formats of numbers, durations, addresses and quoted text."""

from __future__ import annotations

import re
from ipaddress import ip_address

import pytest

from pyderp.server.site import gotext


@pytest.mark.parametrize(
    ("text", "quoted"),
    [
        ("", '""'),
        ('a "b" \\', r'"a \"b\" \\"'),
        ("\a\b\f\n\r\t\v", r'"\a\b\f\n\r\t\v"'),
        ("\x00\x1b\x7f", r'"\x00\x1b\x7f"'),
        ("é ☺", '"é ☺"'),
        ("\u202e\u00ad\U000e0001", r'"\u202e\u00ad\U000e0001"'),
        (b"\xff\xc3".decode("utf-8", "surrogateescape"), r'"\xff\xc3"'),
    ],
)
def test_text_is_quoted(text: str, quoted: str) -> None:
    assert gotext.quote(text) == quoted


@pytest.mark.parametrize(
    ("text", "nanoseconds"),
    [
        ("0", 0),
        ("-0", 0),
        ("5s", 5 * 10**9),
        ("+1h30m", 5400 * 10**9),
        ("-1.5h", -5400 * 10**9),
        (".5ms", 500_000),
        ("1.ms", 1_000_000),
        ("1us2µs3μs4ns", 6004),
        ("0.1ns", 0),
        ("2562047h47m16.854775807s", 2**63 - 1),
    ],
)
def test_durations_are_parsed(text: str, nanoseconds: int) -> None:
    assert gotext.parse_duration(text) == nanoseconds


@pytest.mark.parametrize(
    "text", ["", "-", "+", "5", "s", ".s", "1 s", "1h x", "1d", "--1s", "9" * 9000 + "h", "1S"]
)
def test_an_invalid_duration_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="not a duration"):
        gotext.parse_duration(text)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0s"), (59, "59s"), (60, "1m0s"), (3605, "1h0m5s"), (360_000, "100h0m0s"), (-61, "-1m1s")],
)
def test_durations_are_written(seconds: int, text: str) -> None:
    assert gotext.duration_text(seconds) == text


@pytest.mark.parametrize(
    ("text", "signed", "value"),
    [
        ("-9223372036854775808", True, -(2**63)),
        ("+0009223372036854775807", True, 2**63 - 1),
        ("18446744073709551615", False, 2**64 - 1),
        ("0" * 9000, False, 0),
    ],
)
def test_integers_have_64_bits(text: str, signed: bool, value: int) -> None:
    assert gotext.parse_integer(text, signed=signed) == value


@pytest.mark.parametrize(
    ("text", "signed", "why"),
    [
        ("9223372036854775808", True, "value out of range"),
        ("9" * 9000, True, "value out of range"),
        ("18446744073709551616", False, "value out of range"),
        ("-1", False, "invalid syntax"),
        ("1_0", True, "invalid syntax"),
        ("", True, "invalid syntax"),
        ("٣", True, "invalid syntax"),
        ("1\n", True, "invalid syntax"),
    ],
)
def test_invalid_integers_are_refused(text: str, signed: bool, why: str) -> None:
    with pytest.raises(ValueError, match=f"parsing .*: {why}"):
        gotext.parse_integer(text, signed=signed)


@pytest.mark.parametrize(
    ("address", "text"),
    [
        ("192.0.2.1", "192.0.2.1"),
        ("::ffff:192.0.2.1", "::ffff:192.0.2.1"),
        ("::ffff:192.0.2.1%eth0", "::ffff:192.0.2.1%eth0"),
        ("2001:DB8:0:0:0::1", "2001:db8::1"),
        ("fe80::1%eth0", "fe80::1%eth0"),
    ],
)
def test_addresses_are_written(address: str, text: str) -> None:
    assert gotext.address_text(ip_address(address)) == text


@pytest.mark.parametrize(
    ("text", "pair"),
    [
        ("192.0.2.1:80", ("192.0.2.1", 80)),
        ("192.0.2.1:0000065535", ("192.0.2.1", 65535)),
        ("[::1]:0", ("::1", 0)),
        ("[fe80::1%eth0]:5", ("fe80::1%eth0", 5)),
    ],
)
def test_an_address_with_a_port_is_parsed(text: str, pair: tuple[str, int]) -> None:
    assert gotext.parse_address_port(text) == (ip_address(pair[0]), pair[1])


@pytest.mark.parametrize(
    ("text", "why"),
    [
        (
            "::1:80",
            'invalid ip:port "::1:80", IPv6 addresses must be surrounded by square brackets',
        ),
        (
            "[192.0.2.1]:80",
            'invalid ip:port "[192.0.2.1]:80", '
            "square brackets can only be used with IPv6 addresses",
        ),
        ("[::1]80", "missing ]"),
        ("192.0.2.1:", "no port"),
        (":80", "no IP"),
        ("80", "not an ip:port"),
        ("[:1", "missing ]"),
        ("192.0.2.1:65536", 'invalid port "65536" parsing "192.0.2.1:65536"'),
        ("192.0.2.1:x", 'invalid port "x" parsing "192.0.2.1:x"'),
        ("a:80", 'ParseAddr("a"): unable to parse IP'),
    ],
)
def test_an_invalid_address_with_port_is_refused(text: str, why: str) -> None:
    with pytest.raises(ValueError, match=re.escape(why) + "$"):
        gotext.parse_address_port(text)


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "unable to parse IP"),
        ("%eth0", "missing IPv6 address"),
        ("1::2::3", "not an IPv6 address"),
        ("1..2.3", 'IPv4 field must have at least one digit (at ".2.3")'),
        ("1.2.3.", 'IPv4 field must have at least one digit (at ".")'),
        ("1.2.3.4.5", "IPv4 address too long"),
        ("1.2.x.4", 'unexpected character (at "x.4")'),
        ("1.02.3.4", "IPv4 field has octet with leading zero"),
        ("1.2.3.256", "IPv4 field has value >255"),
        ("1.2.3", "IPv4 address too short"),
    ],
)
def test_an_invalid_address_is_refused_with_the_text_of_go(text: str, why: str) -> None:
    with pytest.raises(ValueError, match=r"^ParseAddr") as caught:
        gotext.parse_address(text)
    assert str(caught.value) == f'ParseAddr("{text}"): {why}'


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("192.0.2.1", "no '/'"),
        ("x/8", 'ParseAddr("x"): unable to parse IP'),
        ("fe80::1%eth0/64", "IPv6 zones cannot be present in a prefix"),
        ("192.0.2.1/08", 'bad bits after slash: "08"'),
        ("192.0.2.1/33", "prefix length out of range"),
    ],
)
def test_an_invalid_network_is_refused_with_the_text_of_go(text: str, why: str) -> None:
    with pytest.raises(ValueError, match=r"^netip\.ParsePrefix") as caught:
        gotext.parse_network(text)
    assert str(caught.value) == f'netip.ParsePrefix("{text}"): {why}'


def test_bits_behind_the_prefix_of_a_network_are_cleared() -> None:
    assert gotext.parse_network("192.0.2.77/24") == (ip_address("192.0.2.0"), 24)
    assert gotext.parse_network("2001:db8::1/0") == (ip_address("::"), 0)
