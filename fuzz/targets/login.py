"""A client's login, as a relay reads it: `pyderp.wire.login.ServerLogin`.

Modes: 0 the payload is the stream; 1 it is the body of a ClientInfo frame; 2 it is the JSON in
a ClientInfo that a fixed client sealed properly; 3 it is that JSON, without the box.
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
from pyderp.keys import NodePrivate, seal
from pyderp.wire.frames import (
    FRAME_HEADER_LEN,
    MAX_INFO_LEN,
    PROTOCOL_VERSION,
    FrameType,
    pack_client_info,
    pack_frame,
)
from pyderp.wire.login import ClientInfo, LoggedIn, ServerLogin, open_server_info_untrusted
from pyderp.wire.messages import ServerInfo

__all__ = ["TOKENS", "one_input"]

_CLIENT: Final = NodePrivate(PRIVATE_CLIENT)
_SERVER: Final = NodePrivate(PRIVATE_SERVER)
_SHARED: Final = _CLIENT.shared_key(_SERVER.public)
_NONCE: Final = bytes(range(0xA0, 0xB8))
_LOGIN: Final = ServerLogin(_SERVER, random=counting_bytes)
_STALE: Final = b"\x02\x00\x00\x00\x38" * 16
"""Bytes that earlier reads left in the shared buffer, behind those of this read."""

TOKENS: Final = (
    _CLIENT.public.raw,
    b"\x02\0\0\0\x38",
    b"\x02\0\4\0\0",
    b"\x02\0\4\0\1",
    b'{"version":2,"CanAckPings":true}',
    b'"meshKey":"' + b"0123456789abcdef" * 4 + b'"',
    b'"meshKey":null',
    b'"meshKey":"' + b"0" * 64 + b'"',
    b'"MESHKEY":',
    b'"version":',
    b'"CanAckPings":',
    b'"IsProber":true',
    b'"AppName":"',
    b"9223372036854775808",
    b"-9223372036854775808",
    b"18446744073709551616",
    b"1e999",
    b"1.0",
    b"null",
    b"\\ud800",
    b"\\ud83d\\ude00",
    b"[" * 64,
    b'{"a":' * 16,
    "\N{KELVIN SIGN}".encode(),
)


def _read(payload: bytes, sizes: bytes) -> tuple[int, LoggedIn | None]:
    """Read a stream in chunks; returns the bytes that a complete login used, and the client."""
    seen = 0
    for chunk in cut(payload, sizes):
        seen += len(chunk)
        buffer = bytearray(payload[:seen] + _STALE)
        with memoryview(buffer) as view:
            used, client = _LOGIN.receive_untrusted(view, seen)
        if client is not None:
            assert FRAME_HEADER_LEN < used <= seen
            return used, client
        assert used == 0
        assert seen < FRAME_HEADER_LEN + MAX_INFO_LEN, "more than the largest login is awaited"
    return 0, None


def _check(client: LoggedIn) -> None:
    _check_info(client.info)
    if client.client == _CLIENT.public:
        info = open_server_info_untrusted(
            _CLIENT, _SERVER.public, client.server_info[FRAME_HEADER_LEN:]
        )
        assert info == ServerInfo(version=PROTOCOL_VERSION)


def _check_info(info: ClientInfo) -> None:
    assert type(info.version) is int
    assert type(info.can_ack_pings) is bool
    assert type(info.is_prober) is bool
    info.app_name.encode()  # raises on a surrogate, which could not be printed
    assert ClientInfo.from_json_untrusted(info.to_json()) == info


def one_input(data: bytes) -> None:
    """Log in, in chunks and at once."""
    mode, sizes, payload = split_input(data)
    mode &= 3
    if mode == 3:
        try:
            info = ClientInfo.from_json_untrusted(payload)
        except RemoteProtocolError:
            return
        _check_info(info)
        return
    if mode == 1:
        payload = pack_frame(FrameType.CLIENT_INFO, payload)
    elif mode == 2:
        payload = pack_client_info(_CLIENT.public, seal(_SHARED, payload, nonce=_NONCE))
    outcomes: list[object] = []
    for how in (sizes, b""):
        try:
            used, client = _read(payload, how)
        except RemoteProtocolError as e:
            outcomes.append((type(e), str(e)))
            continue
        outcomes.append((used, client))
        if client is not None:
            _check(client)
    assert outcomes[0] == outcomes[1], "chunks make a difference"
