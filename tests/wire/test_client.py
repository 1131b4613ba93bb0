"""ClientSession: login, messages, and how a broken stream ends it."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from pyderp.errors import (
    BadBox,
    BadMagic,
    FrameTooLarge,
    LocalProtocolError,
    RemoteProtocolError,
    UnexpectedFrame,
)
from pyderp.keys import NodePrivate, NodePublic
from pyderp.wire import frames
from pyderp.wire.client import ClientSession, ClientState
from pyderp.wire.frames import KEEP_ALIVE_FRAME, FrameType
from pyderp.wire.login import ClientInfo, OwnNonces, seal_client_info
from pyderp.wire.messages import KeepAlive, Message, PeerPresent, ServerInfo, Skipped
from tests import vectors as v

from .chunks import chunkings

KEEP_ALIVE = bytes.fromhex("06 00000000")
SERVER_INFO, _, SERVER_INFO_FRAME = v.SERVER_INFOS[0]
NONCE = OwnNonces(v.CLIENT, b"client", random=v.gives(v.CLIENT_NONCE)).make()


def sent(info: ClientInfo) -> bytes:
    """Return the ClientInfo frame of a session of the vectors. Except for the nonce, and so the
    box, its bytes are those of Go (`test_login`)."""
    return seal_client_info(v.CLIENT, v.SERVER.public, info, nonce=NONCE)


def session(
    *,
    info: ClientInfo | None = None,
    server_key: NodePublic | None = None,
    on_skip: Callable[[Skipped], None] | None = None,
) -> ClientSession:
    """Return the client of the vectors, with its nonce."""
    return ClientSession(
        v.CLIENT,
        random=v.gives(v.CLIENT_NONCE),
        info=info,
        server_key=server_key,
        on_skip=on_skip,
    )


def state_of(client: ClientSession) -> ClientState:
    """Return the current state; a function, so that type checkers do not narrow it."""
    return client.state


def ready(skipped: list[Skipped] | None = None) -> ClientSession:
    """Return a session that has read the server's key."""
    client = session(on_skip=None if skipped is None else skipped.append)
    assert client.receive_data(v.SERVER_KEY_FRAME) == []
    client.data_to_send()
    return client


def feed(client: ClientSession, chunks: list[bytes]) -> list[Message]:
    """Return all messages of a stream in chunks."""
    return [message for chunk in chunks for message in client.receive_data(chunk)]


@pytest.mark.parametrize("chunks", chunkings(v.SERVER_KEY_FRAME + SERVER_INFO_FRAME + KEEP_ALIVE))
def test_login_works_however_the_stream_is_cut(chunks: list[bytes]) -> None:
    client = session(info=ClientInfo(version=2, can_ack_pings=True))
    assert state_of(client) is ClientState.GREETING
    assert client.server_key is None
    assert client.data_to_send() == []
    assert feed(client, chunks) == [SERVER_INFO, KeepAlive()]
    assert state_of(client) is ClientState.READY
    assert client.server_key == v.SERVER.public
    assert client.data_to_send() == [sent(v.CLIENT_INFOS[0][0])]
    assert client.data_to_send() == []


def test_login_waits_only_for_server_key() -> None:
    client = session()
    for at in range(len(v.SERVER_KEY_FRAME)):
        assert state_of(client) is ClientState.GREETING
        client.receive_data(v.SERVER_KEY_FRAME[at : at + 1])
    assert state_of(client) is ClientState.READY
    client.send_packet(v.K1, b"hello")
    assert client.data_to_send() == [
        sent(v.CLIENT_INFOS[1][0]),
        frames.pack_send_packet(v.K1, b"hello"),
    ]


@pytest.mark.parametrize("info", [info for info, _, _ in v.CLIENT_INFOS])
def test_login_sends_the_given_client_info(info: ClientInfo) -> None:
    client = session(info=info)
    client.receive_data(v.SERVER_KEY_FRAME)
    assert client.data_to_send() == [sent(info)]


