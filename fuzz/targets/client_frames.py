"""What a relay sends, as a client reads it: `pyderp.wire.client.ClientSession`.

Modes: 0 the payload is the stream; 1 the same, and the client knows the relay's key; 2 the
stream is a greeting, a ServerInfo and then the payload; 3 the payload is the JSON in a
properly sealed ServerInfo.
"""

from __future__ import annotations

from typing import Final

from fuzz.targets._input import (
    PRIVATE_CLIENT,
    PRIVATE_SERVER,
    counting_bytes,
    cut,
    split_input,
)
from pyderp.errors import RemoteProtocolError
from pyderp.keys import NodePrivate
from pyderp.wire.client import ClientSession, ClientState
from pyderp.wire.frames import (
    FRAME_HEADER_LEN,
    MAGIC,
    MAX_CLIENT_FRAME,
    FrameType,
    pack_server_info,
    pack_server_key,
)
from pyderp.wire.login import ClientInfo, open_client_info_untrusted, seal_server_info
from pyderp.wire.messages import Message, Skipped

__all__ = ["TOKENS", "one_input"]

_CLIENT: Final = NodePrivate(PRIVATE_CLIENT)
_SERVER: Final = NodePrivate(PRIVATE_SERVER)
_SHARED: Final = _SERVER.shared_key(_CLIENT.public)
_NONCE: Final = bytes(range(0xC0, 0xD8))
_GREETING: Final = pack_server_key(_SERVER.public)
_LOGIN: Final = _GREETING + seal_server_info(_SHARED, nonce=_NONCE)

TOKENS: Final = (
    MAGIC,
    _SERVER.public.raw,
    b"\x10" * 32,
    _GREETING,
    *(bytes((kind, 0, 0, 0)) for kind in FrameType),
    b"\x05\0\x10\0\0",
    b"\x05\0\x10\0\1",
    b"\x09\0\0\0\x33",
    bytes(10) + b"\xff\xff",
    b'{"version":2}',
    b'"TokenBucketBytesPerSecond":',
    b'"TokenBucketBytesBurst":',
    b"9223372036854775808",
    b"null",
    b"1e999",
)


class _Listener:
    """A session, and all messages and skipped frames that it returned."""

    def __init__(self, mode: int) -> None:
        self.messages: list[Message] = []
        self.skipped: list[Skipped] = []
        self.error: RemoteProtocolError | None = None
        self.session = ClientSession(
            _CLIENT,
            random=counting_bytes,
            info=ClientInfo(version=2, can_ack_pings=True),
            server_key=_SERVER.public if mode in (1, 3) else None,
            on_skip=self.skipped.append,
        )

    def receive(self, data: bytes) -> None:
        """Take bytes; after an error, the session must repeat that error."""
        session = self.session
        try:
            messages = session.receive_data(data)
        except RemoteProtocolError as e:
            first, self.error = self.error, e
            self._check_failed(first)
            return
        assert self.error is None, "a session that failed went on"
        self.messages += messages
        if session.error is not None:
            # The error came after messages, which are returned first.
            self.error = session.error
            assert messages
            assert session.state is ClientState.FAILED
        held = len(session._buffer)
        assert held < FRAME_HEADER_LEN + MAX_CLIENT_FRAME, f"{held} bytes are held"

    def _check_failed(self, first: RemoteProtocolError | None) -> None:
        assert self.session.state is ClientState.FAILED
        assert first is None or repr(self.error) == repr(first), "a second error replaced the first"

    def check_login(self) -> None:
        """Check that it sent one frame at most: a ClientInfo that the relay can open."""
        said = self.session.data_to_send()
        if self.session.state is ClientState.READY:
            assert len(said) == 1
        for frame in said:
            key = self.session.server_key
            assert key is not None
            if key == _SERVER.public:
                client, _, info = open_client_info_untrusted(_SERVER, frame[FRAME_HEADER_LEN:])
                assert client == _CLIENT.public
                assert info == ClientInfo(version=2, can_ack_pings=True)


def one_input(data: bytes) -> None:
    """Read a stream in chunks and at once: the outcome must be the same."""
    mode, sizes, payload = split_input(data)
    mode &= 3
    if mode == 2:
        payload = _LOGIN + payload
    elif mode == 3:
        box = _CLIENT.seal_to(_SERVER.public, payload, nonce=_NONCE)
        payload = pack_server_info(box)
    chunked, whole = _Listener(mode), _Listener(mode)
    for chunk in cut(payload, sizes):
        chunked.receive(chunk)
    whole.receive(payload)
    assert (chunked.error is None) == (whole.error is None)
    assert chunked.skipped == whole.skipped
    assert chunked.messages == whole.messages
    assert str(chunked.error) == str(whole.error)
    frames = len(whole.messages) + len(whole.skipped)
    assert frames <= len(payload) // FRAME_HEADER_LEN
    for listener in (chunked, whole):
        listener.check_login()
        listener.receive(b"")
