"""A relay's answer to a client's HTTP upgrade: `pyderp.wire.upgrade.UpgradeReply`."""

from __future__ import annotations

from typing import Final

from fuzz.targets._input import cut, split_input
from pyderp.errors import BadUpgrade
from pyderp.wire.upgrade import UpgradeReply

__all__ = ["TOKENS", "one_input"]

TOKENS: Final = (
    b"HTTP/1.1 101 Switching Protocols\r\n",
    b"HTTP/1.1 100 Continue\r\n\r\n",
    b"HTTP/1.1 426 Upgrade Required\r\n",
    b"HTTP/1.0 200 OK\r\n",
    b"Upgrade: DERP\r\nConnection: Upgrade\r\n",
    b"Derp-Version: 2\r\n",
    b"Content-Length: 3\r\n",
    b"Transfer-Encoding: chunked\r\n",
    b"Connection: close\r\n",
    b"\r\n\r\n",
    b"\xff",
)


def _outcome(payload: bytes, sizes: bytes) -> tuple[bytes | None, str]:
    """Returns the bytes behind the answer, or `None` and why the answer was refused."""
    reply = UpgradeReply()
    seen = 0
    try:
        for chunk in cut(payload, sizes):
            seen += len(chunk)
            rest = reply.receive_data(chunk)
            if rest is not None:
                assert payload[:seen].endswith(rest), "bytes behind the head are lost or made up"
                return rest + payload[seen:], ""
        assert reply.receive_data(b"") is None, "an upgrade out of nothing"
    except BadUpgrade as e:
        text = str(e)
    else:
        raise AssertionError("the relay closed, and the client still waits")
    assert len(text) <= 200 + 2 * 4096 + seen
    return None, "refused"


def one_input(data: bytes) -> None:
    """Read an answer, in chunks and at once."""
    _, sizes, payload = split_input(data)
    chunked, whole = _outcome(payload, sizes), _outcome(payload, b"")
    assert chunked == whole, "chunks make a difference"
