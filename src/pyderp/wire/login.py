"""The login: the sealed JSON of ClientInfo and ServerInfo, their nonces, and the relay's side.

JSON is decoded as by Go (`pyderp.gojson`): names match in upper or lower case, unknown members are
ignored, missing ones are zero, `null` leaves a member as it is, and a value of the wrong type makes
the login fail.

Both messages are sealed with the one key that client and relay share. So each side can also open
what it sealed itself, and a ServerInfo is a valid ClientInfo and the other way round. A third party
could send such a message back. So each side makes nonces that it recognises, and refuses a message
with one of them (`OwnNonces`).
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final, TypeVar

from pyderp import gojson
from pyderp.errors import (
    BadBox,
    FrameTooLarge,
    InvalidKey,
    RemoteProtocolError,
    UnexpectedFrame,
)
from pyderp.keys import KEY_LEN, NONCE_LEN, MeshKey, NodePrivate, NodePublic, open_sealed, seal
from pyderp.text import invalid_app_name, is_app_name
from pyderp.wire.frames import (
    FRAME_HEADER_LEN,
    HEADER,
    MAX_INFO_LEN,
    MIN_CLIENT_INFO,
    PROTOCOL_VERSION,
    FrameType,
    pack_client_info,
    pack_server_info,
    pack_server_key,
)
from pyderp.wire.messages import ServerInfo

__all__ = [
    "ClientInfo",
    "LoggedIn",
    "OwnNonces",
    "ServerLogin",
    "open_client_info_untrusted",
    "open_server_info_untrusted",
]

T = TypeVar("T")

_TAKES_HEALTH: Final = "pyderpTakesHealth"
_INT64: Final = range(-(2**63), 2**63)
_INTEGER: Final = re.compile("-?[0-9]{1,19}")
"""Text of an integer that may fit into 64 bits; JSON has no leading zeros."""
_BOOLEANS: Final = {"true": True, "false": False}
_MARK_LEN: Final = 8
"""Bytes of the mark: one of 2**64 foreign nonces is taken for an own one. 16 random bytes are left,
so 2**64 messages between the same two keys may be sealed before two nonces are likely equal."""


class OwnNonces:
    """Makes nonces that end in a keyed hash of their start; without the key they look random.

    Args:
        private: the key that seals with these nonces.
        role: `b"relay"` or `b"client"`: one key may be used for both.
        random: returns n fresh random bytes.
    """

    __slots__ = ("_key", "_random")

    def __init__(
        self, private: NodePrivate, role: bytes, *, random: Callable[[int], bytes]
    ) -> None:
        self._key = private.derive(b"pyderp login nonces: " + role)
        self._random = random

    def make(self) -> bytes:
        """Return a fresh nonce."""
        start = self._random(NONCE_LEN)[:-_MARK_LEN]
        return start + self._mark(start)

    def made(self, nonce: bytes) -> bool:
        """Whether `make` of this key and role made a nonce."""
        return self._mark(nonce[:-_MARK_LEN]) == nonce[-_MARK_LEN:]

    def _mark(self, start: bytes) -> bytes:
        return hashlib.blake2b(start, digest_size=_MARK_LEN, key=self._key).digest()


@dataclass(slots=True)
class ClientInfo:
    """The content of a client's login (`derp.ClientInfo`)."""

    mesh_key: MeshKey | None = None
    version: int = 0
    can_ack_pings: bool = False
    is_prober: bool = False
    app_name: str = ""
    """The name of the client's program, as allowed by `pyderp.text.is_app_name`."""
    takes_health: bool = False
    """The client takes Health and Restarting; pyderp's own member, which other relays ignore."""

    def to_json(self) -> bytes:
        """Return the JSON as Go's client orders and shortens it."""
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
        return _compact(fields)

    @classmethod
    def from_json_untrusted(cls, data: bytes) -> ClientInfo:
        """Read the JSON that a client sealed.

        Raises:
            RemoteProtocolError: not JSON, a wrong type, or a malformed mesh key.
        """
        names = ("meshKey", "version", "CanAckPings", "IsProber", "AppName", _TAKES_HEALTH)
        kind = FrameType.CLIENT_INFO
        found = _fields(data, names, kind)
        return cls(
            mesh_key=_mesh_key(found),
            version=_last(found, "version", 0, _integer, kind),
            can_ack_pings=_last(found, "CanAckPings", False, _BOOLEANS.get, kind),
            is_prober=_last(found, "IsProber", False, _BOOLEANS.get, kind),
            app_name=_last(found, "AppName", "", gojson.text_value, kind),
            takes_health=_last(found, _TAKES_HEALTH, False, _BOOLEANS.get, kind),
        )


def _compact(fields: Mapping[str, object]) -> bytes:
    """JSON without spaces, as Go's encoder writes it."""
    return json.dumps(fields, ensure_ascii=False, separators=(",", ":")).encode()


