"""The client's side of DERP after the HTTP upgrade: login, then messages. Sans-IO."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from enum import Enum, auto
from typing import Final

from pyderp.errors import (
    FrameTooLarge,
    LocalProtocolError,
    RemoteProtocolError,
    raisable,
    without_frames,
)
from pyderp.keys import NONCE_LEN, NodePrivate, NodePublic
from pyderp.text import invalid_app_name, is_app_name
from pyderp.wire import frames
from pyderp.wire.buffer import FrameBuffer, PacketLane, SendQueue
from pyderp.wire.frames import BytesLike, FrameType
from pyderp.wire.login import ClientInfo, OwnNonces, open_server_info_untrusted, seal_client_info
from pyderp.wire.messages import (
    Message,
    ServerInfo,
    Skipped,
    has_short_app_name,
    unpack_message_untrusted,
)

__all__ = ["ClientSession", "ClientState"]

_HTTP: Final = b"HTTP/"
"""As long as the header of a frame, and no relay sends a frame with this one."""


class ClientState(Enum):
    """States of a `ClientSession`."""

    GREETING = auto()
    """Waiting for ServerKey."""
    READY = auto()
    """ClientInfo is queued and frames may be sent. ServerInfo has yet to arrive."""
    FAILED = auto()
    """The relay broke the protocol; each further call raises the first error."""


class ClientSession:
    """Turns bytes from a relay into messages, and calls into bytes for the relay (`derp.Client`).

    Pass what arrives to `receive_data`; write what `data_to_send` returns. The session is ready
    to send once ServerKey was read, or at once if the relay's key is known.

    Args:
        private: the client's key.
        random: returns n fresh random bytes, for the nonce of the login.
        info: the content of ClientInfo.
        server_key: the relay's key if the meta certificate had it (fast start); ServerKey is
            then neither awaited nor compared.
        on_skip: called with each frame that is ignored, and with each AppName that was cut off.

    Raises:
        LocalProtocolError: relays would refuse the AppName of `info`.
    """

    def __init__(
        self,
        private: NodePrivate,
        *,
        random: Callable[[int], bytes],
        info: ClientInfo | None = None,
        server_key: NodePublic | None = None,
        on_skip: Callable[[Skipped], None] | None = None,
    ) -> None:
        self._info = info or ClientInfo(version=frames.PROTOCOL_VERSION)
        if not is_app_name(self._info.app_name):
            raise LocalProtocolError(invalid_app_name(self._info.app_name))
        self.state = ClientState.GREETING
        self.server_key = server_key
        self.private = private
        self._nonces = OwnNonces(private, b"client", random=random)
        self._on_skip = on_skip
        self._buffer = FrameBuffer(frames.MAX_SERVER_KEY_FRAME)
        self._packets = PacketLane(frames.MAX_CLIENT_FRAME)
        self._between_frames = server_key is not None
        self._awaits_first = server_key is not None
        self.http_answer = b""
        """After a fast start: what the relay sent, if that begins as an answer in HTTP does.

        The session has failed then, and reads nothing more."""
        self.out = SendQueue()
        """What `data_to_send` will return. A caller that counts and limits it may add frames."""
        self.error: RemoteProtocolError | None = None
        if server_key is not None:
            self._login(server_key)

    def receive_data(self, data: BytesLike) -> list[Message]:
        """Take bytes from the relay; return the messages that are complete now.

        Raises:
            RemoteProtocolError: the relay broke the protocol; each later call raises the same.
                If messages stand before the bad frame, this call returns them, `state` is
                FAILED, `error` is set, and the next call raises.
        """
        if self.error is not None:
            raise raisable(self.error)
        chunk = data if type(data) is bytes else bytes(data)
        messages: list[Message] = []
        at = self._packets.take_untrusted(chunk, 0, messages) if self._between_frames else 0
        if at < len(chunk):
            try:
                self._read_untrusted(chunk, at, messages)
            except RemoteProtocolError as e:
                # A copy: the error itself may be raised here, and would keep the frames alive.
                self.error = without_frames(raisable(e))
                self.state = ClientState.FAILED
                if not messages:
                    raise
        return messages

    def data_to_send(self) -> list[bytes]:
        """Return what to write, in order, in pieces of any size, and forget it."""
        return self.out.take()

    def send_packet(self, dst: NodePublic, packet: BytesLike) -> None:
        """Queue a packet of at most 64 KiB for `dst`.

        Raises:
            TypeError: not a bytes-like object.
            LocalProtocolError: too big, or not ready.
        """
        self._send(frames.pack_send_packet(dst, packet), packets=1)

    def send_packets(self, dst: NodePublic, packets: Iterable[BytesLike]) -> None:
        """Queue packets of at most 64 KiB each for `dst`: all, or none if this raises.

        Raises:
            TypeError: one is not a bytes-like object.
            LocalProtocolError: one is too big, or not ready.
        """
        checked = [frames.as_packet(packet) for packet in packets]
        self._check_ready()
        self.out.add_packets(dst, checked)

    def forward_packet(self, src: NodePublic, dst: NodePublic, packet: BytesLike) -> None:
        """Queue a packet from `src` for `dst`; needs the mesh key."""
        self._send(frames.pack_forward_packet(src, dst, packet), packets=1)

    def send_ping(self, data: BytesLike) -> None:
        """Queue a Ping of eight bytes."""
        self._send(frames.pack_ping(data))

    def send_pong(self, data: BytesLike) -> None:
        """Queue the answer to a Ping."""
        self._send(frames.pack_pong(data))

    def note_preferred(self, preferred: bool) -> None:
        """Tell the relay whether it is this client's home."""
        self._send(frames.pack_note_preferred(preferred))

    def watch_conns(self) -> None:
        """Ask for PeerPresent and PeerGone of all clients; needs the mesh key."""
        self._send(frames.pack_watch_conns())

    def close_peer(self, target: NodePublic) -> None:
        """Ask the relay to close all connections of `target`; needs the mesh key."""
        self._send(frames.pack_close_peer(target))

    def _send(self, frame: bytes, *, packets: int = 0) -> None:
        self._check_ready()
        self.out.add(frame, packets=packets)

    def _check_ready(self) -> None:
        if self.state is not ClientState.READY:
            raise LocalProtocolError(f"cannot send while {self.state.name.lower()}")

    def _login(self, server: NodePublic) -> None:
        self.server_key = server
        nonce = self._nonces.make()
        self.out.add(seal_client_info(self.private, server, self._info, nonce=nonce))
        self._buffer.limit = frames.MAX_CLIENT_FRAME
        self.state = ClientState.READY

    def _read_untrusted(self, data: bytes, at: int, messages: list[Message]) -> None:
        """Read frame by frame until packets follow again; keep an incomplete frame."""
        buffer = self._buffer
        while at < len(data):
            # The buffer gets the bytes of one frame only: packets may follow, which read faster.
            start, at = at, at + buffer.missing
            try:
                for kind, payload in buffer.receive_data(data[start:at]):
                    self._on_frame(kind, payload, messages)
            except FrameTooLarge:
                head = buffer.held
                if self._awaits_first and not self._packets.used and head == _HTTP:
                    self.http_answer = head + data[at:]
                raise
            self._between_frames = not buffer
            if self._between_frames:
                at = self._packets.take_untrusted(data, at, messages)

    def _on_frame(self, kind: int, payload: bytes, messages: list[Message]) -> None:
        self._awaits_first = False
        if self.state is ClientState.GREETING:
            self._login(frames.unpack_server_key_untrusted(kind, payload))
        elif kind == FrameType.SERVER_INFO:
            messages.append(self._on_server_info_untrusted(payload))
        else:
            message = unpack_message_untrusted(kind, payload)
            if not isinstance(message, Skipped):
                messages.append(message)
                if kind != FrameType.PEER_PRESENT or not has_short_app_name(payload):
                    return
                message = Skipped(kind, "short peerPresent app name from DERP server")
            if self._on_skip is not None:
                self._on_skip(message)

    def _on_server_info_untrusted(self, payload: bytes) -> ServerInfo:
        assert self.server_key is not None
        info = open_server_info_untrusted(self.private, self.server_key, payload)
        if self._nonces.made(payload[:NONCE_LEN]):
            # The relay lacks the private half of the key that it showed.
            raise RemoteProtocolError(
                "invalid server info frame: a box that this client sealed",
                frame_type=FrameType.SERVER_INFO,
            )
        return info