def test_the_clients_own_box_is_refused_as_server_info() -> None:
    """A relay that presents another's key and returns the box does not have that key."""
    for server_key in (None, v.SERVER.public):
        early = session(server_key=server_key)
        if server_key is None:
            early.receive_data(v.SERVER_KEY_FRAME)
        (frame,) = early.data_to_send()
        reflected = frames.pack_frame(FrameType.SERVER_INFO, frame[5 + 32 :])
        # It may be of an earlier connection as well.
        for client in (early, ready()):
            with pytest.raises(RemoteProtocolError, match="a box that this client sealed"):
                client.receive_data(reflected)
            assert state_of(client) is ClientState.FAILED


def test_with_a_known_server_key_the_login_is_sent_at_once() -> None:
    """ServerKey still arrives; it is skipped and not compared."""
    skipped: list[Skipped] = []
    client = session(server_key=v.SERVER.public, on_skip=skipped.append)
    assert state_of(client) is ClientState.READY
    assert client.data_to_send() == [sent(v.CLIENT_INFOS[1][0])]
    other_greeting = frames.pack_server_key(v.K1)
    assert client.receive_data(other_greeting + SERVER_INFO_FRAME) == [SERVER_INFO]
    assert client.server_key == v.SERVER.public
    assert skipped == [Skipped(0x01, "unknown frame type")]


@pytest.mark.parametrize("key", [v.ZERO_KEY, v.LOW_ORDER_KEY])
def test_a_known_server_key_must_be_usable(key: NodePublic) -> None:
    with pytest.raises(BadBox):
        session(server_key=key)


def test_a_server_key_frame_of_1024_bytes_is_read() -> None:
    payload = frames.MAGIC + v.SERVER.public.raw + bytes(984)
    client = session()
    client.receive_data(frames.pack_frame(1, payload))
    assert client.server_key == v.SERVER.public


@pytest.mark.parametrize(
    ("greeting", "error", "text"),
    [
        (bytes.fromhex("01 00000401"), FrameTooLarge, "large frame of 1025 bytes"),
        (bytes.fromhex("ff ffffffff"), FrameTooLarge, "large frame of 4294967295 bytes"),
        (b"HTTP/1.1 400 Bad Request\r\n\r\n", FrameTooLarge, "large frame of"),
        (frames.pack_frame(1, v.SERVER_KEY_FRAME[5:-1]), RemoteProtocolError, "invalid server"),
        (frames.pack_frame(2, v.SERVER_KEY_FRAME[5:]), UnexpectedFrame, "invalid server greeting"),
        (KEEP_ALIVE, UnexpectedFrame, "invalid server greeting"),
        (frames.pack_frame(1, bytes(8) + v.K1.raw), BadMagic, "invalid server greeting"),
        (frames.pack_frame(1, frames.MAGIC + bytes(32)), RemoteProtocolError, "zero key"),
        (frames.pack_server_key(v.LOW_ORDER_KEY), BadBox, "no secret can be shared"),
    ],
)
def test_a_bad_server_key_frame_ends_the_session(
    greeting: bytes, error: type[RemoteProtocolError], text: str
) -> None:
    for chunks in chunkings(greeting):
        client = session()
        with pytest.raises(error, match=text):
            feed(client, chunks)
        assert state_of(client) is ClientState.FAILED
        assert client.data_to_send() == []


@pytest.mark.parametrize(("hex_", "messages", "skipped"), v.SERVER_STREAMS)
def test_messages_of_go_are_read_however_the_stream_is_cut(
    hex_: str, messages: list[Message], skipped: list[int]
) -> None:
    for chunks in chunkings(bytes.fromhex(hex_)):
        remarks: list[Skipped] = []
        assert feed(ready(remarks), chunks) == messages
        assert [remark.frame_type for remark in remarks] == skipped


@pytest.mark.parametrize(("hex_", "message", "cut"), v.PEERS_PRESENT)
def test_an_app_name_is_read_as_by_go_however_the_stream_is_cut(
    hex_: str, message: PeerPresent, cut: bool
) -> None:
    stream = bytes.fromhex(hex_) + KEEP_ALIVE_FRAME
    for chunks in chunkings(stream):
        remarks: list[Skipped] = []
        assert feed(ready(remarks), chunks) == [message, KeepAlive()]
        want = Skipped(0x09, "short peerPresent app name from DERP server")
        assert remarks == [want] * cut


