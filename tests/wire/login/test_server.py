"""ServerLogin: which clients are accepted or refused, and after how many bytes."""

from __future__ import annotations

import pytest

from pyderp.errors import BadBox, FrameTooLarge, RemoteProtocolError, UnexpectedFrame
from pyderp.keys import MeshKey, NodePrivate
from pyderp.wire.client import ClientSession
from pyderp.wire.frames import frame_header, pack_client_info
from pyderp.wire.login import ClientInfo, LoggedIn, OwnNonces, ServerLogin, seal_server_info
from pyderp.wire.messages import ServerInfo
from tests import vectors as v

FRAME = v.CLIENT_INFOS[0][2]


def own(nonce: bytes) -> bytes:
    """Return the nonce that the server of the vectors makes of random bytes."""
    return OwnNonces(v.SERVER, b"relay", random=v.gives(nonce)).make()


SERVER_INFO_FRAME = seal_server_info(v.SHARED_KEY, nonce=own(v.SERVER_NONCE))
"""Except for the nonce, and so the box, its bytes are those of Go (`test_login`)."""


def login() -> ServerLogin:
    """Return the server of the vectors, with random bytes for one login."""
    return ServerLogin(v.SERVER, random=v.gives(v.SERVER_NONCE))


def receive(data: bytes) -> tuple[int, LoggedIn | None]:
    """Pass all of `data` to a server."""
    return login().receive_untrusted(bytearray(data), len(data))


def say(json: str, *, client: NodePrivate = v.CLIENT) -> ClientInfo:
    """Return the ClientInfo that a server reads from a sealed text."""
    sealed = client.seal_to(v.SERVER.public, json.encode(), nonce=v.CLIENT_NONCE)
    frame = pack_client_info(client.public, sealed)
    consumed, logged_in = receive(frame)
    assert logged_in is not None
    assert (consumed, logged_in.client) == (len(frame), client.public)
    return logged_in.info


def test_the_server_key_frame_is_that_of_go() -> None:
    assert login().greeting == v.SERVER_KEY_FRAME


@pytest.mark.parametrize(("info", "_", "frame"), v.CLIENT_INFOS)
def test_a_client_of_go_is_accepted(info: ClientInfo, _: bytes, frame: bytes) -> None:
    logged_in = LoggedIn(v.CLIENT.public, info, SERVER_INFO_FRAME)
    assert receive(frame) == (len(frame), logged_in)


@pytest.mark.parametrize(("_", "__", "frame"), v.CLIENT_INFOS)
def test_an_incomplete_frame_needs_more(_: ClientInfo, __: bytes, frame: bytes) -> None:
    server = login()
    buffer = bytearray(frame)
    for end in range(len(frame)):
        assert server.receive_untrusted(buffer, end) == (0, None)
        assert server.receive_untrusted(bytearray(frame[:end]), end) == (0, None)
    assert server.receive_untrusted(buffer, len(frame))[0] == len(frame)


def test_frames_behind_the_first_are_not_read() -> None:
    consumed, logged_in = receive(FRAME + b"\xff" * 40)
    assert consumed == len(FRAME)
    assert logged_in is not None


def test_the_buffer_may_be_longer_than_the_received_bytes() -> None:
    view = memoryview(bytearray(FRAME + bytes(100)))
    assert login().receive_untrusted(view, len(FRAME) - 1) == (0, None)
    assert login().receive_untrusted(view, len(FRAME))[0] == len(FRAME)


def test_the_result_does_not_refer_to_the_buffer() -> None:
    buffer = bytearray(FRAME)
    _, logged_in = login().receive_untrusted(memoryview(buffer), len(buffer))
    buffer[:] = bytes(len(buffer))
    assert logged_in is not None
    assert logged_in.client == v.CLIENT.public


def test_each_login_has_its_own_nonce() -> None:
    server = ServerLogin(v.SERVER, random=v.gives(v.SERVER_NONCE, v.CLIENT_NONCE))
    _, first = server.receive_untrusted(bytearray(FRAME), len(FRAME))
    _, second = server.receive_untrusted(bytearray(FRAME), len(FRAME))
    assert first is not None
    assert second is not None
    assert first.server_info[5:29] == own(v.SERVER_NONCE)
    assert second.server_info[5:29] == own(v.CLIENT_NONCE)


@pytest.mark.parametrize(
    ("kind", "length", "error", "text"),
    [
        (0x04, 37, UnexpectedFrame, "bad frame type 0x4, want 0x2"),
        (0x00, 0, UnexpectedFrame, "bad frame type 0x0, want 0x2"),
        (0x02, 0, RemoteProtocolError, "short client info"),
        (0x02, 55, RemoteProtocolError, "short client info"),
        (0x02, 262145, FrameTooLarge, "long client info"),
        (0x02, 0xFFFFFFFF, FrameTooLarge, "long client info"),
    ],
)
def test_an_illegal_header_is_refused_before_its_payload(
    kind: int, length: int, error: type[RemoteProtocolError], text: str
) -> None:
    header = frame_header(kind, length)
    for end in range(5):
        assert receive(header[:end]) == (0, None)
    with pytest.raises(error) as caught:
        receive(header)
    assert str(caught.value) == text
    assert caught.value.frame_type == kind


@pytest.mark.parametrize("length", [56, 262144])
def test_frames_of_legal_length_are_awaited(length: int) -> None:
    header = frame_header(0x02, length)
    assert receive(header) == (0, None)
    assert receive(header + bytes(length - 1)) == (0, None)
    with pytest.raises(RemoteProtocolError):  # it does not open
        receive(header + b"\x33" * length)


