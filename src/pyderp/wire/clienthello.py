"""The first message of a TLS client: the server name and the protocols (ALPN) that it asks for.

The ssl module reports the protocols only after it has chosen one, which is too late for the choice
of the certificate: a certificate authority that checks by TLS-ALPN-01 (RFC 8737) gets another one.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from pyderp.errors import RemoteProtocolError

__all__ = ["MAX_CLIENT_HELLO", "ClientHello", "parse_client_hello_untrusted"]

MAX_CLIENT_HELLO: Final = 16 * 1024
"""Bytes of a ClientHello; post-quantum key shares make it 1.5 KiB today."""

_MAX_RECORDS: Final = 64
"""Most TLS records that a ClientHello may span; nearly all have one. Each read parses all again."""

_MAX_RECORD: Final = 16 * 1024
_HEADER: Final = 5
"""Bytes of a record's header: type, version (2), length (2)."""
_HANDSHAKE: Final = 22
_CLIENT_HELLO: Final = 1
_SERVER_NAME: Final = 0
_ALPN: Final = 16


@dataclass(frozen=True, slots=True)
class ClientHello:
    """The parts of a ClientHello that the choice of a certificate needs."""

    server_name: str
    """As sent; empty: none."""

    protocols: tuple[bytes, ...]
    """ALPN protocols, in the client's order; empty: none."""


def parse_client_hello_untrusted(data: bytes | bytearray | memoryview) -> ClientHello | None:
    """Read a ClientHello from the first bytes of a connection (RFC 8446 §4.1.2, §5.1).

    Args:
        data: all bytes of the connection so far. Bytes after the message are ignored.

    Returns:
        `None` while bytes are missing, at most until `MAX_CLIENT_HELLO` and record headers.

    Raises:
        RemoteProtocolError: this is no ClientHello.
    """
    message = _join_records(memoryview(data))
    return None if message is None else _hello(_Cursor(message))


def _join_records(data: memoryview) -> bytes | None:
    """Return the body of the first handshake message, which may span several records."""
    message = bytearray()
    wanted = 4  # type (1) and length (3)
    start = 0
    for _ in range(_MAX_RECORDS):
        if data[start : start + 1] and data[start] != _HANDSHAKE:
            raise RemoteProtocolError("a TLS record that is not a handshake")
        header = data[start : start + _HEADER]
        if len(header) < _HEADER:
            return None
        length = int.from_bytes(header[3:], "big")
        if header[1] != 3 or not 0 < length <= _MAX_RECORD:
            raise RemoteProtocolError("a TLS record with a bad header")
        # An incomplete record counts as well, so that garbage is refused early.
        body = data[start + _HEADER : start + _HEADER + length]
        message += body
        if len(message) >= 4:
            wanted = 4 + int.from_bytes(message[1:4], "big")
            if message[0] != _CLIENT_HELLO or wanted > 4 + MAX_CLIENT_HELLO:
                raise RemoteProtocolError("a TLS handshake that does not begin with a ClientHello")
        if len(message) >= wanted:
            return bytes(message[4:wanted])
        if len(body) < length:
            return None
        start += _HEADER + length
    raise RemoteProtocolError("a ClientHello in too many records")


class _Cursor:
    """Reads a message from its start on."""

    __slots__ = ("_at", "_data")

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 0

    def __bool__(self) -> bool:
        return self._at < len(self._data)

    def take(self, count: int) -> bytes:
        end = self._at + count
        if end > len(self._data):
            raise RemoteProtocolError("a ClientHello that is cut inside")
        taken = self._data[self._at : end]
        self._at = end
        return taken

    def number(self, size: int) -> int:
        return int.from_bytes(self.take(size), "big")

    def block(self, size: int) -> bytes:
        """Read a length of `size` bytes, then as many bytes as it says."""
        return self.take(self.number(size))


def _hello(hello: _Cursor) -> ClientHello:
    hello.take(2 + 32)  # version, random
    hello.block(1)  # session
    hello.block(2)  # ciphers
    hello.block(1)  # compression
    name, protocols = "", tuple[bytes, ...]()
    if hello:
        seen = set()
        extensions = _Cursor(hello.block(2))
        while extensions:
            kind, body = extensions.number(2), extensions.block(2)
            if kind in seen:
                raise RemoteProtocolError("a ClientHello with an extension twice")
            seen.add(kind)
            if kind == _SERVER_NAME:
                name = _server_name(_Cursor(body))
            elif kind == _ALPN:
                protocols = _protocols(_Cursor(body))
    if hello:
        raise RemoteProtocolError("a ClientHello with bytes after its end")
    return ClientHello(name, protocols)


def _server_name(extension: _Cursor) -> str:
    """RFC 6066 §3: the one name of type host_name; no other type was ever defined."""
    names = _Cursor(extension.block(2))
    kind, name = names.number(1), names.block(2)
    if kind != 0 or names or extension or not name.isascii() or b"\0" in name:
        raise RemoteProtocolError("a ClientHello with a bad server name")
    return name.decode("ascii")


def _protocols(extension: _Cursor) -> tuple[bytes, ...]:
    """RFC 7301 §3.1."""
    names = _Cursor(extension.block(2))
    found = []
    while names:
        found.append(names.block(1))
    if not found or extension or b"" in found:
        raise RemoteProtocolError("a ClientHello with a bad list of protocols")
    return tuple(found)