@pytest.mark.parametrize("name", ["x" * 33, "é", "a\n", "\x7f", "\ud800"])
@pytest.mark.parametrize("server_key", [None, v.SERVER.public])
def test_an_invalid_app_name_is_refused_before_the_login(
    name: str, server_key: NodePublic | None
) -> None:
    with pytest.raises(LocalProtocolError, match=r"^invalid AppName "):
        ClientSession(
            v.CLIENT,
            random=v.gives(v.CLIENT_NONCE),
            info=ClientInfo(app_name=name),
            server_key=server_key,
        )


@pytest.mark.parametrize(("info", "_", "frame"), v.SERVER_INFOS)
def test_server_info_is_read_however_the_stream_is_cut(
    info: ServerInfo, _: bytes, frame: bytes
) -> None:
    for chunks in chunkings(frame):
        assert feed(ready(), chunks) == [info]


@pytest.mark.parametrize("server_key", [None, v.SERVER.public])
def test_packets_are_read_however_the_stream_is_cut(server_key: NodePublic | None) -> None:
    """Bytes of a packet that look like a frame, at the start of a chunk, are no frame."""
    stream = b"" if server_key else v.SERVER_KEY_FRAME
    packets = [b"one", b"", frames.pack_received_packet(v.K2, b"inside"), bytes(40)]
    for packet in packets:
        stream += frames.pack_received_packet(v.K1, packet)
    stream += KEEP_ALIVE + frames.pack_received_packet(v.K1, b"last")
    want = [*map(v.received, packets), KeepAlive(), v.received(b"last")]
    for chunks in chunkings(stream):
        assert feed(session(server_key=server_key), chunks) == want


def test_frames_are_skipped_without_on_skip() -> None:
    assert ready().receive_data(bytes.fromhex("ff 00000000") + KEEP_ALIVE) == [KeepAlive()]


def test_a_frame_of_1_mib_is_read_after_login() -> None:
    payload = v.K1.raw + bytes(1024 * 1024 - 32)
    [message] = ready().receive_data(frames.pack_frame(5, payload))
    assert message == v.received(payload[32:])


def test_a_large_frame_may_follow_server_key_in_one_chunk() -> None:
    """The small limit holds for ServerKey only."""
    packet = bytes(60_000)
    client = session()
    stream = v.SERVER_KEY_FRAME + frames.pack_received_packet(v.K1, packet)
    assert client.receive_data(stream) == [v.received(packet)]


@pytest.mark.parametrize(
    ("hex_", "error", "text"),
    [
        ("05 00100001", FrameTooLarge, "unexpectedly large frame of 1048577 bytes returned"),
        ("ff 00100001", FrameTooLarge, "unexpectedly large frame of 1048577 bytes returned"),
        (
            f"03 00000017 {'00' * 23}",
            RemoteProtocolError,
            "invalid server info frame: short serverInfo frame",
        ),
        (
            f"03 0000003c {'00' * 60}",
            BadBox,
            f"failed to open naclbox from server key {v.SERVER_PUBLIC_TEXT}",
        ),
    ],
)
def test_fatal_frames_end_the_session(
    hex_: str, error: type[RemoteProtocolError], text: str
) -> None:
    for chunks in chunkings(bytes.fromhex(hex_)):
        client = ready()
        with pytest.raises(error, match=text):
            feed(client, chunks)
        assert state_of(client) is ClientState.FAILED


def test_a_failed_session_raises_its_first_error_again() -> None:
    client = ready()
    with pytest.raises(FrameTooLarge) as first:
        client.receive_data(bytes.fromhex("05 00100001"))
    with pytest.raises(FrameTooLarge) as again:
        client.receive_data(KEEP_ALIVE)
    assert again.value.args == first.value.args
    assert again.value.frame_type == first.value.frame_type


def test_messages_before_a_bad_frame_are_returned_and_the_next_call_raises() -> None:
    client = ready()
    assert client.receive_data(KEEP_ALIVE * 2 + bytes.fromhex("05 00100001")) == [KeepAlive()] * 2
    assert state_of(client) is ClientState.FAILED
    assert isinstance(client.error, FrameTooLarge)
    with pytest.raises(FrameTooLarge):
        client.receive_data(b"")


