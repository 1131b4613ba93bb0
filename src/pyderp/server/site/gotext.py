"""Parses and quotes text as Go's standard library does, with the same error texts."""

from __future__ import annotations

import ipaddress
import re
from decimal import Decimal
from typing import Final, TypeAlias

from pyderp.addresses import IPAddress

__all__ = [
    "AddressPort",
    "Network",
    "address_text",
    "duration_text",
    "parse_address",
    "parse_address_port",
    "parse_duration",
    "parse_integer",
    "parse_network",
    "quote",
]

AddressPort: TypeAlias = tuple[IPAddress, int]
Network: TypeAlias = tuple[IPAddress, int]
"""An address whose bits after the prefix are zero, and the length of the prefix."""

_SIGNED: Final = re.compile("[+-]?[0-9]+")
_UNSIGNED: Final = re.compile("[0-9]+")
_MOST_DIGITS: Final = 40
_PARTS: Final = re.compile("([0-9]+\\.?[0-9]*|\\.[0-9]+)(ns|us|µs|μs|ms|s|m|h)")
_UNITS: Final = {"ns": 1, "us": 10**3, "ms": 10**6, "s": 10**9, "m": 60 * 10**9, "h": 3600 * 10**9}
_SHORT_ESCAPES: Final = dict(zip('\a\b\f\n\r\t\v\\"', 'abfnrtv\\"', strict=True))


def quote(text: str) -> str:
    """Return the text as `strconv.Quote` writes it; surrogates in it are bytes, not UTF-8."""
    return f'"{"".join(map(_quoted, text))}"'


def _quoted(character: str) -> str:
    if character in _SHORT_ESCAPES:
        return "\\" + _SHORT_ESCAPES[character]
    if character.isprintable():
        return character
    code = ord(character)
    if 0xDC80 <= code <= 0xDCFF:
        return f"\\x{code - 0xDC00:02x}"  # a byte, by `surrogateescape`
    if code < 0x80:
        return f"\\x{code:02x}"
    return f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"


def parse_integer(text: str, *, signed: bool = True) -> int:
    """Return a decimal number of 64 bits (`strconv.ParseInt`, `ParseUint`).

    Raises:
        ValueError: not such a number; the text is Go's.
    """
    name = "ParseInt" if signed else "ParseUint"
    if not (_SIGNED if signed else _UNSIGNED).fullmatch(text):
        raise ValueError(f"strconv.{name}: parsing {quote(text)}: invalid syntax")
    sign = -1 if text.startswith("-") else 1
    digits = text.lstrip("+-").lstrip("0")
    # Python's `int` refuses very long texts. 40 digits are enough to be out of range.
    value = sign * int(digits[:_MOST_DIGITS] or "0")
    if value not in (range(-(2**63), 2**63) if signed else range(2**64)):
        raise ValueError(f"strconv.{name}: parsing {quote(text)}: value out of range")
    return value


def parse_address(text: str) -> IPAddress:
    """Return an IP address (`netip.ParseAddr`); an IPv4-mapped IPv6 address stays IPv6.

    Raises:
        ValueError: not an address; the text is Go's, without the details for IPv6.
    """
    try:
        return ipaddress.ip_address(text)
    except ValueError:
        raise ValueError(f"ParseAddr({quote(text)}): {_why_no_address(text)}") from None


def _why_no_address(text: str) -> str:
    first = re.search("[.:%]", text)
    if first is None:
        return "unable to parse IP"
    if first[0] == "%":
        return "missing IPv6 address"
    return _why_no_ipv4(text) if first[0] == "." else "not an IPv6 address"


def _why_no_ipv4(text: str) -> str:
    field, dots = "", 0
    for at, character in enumerate(text):
        if character == ".":
            if not field or at == len(text) - 1:
                return f"IPv4 field must have at least one digit (at {quote(text[at:])})"
            if dots == 3:
                return "IPv4 address too long"
            field, dots = "", dots + 1
        elif character not in "0123456789":
            return f"unexpected character (at {quote(text[at:])})"
        elif field == "0":
            return "IPv4 field has octet with leading zero"
        else:
            field += character
            if int(field) > 255:
                return "IPv4 field has value >255"
    return "IPv4 address too short"


