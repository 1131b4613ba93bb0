"""Recognises other protocols on a relay's port by their first bytes. Sans-IO."""

from __future__ import annotations

from typing import Final

from pyderp.errors import RemoteProtocolError
from pyderp.text import printable
from pyderp.wire.clienthello import parse_client_hello_untrusted

__all__ = ["foreign_protocol_untrusted", "is_tls", "server_name_untrusted"]

_NAME: Final = 100
"""Most characters of a server name that are quoted."""
_BEGINNINGS: Final = (
    (b"PROXY ", "PROXY header, but proxy-protocol is off or it came twice"),
    (b"\r\n\r\n\0\r\nQUIT\n", "PROXY header, but proxy-protocol is off or it came twice"),
    (b"PRI * HTTP/2", "HTTP/2, which a relay does not speak; a proxy in front must use HTTP/1.1"),
    (b"SSH-", "SSH"),
)
_TPKT: Final = b"\x03\x00"
_CONNECTION_REQUEST: Final = 0xE0
"""X.224 connection request; in TPKT, the start of Remote Desktop (MS-RDPBCGR 2.2.1.1)."""


def is_tls(data: bytes) -> bool:
    """Whether bytes begin like a TLS handshake (RFC 8446 §5.1)."""
    return data[:2] == b"\x16\x03"


def server_name_untrusted(hello: bytes) -> str:
    """Describe for a log line which server name a ClientHello asks for.

    Never raises: the description says what is wrong with the ClientHello.
    """
    try:
        parsed = parse_client_hello_untrusted(hello)
    except RemoteProtocolError as e:
        return str(e)
    if parsed is None:
        return "the ClientHello is incomplete"
    if not parsed.server_name:
        return "it asks for no server name (SNI)"
    return f"it asks for the server name {printable(parsed.server_name, _NAME)!r}"


def foreign_protocol_untrusted(data: bytes) -> str:
    """Name the protocol of a connection's first bytes where HTTP was expected.

    Returns:
        text for a log line; empty if no protocol is recognised or bytes are missing.
    """
    if is_tls(data):
        return f"TLS on a plain HTTP port: {server_name_untrusted(data)}"
    if data[:2] == _TPKT and data[5:6] == bytes((_CONNECTION_REQUEST,)):
        return "RDP (Remote Desktop)"
    return next((name for start, name in _BEGINNINGS if data.startswith(start)), "")
