"""The two sealed JSON blobs of a login: ClientInfo and ServerInfo.

Decoding has Go's manners: names match in any case, unknown ones are ignored, missing
ones are zero, `null` is "nothing said"; a value of the wrong type rejects the blob.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

import msgspec

from pyderp.errors import (
    BadBox,
    FrameTooLarge,
    InvalidKey,
    RemoteProtocolError,
    UnexpectedFrame,
)
from pyderp.keys import KEY_LEN, MeshKey, NodePrivate, NodePublic, open_sealed, seal
from pyderp.wire.frames import (
    MAX_INFO_LEN,
    MIN_CLIENT_INFO,
    PROTOCOL_VERSION,
    FrameType,
    pack_client_info,
    pack_server_info,
)
from pyderp.wire.messages import ServerInfo

__all__ = ["ClientInfo", "open_client_info_untrusted", "open_server_info_untrusted"]

_TAKES_HEALTH: Final = "pyderpTakesHealth"
_INT64: Final = range(-(2**63), 2**63)


@dataclass(slots=True)
class ClientInfo:
    """What a client says of itself at login (`derp.ClientInfo`)."""

    mesh_key: MeshKey | None = None
    version: int = 0
    can_ack_pings: bool = False
    is_prober: bool = False
    app_name: str = ""
    takes_health: bool = False
    """Takes Health and Restarting frames; a field of ours, which other relays ignore."""

    def to_json(self) -> bytes:
        """The JSON in the order and with the omissions of Go's client."""
        fields: dict[str, object] = {}
        if self.mesh_key is not None:
            fields["meshKey"] = self.mesh_key.to_text()
        if self.version:
            fields["version"] = self.version
        fields["CanAckPings"] = self.can_ack_pings
        if self.is_prober:
            fields["IsProber"] = True
        if self.app_name:
            fields["AppName"] = self.app_name
        if self.takes_health:
            fields[_TAKES_HEALTH] = True
        return msgspec.json.encode(fields)

    @classmethod
    def from_json_untrusted(cls, data: bytes) -> ClientInfo:
        """Read the JSON that a client sealed.

        Raises:
            RemoteProtocolError: not JSON, a wrong type, or a malformed mesh key.
        """
        names = ("meshKey", "version", "CanAckPings", "IsProber", "AppName", _TAKES_HEALTH)
        found = _fields(data, names, FrameType.CLIENT_INFO)
        return cls(
            mesh_key=_mesh_key(found),
            version=_integer(found, "version", FrameType.CLIENT_INFO),
            can_ack_pings=_boolean(found, "CanAckPings"),
            is_prober=_boolean(found, "IsProber"),
            app_name=_text(found, "AppName"),
            takes_health=_boolean(found, _TAKES_HEALTH),
        )


def server_info_json(info: ServerInfo) -> bytes:
    """ServerInfo as JSON, zero fields omitted."""
    fields: dict[str, int] = {}
    if info.version:
        fields["version"] = info.version
    if info.token_bucket_bytes_per_second:
        fields["TokenBucketBytesPerSecond"] = info.token_bucket_bytes_per_second
    if info.token_bucket_bytes_burst:
        fields["TokenBucketBytesBurst"] = info.token_bucket_bytes_burst
    return msgspec.json.encode(fields)


_SERVER_INFO_JSON: Final = server_info_json(ServerInfo(version=PROTOCOL_VERSION))


def seal_client_info(
    private: NodePrivate, server: NodePublic, info: ClientInfo, *, nonce: bytes
) -> bytes:
    """The ClientInfo frame of `private` for `server`."""
    return pack_client_info(private.public, private.seal_to(server, info.to_json(), nonce=nonce))


def seal_server_info(shared: bytes, *, nonce: bytes) -> bytes:
    """The ServerInfo frame, under the key shared with the client: only the version, as Go's."""
    return pack_server_info(seal(shared, _SERVER_INFO_JSON, nonce=nonce))


def check_client_info_frame_untrusted(kind: int, length: int) -> None:
    """Check the header of a client's first frame, before its payload arrives.

    Raises:
        UnexpectedFrame: another type.
        RemoteProtocolError: a length outside 56 … 262144.
    """
    if kind != FrameType.CLIENT_INFO:
        raise UnexpectedFrame(
            f"bad frame type {kind:#x}, want {FrameType.CLIENT_INFO:#x}", frame_type=kind
        )
    if length < MIN_CLIENT_INFO:
        raise RemoteProtocolError("short client info", frame_type=kind)
    if length > MAX_INFO_LEN:
        raise FrameTooLarge("long client info", frame_type=kind)