def parse_network(text: str) -> Network:
    """Return a network such as `192.0.2.0/24` (`netip.ParsePrefix`, then `Masked`).

    Raises:
        ValueError: not a network; the text is Go's.
    """
    address_part, slash, bits_part = text.rpartition("/")
    if not slash:
        raise _bad_network(text, "no '/'")
    try:
        address = parse_address(address_part)
    except ValueError as e:
        raise _bad_network(text, str(e)) from None
    if isinstance(address, ipaddress.IPv6Address) and address.scope_id is not None:
        raise _bad_network(text, "IPv6 zones cannot be present in a prefix")
    if not re.fullmatch("0|[1-9][0-9]{0,17}", bits_part):
        raise _bad_network(text, f"bad bits after slash: {quote(bits_part)}")
    bits = int(bits_part)
    if bits > address.max_prefixlen:
        raise _bad_network(text, "prefix length out of range")
    return ipaddress.ip_network((address, bits), strict=False).network_address, bits


def _bad_network(text: str, why: str) -> ValueError:
    return ValueError(f"netip.ParsePrefix({quote(text)}): {why}")


def parse_address_port(text: str) -> AddressPort:
    """Return address and port of `192.0.2.1:80` or `[2001:db8::1]:80` (`netip.ParseAddrPort`).

    Raises:
        ValueError: not an address with a port; the text is Go's.
    """
    host, colon, port = text.rpartition(":")
    if not colon:
        raise ValueError("not an ip:port")
    if not host or not port:
        raise ValueError("no port" if host else "no IP")
    in_brackets = host.startswith("[")
    if in_brackets and (len(host) < 2 or not host.endswith("]")):
        raise ValueError("missing ]")
    if not re.fullmatch("0*[0-9]{1,5}", port) or int(port[-5:]) > 0xFFFF:
        raise ValueError(f"invalid port {quote(port)} parsing {quote(text)}")
    address = parse_address(host[1:-1] if in_brackets else host)
    if in_brackets != (address.version == 6):
        why = (
            "square brackets can only be used with IPv6 addresses"
            if in_brackets
            else "IPv6 addresses must be surrounded by square brackets"
        )
        raise ValueError(f"invalid ip:port {quote(text)}, {why}")
    return address, int(port[-5:])


def address_text(address: IPAddress) -> str:
    """Return the address as Go writes it: an IPv4-mapped one as `::ffff:a.b.c.d`."""
    if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped is not None:
        zone = f"%{address.scope_id}" if address.scope_id else ""
        return f"::ffff:{address.ipv4_mapped}{zone}"
    return str(address)


def parse_duration(text: str) -> int:
    """Return the nanoseconds of a duration such as `1h30m` or `-2.5s` (`time.ParseDuration`).

    Raises:
        ValueError: not a duration, or it does not fit into 64 bits.
    """
    sign = -1 if text.startswith("-") else 1
    rest = text[1:] if text[:1] in ("+", "-") else text
    if rest == "0":
        return 0
    total, at = Decimal(0), 0
    for part in _PARTS.finditer(rest):
        if part.start() != at:
            break
        total += Decimal(part[1]) * _UNITS[part[2].replace("µ", "u").replace("μ", "u")]
        at = part.end()
    if at != len(rest) or not rest or total >= 2**63:
        raise ValueError("not a duration")
    return sign * int(total)


def duration_text(seconds: int) -> str:
    """Return whole seconds as Go writes a duration: `1h0m5s`."""
    minutes, rest = divmod(abs(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    sign = "-" if seconds < 0 else ""
    if hours:
        return f"{sign}{hours}h{minutes}m{rest}s"
    return f"{sign}{minutes}m{rest}s" if minutes else f"{sign}{rest}s"
