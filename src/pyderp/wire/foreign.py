"""Other protocols that reach a relay's port, known by their first bytes. Sans-IO."""

from __future__ import annotations

from typing import Final

from pyderp.errors import RemoteProtocolError
from pyderp.text import printable
from pyderp.wire.clienthello import parse_client_hello_untrusted

__all__ = ["foreign_protocol_untrusted", "is_tls", "server_name_untrusted"]

_NAME: Final = 100
"""Characters of a server name that are repeated."""
_BEGINNINGS: Final = (
    (b"PROXY ", "PROXY header, but proxy-protocol is off or it came twice"),
    (b"\r\n\r\n\0\r\nQUIT\n", "PROXY header, but proxy-protocol is off or it came twice"),
    (b"PRI * HTTP/2", "HTTP/2, which a relay does not speak; a proxy in front must use HTTP/1.1"),
    (b"SSH-", "SSH"),
)
_TPKT: Final = b"\x03\x00"
_CONNECTION_REQUEST: Final = 0xE0
"""X.224; with TPKT around it is how the Remote Desktop Protocol begins (MS-RDPBCGR 2.2.1.1)."""


def is_tls(data: bytes) -> bool:
    """Whether bytes begin like a TLS handshake (RFC 8446 §5.1)."""
    return data[:2] == b"\x16\x03"


def server_name_untrusted(hello: bytes) -> str:
    """What a client asks for by its ClientHello, in words for a log line.

    Never raises: what cannot be read is said to be so.
    """
    try:
        parsed = parse_client_hello_untrusted(hello)
    except RemoteProtocolError as e:
        return str(e)
    if parsed is None:
        return "the ClientHello is not whole"
    if not parsed.server_name:
        return "it asks for no server name (SNI)"
    return f"it asks for the server name {printable(parsed.server_name, _NAME)!r}"


def foreign_protocol_untrusted(data: bytes) -> str:
    """Which protocol the first bytes of a connection are of, where HTTP was expected.

    Returns:
        words for a log line; empty: none that is known here, or too few bytes to say.
    """
    if is_tls(data):
        return f"TLS on a plain HTTP port: {server_name_untrusted(data)}"
    if data[:2] == _TPKT and data[5:6] == bytes((_CONNECTION_REQUEST,)):
        return "RDP (Remote Desktop)"
    return next((name for start, name in _BEGINNINGS if data.startswith(start)), "")
