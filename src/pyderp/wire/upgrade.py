"""The HTTP upgrade to DERP: the client's request, the relay's answer, and how it is read."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Final

import h11

from pyderp.errors import BadUpgrade, FailureReason, UpgradeRejected, without_frames
from pyderp.keys import NodePublic
from pyderp.text import h11_words, printable
from pyderp.wire.frames import PROTOCOL_VERSION

__all__ = [
    "UpgradeReply",
    "switching_protocols",
    "upgrade_request",
]

UPGRADE_HEADERS: Final = (("Connection", "Upgrade"), ("Upgrade", "DERP"))
"""What makes a request one for the upgrade to DERP."""
FAST_START_HEADER: Final = "Derp-Fast-Start"
IDEAL_NODE_HEADER: Final = "Ideal-Node"
_MAX_REPLY_BODY: Final = 4096
_QUOTED: Final = 40
"""Bytes of a malformed answer that its error repeats."""
_MAX_SHOWN: Final = 200
"""Most characters of a refusal's body that its error quotes."""
_TAGS: Final = re.compile(r"(?is)<(script|style|head)\b.*?</\1>|<!--.*?-->|<[^>]*>")


def switching_protocols(server: NodePublic) -> bytes:
    """Return the 101 answer, byte for byte that of Go's relay."""
    return (
        "HTTP/1.1 101 Switching Protocols\r\n"
        "Upgrade: DERP\r\n"
        "Connection: Upgrade\r\n"
        f"Derp-Version: {PROTOCOL_VERSION}\r\n"
        f"Derp-Public-Key: {server.untyped_hex()}\r\n\r\n"
    ).encode("ascii")


def upgrade_request(
    host: str,
    target: str,
    *,
    user_agent: str,
    ideal_node: str = "",
    fast_start: bool = False,
    extra: Sequence[tuple[str, str]] = (),
) -> bytes:
    """Return a client's upgrade request, with headers in the order of Go's HTTP library.

    Args:
        host: host and, unless it is the default, port.
        target: path and query; empty: `/`.
        ideal_node: name of the region's first node, when connecting to another one.
        fast_start: the relay's key is known under TLS 1.3: ClientInfo follows at once.

    Raises:
        BadUpgrade: a value that an HTTP request cannot have.
    """
    headers = [*UPGRADE_HEADERS, *extra]
    if ideal_node:
        headers.append((IDEAL_NODE_HEADER, ideal_node))
    if fast_start:
        headers.append((FAST_START_HEADER, "1"))
    headers.sort()
    try:
        head = h11.Connection(h11.CLIENT).send(
            h11.Request(
                method="GET",
                target=target or "/",
                headers=[("Host", host), ("User-Agent", user_agent), *headers],
            )
        )
    except (h11.LocalProtocolError, UnicodeEncodeError) as e:
        raise BadUpgrade(f"cannot ask for an upgrade: {h11_words(e)}") from e
    return head or b""


class UpgradeReply:
    """Reads the relay's answer to `upgrade_request`. As in Go, only the status matters."""

    def __init__(self) -> None:
        self._h11 = h11.Connection(h11.CLIENT)
        # h11 reads an answer only after a request; the real one was made by `upgrade_request`.
        self._h11.send(
            h11.Request(method="GET", target="/", headers=[("Host", "x"), *UPGRADE_HEADERS])
        )
        self._h11.send(h11.EndOfMessage())
        self._refused: tuple[int, str] | None = None
        self._body = b""
        self._start = b""
        """What the answer begins with, for an error if it is none."""

    @property
    def refused(self) -> bool:
        """Whether the answer has another status than 101; its body may be incomplete."""
        return self._refused is not None

    def receive_data(self, data: bytes) -> bytes | None:
        """Take bytes from the relay; `b""`: the relay closed its side.

        Returns:
            the bytes after a complete 101 answer, which start the DERP stream; `None` while
            the answer is incomplete.

        Raises:
            UpgradeRejected: another status. The text has it and the start of the body, with
                unprintable characters escaped.
            BadUpgrade: not HTTP, or no answer at all.
        """
        self._start = (self._start + data[:_QUOTED])[:_QUOTED]
        try:
            self._h11.receive_data(data)
            while True:
                event = self._h11.next_event()
                if event is h11.NEED_DATA:
                    return None
                if isinstance(event, h11.InformationalResponse):
                    if event.status_code == 101:
                        return self._h11.trailing_data[0]
                elif isinstance(event, h11.Response):
                    self._refused = (event.status_code, event.reason.decode("latin-1"))
                elif isinstance(event, h11.Data):
                    self._body += event.data
                    if len(self._body) > _MAX_REPLY_BODY:
                        raise self._error()
                else:
                    raise self._error()
        except h11.RemoteProtocolError as e:
            without_frames(e)  # h11 raises it in a method of itself: its own frames hold it
            if self._refused is not None or not data:
                raise self._error() from e
            # Of garbage in the first line it says that as if it were a request.
            problem = printable(h11_words(e), 100).replace("request line", "status line")
            text = f"the relay's answer is not HTTP: {problem}"
            raise BadUpgrade(text, reason=FailureReason.NO_HTTP) from e

    def refusal(self) -> UpgradeRejected:
        """Return the error for an answer that is `refused`, with the body so far."""
        assert self._refused is not None, "nothing was refused"
        status, reason = self._refused
        body = self._body[:_MAX_REPLY_BODY].decode("utf-8", "replace").strip()
        # Of a web page the error quotes the text without the tags.
        words = " ".join(_TAGS.sub(" ", body).split()) if "<" in body else body
        text = f"upgrade refused: {status} {printable(reason)}".rstrip()
        if words:
            text += f": {printable(words, _MAX_SHOWN)}"
        return UpgradeRejected(text, status=status, body=body)

    def _error(self) -> BadUpgrade:
        if self._refused is None:
            text = "the relay closed the connection without an answer"
            if self._start:
                said = printable(self._start.decode("utf-8", "replace").strip())
                text = f'the relay\'s answer is not HTTP, or not whole: it begins with "{said}"'
            return BadUpgrade(text, reason=FailureReason.NO_HTTP)
        return self.refusal()
