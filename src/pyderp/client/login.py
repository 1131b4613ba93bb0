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
    "hung_up",
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
    """Who logs in and what it says right away."""

    private: NodePrivate
    info: ClientInfo
    preferred: bool = False
    watch: bool = False

    def session(self, server_key: NodePublic | None) -> ClientSession:
        """A new session of this client."""
        return ClientSession(
            self.private,
            random=os.urandom,
            info=self.info,
            server_key=server_key,
            on_skip=_log_skipped,
        )

    def first_words(self, session: ClientSession) -> bytes:
        """ClientInfo, and what must be sent before anything else on a new connection."""
        if self.preferred:
            session.note_preferred(True)
        if self.watch:
            session.watch_conns()
        return b"".join(session.data_to_send())


@dataclass(slots=True)
class Established:
    """A stream on which this client has logged in: what a connection is made of."""

    link: Link
    session: ClientSession
    messages: list[Message]
    """What came with the login."""
    tls: TLSState | None = None
    """TLS of the stream; `None`: none."""
    fast_start: FastStart | None = None
    """Set if no answer to the upgrade was awaited."""
    fell_back: bool = False
    """It is in a websocket only because no upgrade got through."""


def with_hint(error: UpgradeRejected, target: UrlTarget) -> UpgradeRejected:
    """The same error; a refusal at another path than relays have says so.

    Whatever its status: relays have a home page, and derper has it at every other path.
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
            request and login leave together and no answer is awaited (fast start).
        refused: takes an answer in HTTP to a fast start, as for `FastStart`; `None`: the answer
            is awaited.

    Raises:
        UpgradeRejected: another answer than 101; its body is waited for one second at most.
        RemoteProtocolError: not HTTP, or not DERP.
        OSError: the connection broke.
    """
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
        session = login.session(server_key)
        link.write(request + login.first_words(session))
        return Established(link, session, [], fast_start=FastStart(session, refused))
    link.write(request)
    reply = UpgradeReply()
    try:
        rest = await _read_answer(link, reply)
    except UpgradeRejected as e:
        raise with_hint(e, target) from e.__cause__
    return await over_stream(link, login, server_key=server_key, received=rest)


async def _read_answer(link: Link, reply: UpgradeReply) -> bytes:
    """The bytes that follow a 101 answer."""
    data = await link.read()
    if not data:
        # It has said nothing wrong: it may just be starting or stopping.
        raise ConnectionError("the relay closed the connection without an answer")
    while (rest := reply.receive_data(data)) is None:
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
    """Log in over a stream that speaks DERP.

    Args:
        server_key: the relay's, if known already; its greeting is then not awaited.
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
            if session.error is not None:
                raise raisable(session.error)
            if session.state is ClientState.READY:
                break
            data = await link.read()
            if not data:
                raise ConnectionError(f"{_NO_GREETING}EOF")
    except RemoteProtocolError as e:
        # The same error, so that its class and frame type stay; Go's words before it.
        e.args = (f"{_NO_GREETING}{e}",)
        raise
    link.write(login.first_words(session))
    return Established(link, session, messages)


def hung_up(error: Exception | None) -> bool:
    """Whether the other side closed the stream: in order, with a reset, or under a websocket."""
    if isinstance(error, BrokenPipeError) and error.errno is None:
        return False  # a stream of the program's own that cannot be written to
    of_websocket = error is not None and isinstance(error.__cause__, EOFError)
    return error is None or of_websocket or isinstance(error, ConnectionError)
