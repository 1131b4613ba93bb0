"""A server's answer to a plain HTTP request: `pyderp.wire.httpreply.HttpExchange`.

The first byte's lowest bit asks by HEAD instead of GET, the next one for an upgrade.
"""

from __future__ import annotations

from typing import Final

from fuzz.targets._input import cut, split_input
from pyderp.errors import RemoteProtocolError
from pyderp.netcheck.captive import Endpoint, is_captive
from pyderp.wire.httpreply import MAX_HEAD, HttpExchange, HttpReply

__all__ = ["TOKENS", "one_input"]

TOKENS: Final = (
    b"HTTP/1.1 204 No Content\r\n",
    b"HTTP/1.1 100 Continue\r\n\r\n",
    b"HTTP/1.1 101 Switching Protocols\r\n",
    b"HTTP/1.0 302 Found\r\n",
    b"X-Tailscale-Response: response ts_192.0.2.1\r\n",
    b"Content-Length: 3\r\n",
    b"Transfer-Encoding: chunked\r\n",
    b"Connection: close\r\n",
    b"\r\n\r\n",
    b"\xff",
)
_MAX_BODY: Final = 100
_ENDPOINT: Final = Endpoint("192.0.2.1")


_UPGRADE: Final = (("Connection", "Upgrade"), ("Upgrade", "DERP"))


def _outcome(payload: bytes, sizes: bytes, mode: int) -> tuple[HttpReply | None, bytes, bytes]:
    """Returns the answer's head, its body and what follows a 101; no head: it was refused."""
    method, headers = "HEAD" if mode & 1 else "GET", _UPGRADE if mode & 2 else ()
    http = HttpExchange("192.0.2.1", "/", method=method, headers=headers, max_body=_MAX_BODY)
    try:
        for chunk in cut(payload, sizes):
            http.receive_data_untrusted(chunk)
        http.receive_data_untrusted(b"")
    except RemoteProtocolError:
        return None, b"", b""
    assert http.finished
    assert http.reply is not None
    assert len(http.body) <= _MAX_BODY
    assert payload.endswith(http.rest)
    assert http.reply.status == 101 or not http.rest
    is_captive(_ENDPOINT, http.reply)
    size = sum(len(name) + len(value) for name, value in http.reply.headers)
    assert size <= MAX_HEAD + 8192
    return http.reply, http.body, http.rest


def one_input(data: bytes) -> None:
    """Read an answer, in chunks and at once."""
    mode, sizes, payload = split_input(data)
    assert _outcome(payload, sizes, mode) == _outcome(payload, b"", mode), (
        "chunks make a difference"
    )