REFUSED = b"HTTP/1.1 403 Forbidden\r\nContent-Length: 2\r\n\r\nno"


def test_the_received_part_of_an_http_answer_after_a_fast_start_is_kept() -> None:
    for chunks in chunkings(REFUSED):
        client = session(server_key=v.SERVER.public)
        came = b""
        while state_of(client) is ClientState.READY:
            came += chunks[0]
            try:
                client.receive_data(chunks.pop(0))
            except FrameTooLarge:
                assert state_of(client) is ClientState.FAILED
        assert len(came) >= 5
        assert client.http_answer == came


@pytest.mark.parametrize(
    ("first", "server_key"),
    [
        (b"", None),
        (KEEP_ALIVE, v.SERVER.public),
        (frames.pack_received_packet(v.K1, b"x"), v.SERVER.public),
    ],
)
def test_an_http_answer_is_recognised_only_at_the_start_after_a_fast_start(
    first: bytes, server_key: NodePublic | None
) -> None:
    client = session(server_key=server_key)
    client.receive_data(first)
    with pytest.raises(FrameTooLarge):
        client.receive_data(REFUSED)
    assert client.http_answer == b""


def test_server_info_sealed_for_another_client_ends_the_session() -> None:
    other = ClientSession(NodePrivate.generate(b"\x77" * 32), random=v.gives(v.CLIENT_NONCE))
    with pytest.raises(BadBox):
        other.receive_data(v.SERVER_KEY_FRAME + SERVER_INFO_FRAME)


# Frames that a client sends

EIGHT = bytes(range(1, 9))
CALLS: list[tuple[Callable[[ClientSession], None], bytes]] = [
    (lambda c: c.send_packet(v.K1, b"hello"), frames.pack_send_packet(v.K1, b"hello")),
    (
        lambda c: c.forward_packet(v.K1, v.K2, b"hello"),
        frames.pack_forward_packet(v.K1, v.K2, b"hello"),
    ),
    (
        lambda c: c.send_packets(v.K1, [b"hello", bytearray(b"")]),
        frames.pack_send_packet(v.K1, b"hello") + frames.pack_send_packet(v.K1, b""),
    ),
    (lambda c: c.send_ping(EIGHT), bytes.fromhex("12 00000008 0102030405060708")),
    (lambda c: c.send_pong(EIGHT), bytes.fromhex("13 00000008 0102030405060708")),
    (lambda c: c.note_preferred(True), bytes.fromhex("07 00000001 01")),
    (lambda c: c.note_preferred(False), bytes.fromhex("07 00000001 00")),
    (lambda c: c.watch_conns(), bytes.fromhex("10 00000000")),
    (lambda c: c.close_peer(v.K1), bytes.fromhex(f"11 00000020 {v.K1_HEX}")),
]


@pytest.mark.parametrize(("call", "frame"), CALLS)
def test_calls_become_frames(call: Callable[[ClientSession], None], frame: bytes) -> None:
    client = ready()
    call(client)
    assert b"".join(client.data_to_send()) == frame


def test_several_calls_become_frames_in_order() -> None:
    client = ready()
    for call, _ in CALLS:
        call(client)
    assert b"".join(client.data_to_send()) == b"".join(frame for _, frame in CALLS)


@pytest.mark.parametrize(("call", "_"), CALLS)
def test_nothing_can_be_sent_before_server_key_or_after_a_failure(
    call: Callable[[ClientSession], None], _: bytes
) -> None:
    client = session()
    with pytest.raises(LocalProtocolError, match="cannot send while greeting"):
        call(client)
    with pytest.raises(UnexpectedFrame):
        client.receive_data(KEEP_ALIVE)
    with pytest.raises(LocalProtocolError, match="cannot send while failed"):
        call(client)
    assert client.data_to_send() == []


def test_a_packet_of_more_than_64_kib_is_refused_and_the_session_continues() -> None:
    client = ready()
    with pytest.raises(LocalProtocolError, match="packet too big: 65537"):
        client.send_packet(v.K1, bytes(65537))
    client.send_packet(v.K1, bytes(65536))
    assert [len(frame) for frame in client.data_to_send()] == [65573]