def server_info_json(info: ServerInfo) -> bytes:
    """Return ServerInfo as JSON, without zero members."""
    fields: dict[str, int] = {}
    if info.version:
        fields["version"] = info.version
    if info.token_bucket_bytes_per_second:
        fields["TokenBucketBytesPerSecond"] = info.token_bucket_bytes_per_second
    if info.token_bucket_bytes_burst:
        fields["TokenBucketBytesBurst"] = info.token_bucket_bytes_burst
    return _compact(fields)


_SERVER_INFO_JSON: Final = server_info_json(ServerInfo(version=PROTOCOL_VERSION))


def seal_client_info(
    private: NodePrivate, server: NodePublic, info: ClientInfo, *, nonce: bytes
) -> bytes:
    """Return the ClientInfo frame of the client `private` for the relay `server`."""
    return pack_client_info(private.public, private.seal_to(server, info.to_json(), nonce=nonce))


def seal_server_info(shared: bytes, *, nonce: bytes) -> bytes:
    """Return the ServerInfo frame, sealed with the shared key; as Go's, it has only the version."""
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
        the client's key, the key shared with it (for ServerInfo), and the content.

    Raises:
        RemoteProtocolError: zero key, a box that does not open, bad JSON, or an AppName that is
            not allowed, also for mesh peers.
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
    info = ClientInfo.from_json_untrusted(text)
    if info.app_name and not is_app_name(info.app_name):
        raise RemoteProtocolError(invalid_app_name(info.app_name), frame_type=FrameType.CLIENT_INFO)
    return client, shared, info


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
    names = ("version", "TokenBucketBytesPerSecond", "TokenBucketBytesBurst")
    found = _fields(text, names, kind)
    return ServerInfo(*(_last(found, name, 0, _integer, kind) for name in names))


def _fields(data: bytes, names: tuple[str, ...], kind: int) -> Mapping[str, list[str]]:
    """Return the values of the known members as JSON text, without nulls.

    Each member has a list of values, because Go reads repeated ones too: a wrong type in any of
    them is an error.
    """
    try:
        pairs = gojson.members(data)
    except TypeError as e:
        raise RemoteProtocolError("login blob is not a JSON object", frame_type=kind) from e
    except ValueError as e:
        raise RemoteProtocolError("login blob is not JSON", frame_type=kind) from e
    by_folded = {gojson.same_name(name): name for name in names}
    found: dict[str, list[str]] = {name: [] for name in names}
    for name, value in pairs or ():
        known = by_folded.get(gojson.same_name(name))
        if known is not None and (value != "null" or known == "meshKey"):
            found[known].append(value)
    return found


def _last(
    found: Mapping[str, list[str]], name: str, zero: T, read: Callable[[str], T | None], kind: int
) -> T:
    """Return the last value of a member; `zero` if it is missing."""
    last = zero
    for text in found[name]:
        value = read(text)
        if value is None:
            text = f"field {name} of the login blob has a wrong type"
            raise RemoteProtocolError(text, frame_type=kind)
        last = value
    return last


def _integer(text: str) -> int | None:
    if _INTEGER.fullmatch(text) is None or (number := int(text)) not in _INT64:
        return None
    return number


def _mesh_key(found: Mapping[str, list[str]]) -> MeshKey | None:
    key = None
    for value in found["meshKey"]:
        # Go's key type refuses null, which leaves other members as they are.
        text = gojson.text_value(value)
        if text == "":
            # Go refuses this as well, but some clients always send the member.
            key = None
            continue
        if text is None or len(text) != 2 * KEY_LEN:
            raise RemoteProtocolError("invalid mesh key", frame_type=FrameType.CLIENT_INFO)
        try:
            # The zero key is valid, but not a mesh key.
            key = MeshKey.parse(text) if text.strip("0") else None
        except InvalidKey as e:
            raise RemoteProtocolError("invalid mesh key", frame_type=FrameType.CLIENT_INFO) from e
    return key


@dataclass(slots=True)
class LoggedIn:
    """A client whose ClientInfo opened: it was sealed with its private key, perhaps earlier.

    A recorded ClientInfo opens again, so this does not prove that the sender has the key now.
    """

    client: NodePublic
    info: ClientInfo
    server_info: bytes
    """The ServerInfo frame, which the relay must send before any other."""


class ServerLogin:
    """The relay's side of logins. All connections share one: it has no state of a connection.

    Args:
        private: the relay's key.
        random: returns n fresh random bytes, for the nonce of each ServerInfo.
    """

    __slots__ = ("_nonces", "_private", "greeting")

    greeting: bytes
    """The ServerKey frame, the relay's first."""

    def __init__(self, private: NodePrivate, *, random: Callable[[int], bytes]) -> None:
        self._private = private
        self._nonces = OwnNonces(private, b"relay", random=random)
        self.greeting = pack_server_key(private.public)

    def receive_untrusted(
        self, data: bytearray | memoryview, end: int
    ) -> tuple[int, LoggedIn | None]:
        """Read the ClientInfo frame in `data[:end]`.

        A wrong type or length is refused as soon as the header is complete.

        Returns:
            (bytes used, the client), or (0, None) while bytes are missing.

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
