"""A relay's half of the login: ServerKey out, ClientInfo in, ServerInfo out. Sans-IO.

What follows the login is the relay's own business: `pyderp.relay.lane`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from pyderp.errors import RemoteProtocolError
from pyderp.keys import KEY_LEN, NONCE_LEN, NodePrivate, NodePublic
from pyderp.wire.frames import FRAME_HEADER_LEN, HEADER, FrameType, pack_server_key
from pyderp.wire.info import (
    ClientInfo,
    OwnNonces,
    check_client_info_frame_untrusted,
    open_client_info_untrusted,
    seal_server_info,
)

__all__ = ["LoggedIn", "ServerLogin"]


@dataclass(slots=True)
class LoggedIn:
    """A client that proved its key."""

    client: NodePublic
    info: ClientInfo
    server_info: bytes
    """The ServerInfo frame: the first thing the client must be sent."""


class ServerLogin:
    """The login rules of one relay key; shared by all its connections, it keeps no state of any.

    Args:
        private: the relay's key.
        random: returns n fresh random bytes; for the nonce of each ServerInfo.
    """

    __slots__ = ("_nonces", "_private", "greeting")

    greeting: bytes
    """The ServerKey frame: what the relay says first."""

    def __init__(self, private: NodePrivate, *, random: Callable[[int], bytes]) -> None:
        self._private = private
        self._nonces = OwnNonces(private, b"relay", random=random)
        self.greeting = pack_server_key(private.public)

    def receive_untrusted(
        self, data: bytearray | memoryview, end: int
    ) -> tuple[int, LoggedIn | None]:
        """Look for a whole ClientInfo frame in `data[:end]`.

        A wrong type or length is refused as soon as the header is there.

        Returns:
            (bytes consumed, the client), or (0, None) while bytes are missing.

        Raises:
            RemoteProtocolError: the login failed; close without an answer.
        """
        if end < FRAME_HEADER_LEN:
            return 0, None
        kind, length = HEADER.unpack_from(data)
        check_client_info_frame_untrusted(kind, length)
        stop = FRAME_HEADER_LEN + length
        if end < stop:
            return 0, None
        payload = bytes(data[FRAME_HEADER_LEN:stop])
        client, shared, info = open_client_info_untrusted(self._private, payload)
        if self._nonces.made(payload[KEY_LEN : KEY_LEN + NONCE_LEN]):
            raise RemoteProtocolError(
                f"client info of {client} is a box that this relay sealed",
                frame_type=FrameType.CLIENT_INFO,
            )
        server_info = seal_server_info(shared, nonce=self._nonces.make())
        return stop, LoggedIn(client, info, server_info)
