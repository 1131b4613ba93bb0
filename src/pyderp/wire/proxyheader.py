"""PROXY protocol headers, versions 1 and 2: a load balancer names the real client. Sans-IO.

Source: "The PROXY protocol", versions 1 & 2, by HAProxy's Willy Tarreau.
"""

from __future__ import annotations

import ipaddress
import struct
from dataclasses import dataclass
from typing import Final, TypeAlias

from pyderp.addresses import unmapped
from pyderp.errors import RemoteProtocolError

__all__ = ["MAX_PROXY_HEADER", "ProxyHeader", "parse_proxy_header_untrusted"]

Endpoint: TypeAlias = tuple[str, int]

MAX_PROXY_HEADER: Final = 2048
"""Largest header accepted, in bytes; load balancers send a few hundred."""

_V1: Final = b"PROXY "
_V1_LONGEST: Final = 107
_V2: Final = b"\r\n\r\n\0\r\nQUIT\n"
_V2_HEAD: Final = struct.Struct(">12sBBH")
_VERSION_2: Final = 0x20
_LOCAL, _PROXY = 0, 1
_TCP4, _TCP6 = 0x11, 0x21
_ADDRESSES: Final = {_TCP4: struct.Struct(">4s4sHH"), _TCP6: struct.Struct(">16s16sHH")}


@dataclass(frozen=True, slots=True)
class ProxyHeader:
    """A header, which precedes the bytes of a connection."""

    length: int
    """Length of the header in bytes."""

    source: Endpoint | None = None
    """Address and port of the client; `None`: not named, as for a health check."""

    destination: Endpoint | None = None
    """Address and port that the client connected to."""


def parse_proxy_header_untrusted(data: bytes) -> ProxyHeader | None:
    """Read the header at the start of `data`; `None` while bytes are missing.

    Raises:
        RemoteProtocolError: no header, a malformed one, or more than `MAX_PROXY_HEADER` bytes.
    """
    if data[: len(_V2)] == _V2[: len(data)]:
        return _parse_v2(data)
    if data[: len(_V1)] == _V1[: len(data)]:
        return _parse_v1(data)
    raise RemoteProtocolError("no PROXY header")


def _parse_v1(data: bytes) -> ProxyHeader | None:
    line, end, _ = data[:_V1_LONGEST].partition(b"\r\n")
    if not end:
        if len(data) >= _V1_LONGEST:
            raise RemoteProtocolError("PROXY header v1 without an end")
        return None
    length = len(line) + len(end)
    fields = line.decode("ascii", "replace").split(" ")
    if fields[1] == "UNKNOWN":
        return ProxyHeader(length)
    if len(fields) != 6 or fields[1] not in ("TCP4", "TCP6"):
        raise RemoteProtocolError("malformed PROXY header v1")
    version = 4 if fields[1] == "TCP4" else 6
    return ProxyHeader(
        length,
        _endpoint(fields[2], fields[4], version),
        _endpoint(fields[3], fields[5], version),
    )


def _endpoint(host: str, port: str, version: int) -> Endpoint:
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        raise RemoteProtocolError("PROXY header v1 with a bad address") from None
    number = int(port) if port.isascii() and port.isdigit() and len(port) <= 5 else -1
    if address.version != version or not 0 <= number <= 65535:
        raise RemoteProtocolError("PROXY header v1 with a bad address or port")
    return str(unmapped(address)), number


def _parse_v2(data: bytes) -> ProxyHeader | None:
    if len(data) < _V2_HEAD.size:
        return None
    _, version_command, family, size = _V2_HEAD.unpack_from(data)
    length = _V2_HEAD.size + size
    command = version_command & 0x0F
    if version_command & 0xF0 != _VERSION_2 or command not in (_LOCAL, _PROXY):
        raise RemoteProtocolError(f"PROXY header of version and command {version_command:#x}")
    if length > MAX_PROXY_HEADER:
        raise RemoteProtocolError(f"PROXY header of {length} bytes")
    if len(data) < length:
        return None
    layout = _ADDRESSES.get(family)
    if command == _LOCAL or layout is None:
        return ProxyHeader(length)
    if size < layout.size:
        raise RemoteProtocolError("PROXY header v2 without its addresses")
    source, destination, source_port, destination_port = layout.unpack_from(data, _V2_HEAD.size)
    return ProxyHeader(
        length,
        (str(unmapped(ipaddress.ip_address(source))), source_port),
        (str(unmapped(ipaddress.ip_address(destination))), destination_port),
    )