def test_the_longest_client_info_is_accepted() -> None:
    pad = "x" * (262144 - 56 - 16 - len('{"pad":"","version":3}'))
    assert say(f'{{"pad":"{pad}","version":3}}').version == 3


@pytest.mark.parametrize(("text", "name", "taken", "frame"), v.APP_NAMES)
def test_app_names_are_accepted_and_refused_as_by_go(
    text: str, name: str, taken: bool, frame: bytes
) -> None:
    assert ClientInfo.from_json_untrusted(text.encode()).app_name == name
    if taken:
        _, logged_in = receive(frame)
        assert logged_in is not None
        assert logged_in.info.app_name == name
        assert say(text) == logged_in.info
    else:
        with pytest.raises(RemoteProtocolError, match=r'^invalid AppName "') as caught:
            receive(frame)
        assert caught.value.frame_type == 2


@pytest.mark.parametrize("name", ["\\ud800", "\\n", "\\u0000", "\\ud83d\\ude00", "x" * 300])
def test_a_refused_app_name_is_shortened_and_escaped_in_the_error(name: str) -> None:
    """Clients with the mesh key are refused, too."""
    with pytest.raises(RemoteProtocolError) as caught:
        say(f'{{"meshKey":"{v.MESH_KEY_TEXT}","AppName":"{name}"}}')
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) <= 60


def test_a_client_with_the_zero_key_is_refused() -> None:
    """Go's server would crash."""
    with pytest.raises(RemoteProtocolError, match=r"^client key is zero$"):
        receive(frame_header(0x02, 104) + bytes(32) + FRAME[37:])


def test_a_client_with_a_key_of_low_order_is_refused() -> None:
    with pytest.raises(BadBox):
        receive(frame_header(0x02, 104) + v.LOW_ORDER_KEY.raw + FRAME[37:])


def test_any_changed_bit_of_key_or_box_is_refused() -> None:
    for at in range(5, len(FRAME)):
        changed = bytearray(FRAME)
        changed[at] ^= 0x40
        with pytest.raises(BadBox):
            receive(bytes(changed))


def test_a_box_sealed_to_another_server_is_refused() -> None:
    sealed = v.CLIENT.seal_to(v.K1, b"{}", nonce=v.CLIENT_NONCE)
    with pytest.raises(BadBox, match="cannot open len=42 with client key nodekey:07a37c"):
        receive(pack_client_info(v.CLIENT.public, sealed))


def test_the_relays_own_box_is_refused_as_client_info() -> None:
    """The sender of a reflected box is not the client; Go's relay accepts it."""
    _, logged_in = receive(FRAME)
    assert logged_in is not None
    sealed = logged_in.server_info[5:]
    reflected = pack_client_info(v.CLIENT.public, sealed)
    with pytest.raises(RemoteProtocolError, match=f"info of {v.CLIENT.public} is a box that this"):
        receive(reflected)
    # Only the nonce shows it: the text of a client may equal that of a relay.
    assert say('{"version":2}') == ClientInfo(version=2)


def test_a_relay_may_be_its_own_client() -> None:
    """In a mesh it connects to itself, with its own key, before it knows that."""
    server = ServerLogin(v.SERVER, random=v.gives(v.SERVER_NONCE))
    client = ClientSession(v.SERVER, random=v.gives(v.SERVER_NONCE))
    client.receive_data(server.greeting)
    data = bytearray(b"".join(client.data_to_send()))
    _, logged_in = server.receive_untrusted(data, len(data))
    assert logged_in is not None
    assert client.receive_data(logged_in.server_info) == [ServerInfo(version=2)]


# Mesh keys at login (derper: a malformed one ends the connection, a wrong one has no effect)

OTHER_MESH_KEY = "f" * 64


@pytest.mark.parametrize(
    ("json", "mesh_key"),
    [
        ("{}", None),
        (f'{{"meshKey":"{v.MESH_KEY_TEXT}"}}', v.MESH_KEY_TEXT),
        (f'{{"MeshKey":"{v.MESH_KEY_TEXT.upper()}"}}', v.MESH_KEY_TEXT),
        (f'{{"meshKey":"{OTHER_MESH_KEY}"}}', OTHER_MESH_KEY),
    ],
)
def test_a_well_formed_mesh_key_is_read(json: str, mesh_key: str | None) -> None:
    want = None if mesh_key is None else MeshKey.parse(mesh_key)
    assert say(json).mesh_key == want


def test_an_empty_mesh_key_is_none() -> None:
    """Some clients always send the field; derper refuses them."""
    assert say('{"meshKey":""}').mesh_key is None
    assert say(f'{{"meshKey":"{v.MESH_KEY_TEXT}","meshKey":""}}').mesh_key is None


@pytest.mark.parametrize("value", ["null", f'"{v.MESH_KEY_TEXT[1:]}"', "1"])
def test_malformed_mesh_keys_are_refused(value: str) -> None:
    with pytest.raises(RemoteProtocolError, match="invalid mesh key"):
        say(f'{{"meshKey":{value}}}')


def test_client_session_and_server_login_complete_a_login() -> None:
    server = login()
    client = ClientSession(v.CLIENT, random=v.gives(v.CLIENT_NONCE))
    client.receive_data(server.greeting)
    data = b"".join(client.data_to_send())
    consumed, logged_in = server.receive_untrusted(bytearray(data), len(data))
    assert logged_in is not None
    assert (consumed, logged_in.client) == (len(data), v.CLIENT.public)
    assert client.receive_data(logged_in.server_info) == [ServerInfo(version=2)]
