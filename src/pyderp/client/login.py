"""From a byte stream to a login: HTTP upgrade or websocket, then DERP."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from pyderp.client.config import UrlTarget
from pyderp.client.faststart import FastStart
from pyderp.errors import BadUpgrade, RemoteProtocolError, UpgradeRejected, raisable
from pyderp.keys import NodePrivate, NodePublic
from pyderp.net.link import Link
from pyderp.net.tls import TLSState
from pyderp.net.websocket import open_websocket, read_refusal
from pyderp.wire.client import ClientSession, ClientState
from pyderp.wire.http import DERP_PATH
from pyderp.wire.login import ClientInfo
from pyderp.wire.messages import Message, Skipped
from pyderp.wire.upgrade import IDEAL_NODE_HEADER, UpgradeReply, upgrade_request
from pyderp.wire.websocket_client import WebSocketClient

__all__ = [
    "Established",
    "Login",
    "closed_by_relay",
    "over_http",
    "over_stream",
    "over_websocket",
    "with_hint",
]

log = logging.getLogger("pyderp.client")

USER_AGENT: Final = "pyderp"
_NO_GREETING: Final = "derp.Client: failed to receive server key: "


def _log_skipped(frame: Skipped) -> None:
    log.debug("[unexpected] dropping %s (type %#04x)", frame.remark, frame.frame_type)


@dataclass(frozen=True, slots=True)
class Login:
    """The client that logs in, and the frames that it sends first."""

    private: NodePrivate
    info: ClientInfo
    preferred: bool = False
    watch: bool = False

    def session(self, server_key: NodePublic | None) -> ClientSession:
        """Returns a new session of this client."""
        return ClientSession(
            self.private,
            random=os.urandom,
            info=self.info,
            server_key=server_key,
            on_skip=_log_skipped,
        )

    def first_frames(self, session: ClientSession) -> bytes:
        """Returns ClientInfo and the frames that must be the first on a new connection."""
        if self.preferred:
            session.note_preferred(True)
        if self.watch:
            session.watch_conns()
        return b"".join(session.data_to_send())


@dataclass(slots=True)
class Established:
    """A stream on which this client has logged in, for a `ClientConnection`."""

    link: Link
    session: ClientSession
    messages: list[Message]
    """Messages that came with the relay's greeting."""
    tls: TLSState | None = None
    """TLS of the stream; `None` without TLS."""
    fast_start: FastStart | None = None
    """Set if the client did not wait for the answer to its upgrade."""
    fell_back: bool = False
    """The stream is in a websocket only because the upgrade was refused."""


def with_hint(error: UpgradeRejected, target: UrlTarget) -> UpgradeRejected:
    """Add to a refusal that the URL's path is not that of relays, if so; return the error.

    With any status, even 200: relays have a home page, and derper has it at every other path.
    """
    path = target.request_target.partition("?")[0]
    if not path.endswith(DERP_PATH) and not error.asks_for_tls:
        error.args = (f"{error} (the URL's path is {path}; that of relays is {DERP_PATH})",)
    return error


async def over_http(
    link: Link,
    target: UrlTarget,
    login: Login,
    *,
    known: tuple[NodePublic, int] | None,
    refused: Callable[[BadUpgrade], BadUpgrade | None] | None = None,
    ideal_node: str = "",
) -> Established:
    """Ask for the upgrade, and log in.

    Args:
        known: key and protocol version from the relay's meta certificate. With both,
            request and login leave together and the answer is not awaited (fast start).
        refused: called if a fast start is answered in HTTP, as for `FastStart`; `None`: make no
            fast start.

    Raises:
        UpgradeRejected: another answer than 101; its body has one second to arrive.
        RemoteProtocolError: not HTTP, or not DERP.
        OSError: the connection broke.
    """
    # As in Go, a fast start needs the relay's key, for which the login is sealed, and its protocol
    # version.
    server_key = known[0] if known is not None and not known[0].is_zero() else None
    if server_key is None or known is None or known[1] == 0:
        refused = None
    request = upgrade_request(
        target.host_header,
        target.request_target,
        user_agent=USER_AGENT,
        ideal_node=ideal_node,
        fast_start=refused is not None,
    )
    if refused is not None:
        # The round trip of the upgrade is saved: the login is behind the request, and the relay
        # answers in DERP at once.
        session = login.session(server_key)
        link.write(request + login.first_frames(session))
        return Established(link, session, [], fast_start=FastStart(session, refused))
    link.write(request)
    reply = UpgradeReply()
    try:
        rest = await _read_answer(link, reply)
    except UpgradeRejected as e:
        raise with_hint(e, target) from e.__cause__
    return await over_stream(link, login, server_key=server_key, received=rest)


async def _read_answer(link: Link, reply: UpgradeReply) -> bytes:
    """Returns the bytes that follow a 101 answer."""
    data = await link.read()
    if not data:
        # Not a protocol error, which would look permanent: the relay may be starting or stopping.
        raise ConnectionError("the relay closed the connection without an answer")
    while (rest := reply.receive_data(data)) is None:
        # The body may say why, but a server may also leave it open.
        if reply.refused:
            await read_refusal(link, reply.receive_data, reply.refusal)
        data = await link.read()
    return rest


async def over_websocket(
    link: Link, target: UrlTarget, login: Login, *, ideal_node: str = ""
) -> Established:
    """Open a websocket, and log in through it.

    Raises:
        as `over_http`.
    """
    client = WebSocketClient(
        target.host_header,
        target.request_target,
        user_agent=USER_AGENT,
        user_info=target.userinfo,
        headers=[(IDEAL_NODE_HEADER, ideal_node)] if ideal_node else [],
    )
    try:
        opened = await open_websocket(link, client)
    except UpgradeRejected as e:
        e.websocket = True
        raise with_hint(e, target) from e.__cause__
    return await over_stream(opened, login)


async def over_stream(
    link: Link, login: Login, *, server_key: NodePublic | None = None, received: bytes = b""
) -> Established:
    """Log in over a stream on which the relay speaks DERP.

    Args:
        server_key: the relay's key, if known already; its greeting is then not awaited.
        received: bytes of the stream that were read before.

    Raises:
        RemoteProtocolError, OSError: as `over_http`.
    """
    session = login.session(server_key)
    messages: list[Message] = []
    data = received
    try:
        while True:
            if data:
                messages += session.receive_data(data)
            # Set if messages stood before a bad frame in the same bytes (`receive_data`).
            if session.error is not None:
                raise raisable(session.error)
            if session.state is ClientState.READY:
                break
            data = await link.read()
            if not data:
                raise ConnectionError(f"{_NO_GREETING}EOF")
    except RemoteProtocolError as e:
        # The same error with Go's words before its text: a new one would have to be of the same
        # class, with the same frame type.
        e.args = (f"{_NO_GREETING}{e}",)
        raise
    link.write(login.first_frames(session))
    return Established(link, session, messages)


def closed_by_relay(error: Exception | None) -> bool:
    """Whether the relay closed the stream: in order, with a reset, or under a websocket."""
    if isinstance(error, BrokenPipeError) and error.errno is None:
        return False  # `StreamLink`: a stream of the program could not be written to
    # A websocket that ends without a close frame is an error of its own, caused by an EOFError.
    of_websocket = error is not None and isinstance(error.__cause__, EOFError)
    return error is None or of_websocket or isinstance(error, ConnectionError)