def open_client_info_untrusted(
    server: NodePrivate, payload: bytes
) -> tuple[NodePublic, bytes, ClientInfo]:
    """Open a ClientInfo payload, whose length was checked.

    Returns:
        the client's key, the key shared with it (for ServerInfo), and what it says.

    Raises:
        RemoteProtocolError: zero key, a box that does not open, or bad JSON.
    """
    client = NodePublic(payload[:KEY_LEN])
    if client.is_zero():
        raise RemoteProtocolError("client key is zero", frame_type=FrameType.CLIENT_INFO)
    sealed = payload[KEY_LEN:]
    shared = server.shared_key(client)
    try:
        text = open_sealed(shared, sealed)
    except BadBox as e:
        raise BadBox(
            f"msgbox: cannot open len={len(sealed)} with client key {client}",
            frame_type=FrameType.CLIENT_INFO,
        ) from e
    return client, shared, ClientInfo.from_json_untrusted(text)


def open_server_info_untrusted(
    client: NodePrivate, server: NodePublic, payload: bytes
) -> ServerInfo:
    """Open a ServerInfo payload.

    Raises:
        RemoteProtocolError: too short, a box that does not open, or bad JSON.
    """
    kind = FrameType.SERVER_INFO
    if len(payload) < 24:
        raise RemoteProtocolError(
            "invalid server info frame: short serverInfo frame", frame_type=kind
        )
    try:
        text = client.open_from(server, payload)
    except BadBox as e:
        raise BadBox(
            f"invalid server info frame: failed to open naclbox from server key {server}",
            frame_type=kind,
        ) from e
    rate, burst = "TokenBucketBytesPerSecond", "TokenBucketBytesBurst"
    found = _fields(text, ("version", rate, burst), kind)
    return ServerInfo(
        _integer(found, "version", kind),
        _integer(found, rate, kind),
        _integer(found, burst, kind),
    )


def _fields(data: bytes, names: tuple[str, ...], kind: int) -> Mapping[str, object]:
    try:
        document: object = msgspec.json.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as e:
        raise RemoteProtocolError("login blob is not JSON", frame_type=kind) from e
    if document is None:
        return {}
    if not isinstance(document, dict):
        raise RemoteProtocolError("login blob is not a JSON object", frame_type=kind)
    by_lower = {name.lower(): name for name in names}
    found: dict[str, object] = {}
    for name, value in document.items():
        known = by_lower.get(name.lower())
        if known is not None:
            found[known] = value
    return found


def _wrong(name: str, kind: int) -> RemoteProtocolError:
    return RemoteProtocolError(f"field {name} of the login blob has a wrong type", frame_type=kind)


def _integer(found: Mapping[str, object], name: str, kind: int) -> int:
    value = found.get(name)
    if value is None:
        return 0
    if not isinstance(value, int) or isinstance(value, bool) or value not in _INT64:
        raise _wrong(name, kind)
    return value


def _boolean(found: Mapping[str, object], name: str) -> bool:
    value = found.get(name)
    if value is None:
        return False
    if not isinstance(value, bool):
        raise _wrong(name, FrameType.CLIENT_INFO)
    return value


def _text(found: Mapping[str, object], name: str) -> str:
    value = found.get(name)
    if value is None:
        return ""
    if not isinstance(value, str):
        raise _wrong(name, FrameType.CLIENT_INFO)
    return value


def _mesh_key(found: Mapping[str, object]) -> MeshKey | None:
    if "meshKey" not in found:
        return None
    value = found["meshKey"]
    # Unlike the other fields, null is not "nothing said": Go's key type refuses it.
    if not isinstance(value, str) or len(value) != 2 * KEY_LEN:
        raise RemoteProtocolError("invalid mesh key", frame_type=FrameType.CLIENT_INFO)
    if not value.strip("0"):
        return None  # the zero key is well-formed, and grants nothing
    try:
        return MeshKey.parse(value)
    except InvalidKey as e:
        raise RemoteProtocolError("invalid mesh key", frame_type=FrameType.CLIENT_INFO) from e
