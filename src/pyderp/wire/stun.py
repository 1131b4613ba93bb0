"""STUN as Tailscale uses it: a request, and an answer with the address the request came from.

    header:   type u16, length u16, cookie 2112a442, transaction id 12 bytes
    request:  type 0001, attributes SOFTWARE `tailnode` … FINGERPRINT (always last)
    answer:   type 0101, attribute XOR-MAPPED-ADDRESS
    attribute: type u16, length u16, value, padded to 4 bytes

All integers big-endian (RFC 8489; Go's package `net/stun`). Sans-IO.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address
from typing import Final, TypeAlias

from pyderp.errors import LocalProtocolError, RemoteProtocolError

__all__ = [
    "MAX_REQUEST",
    "TX_ID_LEN",
    "BindingResponse",
    "RequestReader",
    "is_stun",
    "pack_request",
    "pack_response",
    "parse_request_untrusted",
    "parse_response_untrusted",
]

TX_ID_LEN: Final = 12
MAX_REQUEST: Final = 1500
"""Longest request that is parsed, in bytes. A datagram of 64 KiB can hold 16,000 attributes, which
would take milliseconds to read."""

_Datagram: TypeAlias = bytes | memoryview

_HEADER_LEN: Final = 20
_COOKIE: Final = bytes.fromhex("2112a442")
_COOKIE_NUMBER: Final = int.from_bytes(_COOKIE)
_PORT_MASK: Final = _COOKIE_NUMBER >> 16
_REQUEST_TYPE: Final = b"\x00\x01"
_RESPONSE_TYPE: Final = b"\x01\x01"

_SOFTWARE: Final = 0x8022
_FINGERPRINT: Final = 0x8028
_MAPPED_ADDRESS: Final = 0x0001
_XOR_MAPPED_ADDRESS: Final = 0x0020
_XOR_MAPPED_ADDRESS_ALT: Final = 0x8020
"""From drafts of RFC 5389; some servers still send it."""

_SOFTWARE_NAME: Final = b"tailnode"
_FINGERPRINT_MASK: Final = 0x5354554E
_FINGERPRINT_LEN: Final = 8

# What every Tailscale client sends: nothing in it changes but the id and the fingerprint.
_PLAIN_REQUEST: Final = struct.Struct(">8s12s16sI")
_PLAIN_HEAD: Final = _REQUEST_TYPE + b"\x00\x14" + _COOKIE
_PLAIN_ATTRIBUTES: Final = (
    struct.pack(">HH", _SOFTWARE, len(_SOFTWARE_NAME))
    + _SOFTWARE_NAME
    + struct.pack(">HH", _FINGERPRINT, 4)
)
_PLAIN_CHECKED: Final = 32
_PLAIN_LEN: Final = _PLAIN_REQUEST.size
_unpack_plain = _PLAIN_REQUEST.unpack_from
_crc32 = zlib.crc32

_pack_v4 = struct.Struct(">8s12s6sHI").pack
_RESPONSE_V4_HEAD: Final = _RESPONSE_TYPE + b"\x00\x0c" + _COOKIE
_ATTRIBUTE_V4: Final = bytes.fromhex("002000080001")
_RESPONSE_V6: Final = struct.Struct(">8s12s6sH16s")
_RESPONSE_V6_HEAD: Final = _RESPONSE_TYPE + b"\x00\x18" + _COOKIE
_ATTRIBUTE_V6: Final = bytes.fromhex("002000140002")
_MAPPED_V4_PREFIX: Final = bytes.fromhex("00000000000000000000ffff")

_ATTRIBUTE: Final = struct.Struct(">HH")
_ADDRESS_LENGTHS: Final = {1: 4, 2: 16}


@dataclass(frozen=True, slots=True)
class BindingResponse:
    """A server's answer: the address from which the request reached it."""

    tx_id: bytes
    address: IPv4Address | IPv6Address
    """IPv4 also when the server sent it as `::ffff:a.b.c.d`."""
    port: int


