"""A client's half of DERP after the HTTP upgrade: login, then messages. Sans-IO."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from enum import Enum, auto

from pyderp.errors import LocalProtocolError, RemoteProtocolError, raisable, without_frames
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


class ClientState(Enum):
    """Where a `ClientSession` is."""

    GREETING = auto()
    """Waiting for ServerKey."""
    READY = auto()
    """ClientInfo is out; frames may be sent. ServerInfo is on its way."""
    FAILED = auto()
    """The stream broke; the first error is raised again and again."""


class ClientSession:
    """Bytes from a relay in, messages out; calls in, bytes for the relay out (`derp.Client`).

    Feed what arrives to `receive_data`, write what `data_to_send` returns. A login needs
    no answer beyond ServerKey: once that is read (or known), the session is ready.

    Args:
        private: the client's key.
        random: returns n fresh random bytes; for the nonce of the login box.
        info: what to say at login.
        server_key: the relay's key, if already known from its meta certificate; its
            greeting is then neither awaited nor compared.
        on_skip: called with each frame that is passed over, and with an AppName that was cut off.

    Raises:
        LocalProtocolError: the AppName of `info` is one that relays refuse.
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
        self.out = SendQueue()
        """What `data_to_send` will return; a client that counts it and limits it may add to it."""
        self.error: RemoteProtocolError | None = None
        if server_key is not None:
            self._login(server_key)

    def receive_data(self, data: BytesLike) -> list[Message]:
        """Take bytes from the relay and give the messages that are now whole.

        Raises:
            RemoteProtocolError: the relay broke the protocol. The session is finished:
                later calls raise its like. If there are messages before the bad
                frame, they are given first: `state` is `FAILED` then, `error` says why,
                and the next call raises it.
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
                # A copy, as this one may be on its way to the caller, and gets frames there.
                self.error = without_frames(raisable(e))
                self.state = ClientState.FAILED
                if not messages:
                    raise
        return messages

    def data_to_send(self) -> list[bytes]:
        """What to write, in order and in pieces of any size; the list is handed over."""
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
        """Tell whether this relay is our home."""
        self._send(frames.pack_note_preferred(preferred))

    def watch_conns(self) -> None:
        """Ask for a report of all clients that come and go; needs the mesh key."""
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
        """Frame by frame, until packets come again; what is not whole is kept."""
        buffer = self._buffer
        while at < len(data):
            # The buffer gets no byte more than it needs: behind may be packets.
            start, at = at, at + buffer.missing
            for kind, payload in buffer.receive_data(data[start:at]):
                self._on_frame(kind, payload, messages)
            self._between_frames = not buffer
            if self._between_frames:
                at = self._packets.take_untrusted(data, at, messages)

    def _on_frame(self, kind: int, payload: bytes, messages: list[Message]) -> None:
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