def is_stun(datagram: _Datagram) -> bool:
    """Whether a datagram looks like STUN (as `stun.Is`); its length field is not checked."""
    return len(datagram) >= _HEADER_LEN and datagram[0] < 0x40 and datagram[4:8] == _COOKIE


def pack_request(tx_id: bytes) -> bytes:
    """Return a binding request of 40 bytes (as `stun.Request`).

    Args:
        tx_id: 12 random bytes; the answer has the same.

    Raises:
        LocalProtocolError: not 12 bytes.
    """
    _check_tx_id(tx_id)
    checked = _PLAIN_HEAD + tx_id + _PLAIN_ATTRIBUTES[:-4]
    return checked + _PLAIN_ATTRIBUTES[-4:] + _fingerprint(checked).to_bytes(4)


def parse_request_untrusted(datagram: _Datagram) -> bytes:
    """Return the transaction id of a request that a DERP server answers.

    A SOFTWARE attribute must be `tailnode` and the last attribute a valid FINGERPRINT; other
    attributes and the length in the header are ignored (as `stun.ParseBindingRequest`).

    Raises:
        RemoteProtocolError: any other datagram, and one of more than 1,500 bytes. The server
            must not answer.
    """
    if not is_stun(datagram):
        raise RemoteProtocolError("not a STUN message")
    if datagram[:2] != _REQUEST_TYPE:
        raise RemoteProtocolError("STUN message is not a binding request")
    if len(datagram) > MAX_REQUEST:
        raise RemoteProtocolError(f"STUN request of more than {MAX_REQUEST} bytes")
    is_tailnode = False
    kind, value = 0, datagram[:0]
    for kind, value in _attributes(datagram[_HEADER_LEN:]):
        if kind == _SOFTWARE and value == _SOFTWARE_NAME:
            is_tailnode = True
    if not is_tailnode:
        raise RemoteProtocolError("STUN request of other software than Tailscale's")
    if kind != _FINGERPRINT or len(value) != 4:
        raise RemoteProtocolError("STUN request without a fingerprint at its end")
    if int.from_bytes(value) != _fingerprint(datagram[:-_FINGERPRINT_LEN]):
        raise RemoteProtocolError("STUN request with a wrong fingerprint")
    return bytes(datagram[8:_HEADER_LEN])


class RequestReader:
    """A buffer for requests, with a fast path for the request that Tailscale's clients send.

    It accepts the same requests as `parse_request_untrusted`, in 0.3 µs instead of 2 µs.
    """

    __slots__ = ("_checked", "_view", "buffer")

    buffer: bytearray
    """For one datagram; one byte longer than allowed, so that a longer datagram is noticed."""

    def __init__(self) -> None:
        self.buffer = bytearray(MAX_REQUEST + 1)
        self._view = memoryview(self.buffer)
        self._checked = self._view[:_PLAIN_CHECKED]

    def read_untrusted(self, size: int) -> bytes:
        """Do as `parse_request_untrusted` for the first `size` bytes of the buffer."""
        if size == _PLAIN_LEN:
            head, tx_id, attributes, fingerprint = _unpack_plain(self.buffer)
            if (
                head == _PLAIN_HEAD
                and attributes == _PLAIN_ATTRIBUTES
                and fingerprint == _crc32(self._checked) ^ _FINGERPRINT_MASK
            ):
                return tx_id  # type: ignore[no-any-return]  # struct knows no types
        return parse_request_untrusted(self._view[:size])


def pack_response(tx_id: bytes, address: bytes, port: int) -> bytes:
    """Return the answer to a request: 32 bytes for IPv4, 44 for IPv6 (as `stun.Response`).

    Args:
        tx_id: the request's.
        address: the request's source, 4 or 16 bytes; `::ffff:a.b.c.d` is sent as IPv4.
        port: the request's source port.

    Raises:
        LocalProtocolError: a transaction id or address of another length.
    """
    if len(tx_id) != TX_ID_LEN:
        _check_tx_id(tx_id)
    if address[:12] == _MAPPED_V4_PREFIX:
        address = address[12:]
    port ^= _PORT_MASK
    if len(address) == 4:
        masked = int.from_bytes(address) ^ _COOKIE_NUMBER
        return _pack_v4(_RESPONSE_V4_HEAD, tx_id, _ATTRIBUTE_V4, port, masked)
    if len(address) != 16:
        raise LocalProtocolError(f"IP address of {len(address)} bytes; want 4 or 16")
    masked_v6 = _xor(address, _COOKIE + tx_id)
    return _RESPONSE_V6.pack(_RESPONSE_V6_HEAD, tx_id, _ATTRIBUTE_V6, port, masked_v6)


def parse_response_untrusted(datagram: _Datagram) -> BindingResponse:
    """Read a server's answer (as `stun.ParseResponse`).

    Compare its transaction id with those that were sent: nothing else ties it to a request.

    Raises:
        RemoteProtocolError: not a success response, malformed, or without an address.
    """
    if not is_stun(datagram):
        raise RemoteProtocolError("not a STUN message")
    if datagram[:2] != _RESPONSE_TYPE:
        raise RemoteProtocolError("STUN message is not a success response")
    end = _HEADER_LEN + int.from_bytes(datagram[2:4])
    if end > len(datagram):
        raise RemoteProtocolError("STUN response is shorter than it says")
    tx_id = bytes(datagram[8:_HEADER_LEN])
    best = fallback = None
    for kind, value in _attributes(datagram[_HEADER_LEN:end]):
        if kind in (_XOR_MAPPED_ADDRESS, _XOR_MAPPED_ADDRESS_ALT):
            best = _parse_address(value, tx_id, _COOKIE + tx_id)
        elif kind == _MAPPED_ADDRESS:
            fallback = _parse_address(value, tx_id, bytes(16))
    found = best or fallback
    if found is None:
        raise RemoteProtocolError("STUN response without an address")
    return found


def _parse_address(value: _Datagram, tx_id: bytes, mask: bytes) -> BindingResponse:
    size = _ADDRESS_LENGTHS.get(value[1]) if len(value) >= 4 else None
    if size is None or len(value) < 4 + size:
        raise RemoteProtocolError("STUN response with a malformed address")
    port = int.from_bytes(_xor(value[2:4], mask))
    raw = _xor(value[4 : 4 + size], mask)
    if size == 16 and not raw.startswith(_MAPPED_V4_PREFIX):
        return BindingResponse(tx_id, IPv6Address(raw), port)
    return BindingResponse(tx_id, IPv4Address(raw[-4:]), port)


def _attributes(data: _Datagram) -> Iterator[tuple[int, _Datagram]]:
    """Yield types and values. Each value must be followed by its padding, the last one too."""
    at = 0
    while at < len(data):
        if len(data) - at < _ATTRIBUTE.size:
            raise RemoteProtocolError("STUN attribute with half a header")
        kind, size = _ATTRIBUTE.unpack_from(data, at)
        at += _ATTRIBUTE.size
        following = at + size + (-size % 4)
        if following > len(data):
            raise RemoteProtocolError("STUN attribute is longer than its message")
        yield kind, data[at : at + size]
        at = following


def _fingerprint(checked: _Datagram) -> int:
    return zlib.crc32(checked) ^ _FINGERPRINT_MASK


def _xor(data: _Datagram, mask: bytes) -> bytes:
    size = len(data)
    return (int.from_bytes(data) ^ int.from_bytes(mask[:size])).to_bytes(size)


def _check_tx_id(tx_id: bytes) -> None:
    if len(tx_id) != TX_ID_LEN:
        raise LocalProtocolError(f"STUN transaction id of {len(tx_id)} bytes; want {TX_ID_LEN}")
