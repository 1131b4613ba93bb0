"""Properties of the wire: packed values are read back, however cut; invalid bytes are refused.

Bytes from a peer raise `RemoteProtocolError` or nothing: never an IndexError, never a
struct.error. Hypothesis is derandomized, so that each run tries the same inputs.
"""

from __future__ import annotations

import contextlib
import itertools
import json
from collections.abc import Callable
from typing import Any

from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from websockets.frames import Frame, Opcode

from pyderp.errors import InvalidKey, RemoteProtocolError
from pyderp.keys import MeshKey, NodePrivate, NodePublic
from pyderp.wire import frames
from pyderp.wire.buffer import FrameBuffer
from pyderp.wire.client import ClientSession, ClientState
from pyderp.wire.http import HttpConnection, Response
from pyderp.wire.login import ClientInfo, OwnNonces, ServerLogin, seal_client_info, seal_server_info
from pyderp.wire.messages import (
    Health,
    KeepAlive,
    Message,
    PeerGone,
    Ping,
    Pong,
    ReceivedPacket,
    Restarting,
    ServerInfo,
)
from pyderp.wire.metacert import scan_chain_untrusted
from pyderp.wire.upgrade import UpgradeReply, upgrade_request
from pyderp.wire.websocket import WebSocketServer
from tests import vectors as v

quick = settings(
    derandomize=True,
    deadline=None,
    max_examples=150,
    suppress_health_check=[HealthCheck.too_slow],
)

raw_keys = st.binary(min_size=32, max_size=32)
publics = raw_keys.map(NodePublic)
eights = st.binary(min_size=8, max_size=8)
nonces = st.binary(min_size=24, max_size=24)
packets = st.binary(max_size=300)
milliseconds = st.integers(0, 2**32 - 1)

# Strategies for streams


@st.composite
def chunked(draw: st.DrawFn, data: bytes) -> list[bytes]:
    """Draw a split of `data` into chunks of any size."""
    cuts = draw(st.lists(st.integers(0, len(data)), max_size=12))
    return [data[a:b] for a, b in itertools.pairwise([0, *sorted(cuts), len(data)])]


@st.composite
def mutated(draw: st.DrawFn, data: bytes) -> list[bytes]:
    """Draw valid bytes after changes: bits flipped, bytes inserted or removed, a truncation."""
    out = bytearray(data)
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.integers(0, max(0, len(out) - 1)))
        match draw(st.sampled_from(["flip", "put", "take", "cut", "noise", "repeat"])):
            case "flip" if out:
                out[at] ^= 1 << draw(st.integers(0, 7))
            case "put":
                out[at:at] = draw(st.binary(min_size=1, max_size=8))
            case "take":
                del out[at : at + draw(st.integers(1, 8))]
            case "cut":
                del out[at:]
            case "noise":
                out[at : at + 4] = draw(st.binary(min_size=4, max_size=4))
            case _:
                out += out[at:]
    return draw(chunked(bytes(out)))


def message_and_frame() -> st.SearchStrategy[tuple[Message, bytes]]:
    """Return a strategy for a message of a server, and its frame."""
    return st.one_of(
        st.builds(
            lambda k, p: (ReceivedPacket(k, p), frames.pack_received_packet(k, p)), publics, packets
        ),
        st.builds(
            lambda k, r: (PeerGone(k, r), frames.pack_peer_gone(k, r)), publics, st.integers(0, 255)
        ),
        st.builds(lambda d: (Ping(d), frames.pack_ping(d)), eights),
        st.builds(lambda d: (Pong(d), frames.pack_pong(d)), eights),
        st.builds(lambda t: (Health(t), frames.pack_health(t)), st.text(max_size=40)),
        st.builds(
            lambda a, b: (
                Restarting(a / 1000, b / 1000),
                frames.pack_restarting(a / 1000, b / 1000),
            ),
            milliseconds,
            milliseconds,
        ),
        st.just((KeepAlive(), frames.KEEP_ALIVE_FRAME)),
    )


def client() -> ClientSession:
    """Return a client that waits for the server's key."""
    return ClientSession(v.CLIENT, random=v.gives(v.CLIENT_NONCE))


# Round trips


@quick
@given(raw_keys)
def test_a_public_key_is_read_back_from_each_of_its_forms(raw: bytes) -> None:
    key = NodePublic(raw)
    assert NodePublic.parse(str(key)) == key
    assert NodePublic.parse_untyped(key.untyped_hex().upper()) == key
    assert NodePublic.from_binary(key.to_binary()) == key


@quick
@given(raw_keys.filter(any))
def test_secret_keys_are_read_back_from_their_texts(raw: bytes) -> None:
    assert NodePrivate.parse(NodePrivate(raw).to_text()) == NodePrivate(raw)
    assert MeshKey.parse(MeshKey(raw).to_text()) == MeshKey(raw)


@quick
@given(st.text(alphabet="0123456789abcdefnodekyprivABC: \n\u0661", max_size=80))
def test_any_text_is_a_key_or_invalid_key(text: str) -> None:
    forms: list[tuple[Callable[[str], Any], Callable[[Any], str]]] = [
        (NodePublic.parse, str),
        (NodePublic.parse_untyped, NodePublic.untyped_hex),
        (NodePrivate.parse, NodePrivate.to_text),
        (MeshKey.parse, MeshKey.to_text),
    ]
    for parse, unparse in forms:
        with contextlib.suppress(InvalidKey):
            assert unparse(parse(text)) == text.strip().lower()


@quick
@given(raw_keys.filter(any), raw_keys.filter(any), st.binary(max_size=100), nonces)
def test_a_box_opens_for_its_recipient(a: bytes, b: bytes, text: bytes, nonce: bytes) -> None:
    alice, bob = NodePrivate(a), NodePrivate(b)
    sealed = alice.seal_to(bob.public, text, nonce=nonce)
    assert len(sealed) == 24 + 16 + len(text)
    assert bob.open_from(alice.public, sealed) == text


client_infos = st.builds(
    ClientInfo,
    mesh_key=st.none() | raw_keys.filter(any).map(MeshKey),
    version=st.integers(-(2**63), 2**63 - 1),
    can_ack_pings=st.booleans(),
    is_prober=st.booleans(),
    app_name=st.text(max_size=30),
)
valid_infos = st.builds(
    ClientInfo,
    version=st.integers(-(2**63), 2**63 - 1),
    app_name=st.text(st.characters(min_codepoint=0x20, max_codepoint=0x7E), max_size=32),
)


@quick
@given(client_infos)
def test_client_info_is_read_back_from_its_json(info: ClientInfo) -> None:
    assert ClientInfo.from_json_untrusted(info.to_json()) == info
    assert json.loads(info.to_json())["CanAckPings"] is info.can_ack_pings


# Any cut


@quick
@given(st.data(), st.lists(message_and_frame(), max_size=6))
def test_any_chunking_has_the_same_messages(
    data: st.DataObject, sent_messages: list[tuple[Message, bytes]]
) -> None:
    stream = (
        v.SERVER_KEY_FRAME + v.SERVER_INFOS[0][2] + b"".join(frame for _, frame in sent_messages)
    )
    session = client()
    received = [m for chunk in data.draw(chunked(stream)) for m in session.receive_data(chunk)]
    assert received == [ServerInfo(version=2), *(message for message, _ in sent_messages)]


@quick
@given(st.data(), st.lists(st.tuples(st.integers(0, 255), st.binary(max_size=20)), max_size=6))
def test_any_chunking_has_the_same_frames(
    data: st.DataObject, sent: list[tuple[int, bytes]]
) -> None:
    stream = b"".join(frames.pack_frame(kind, payload) for kind, payload in sent)
    buffer = FrameBuffer(limit=20)
    got = [f for chunk in data.draw(chunked(stream)) for f in buffer.receive_data(chunk)]
    assert got == sent
    assert len(buffer) == 0


@quick
@given(valid_infos, nonces, st.integers(0, 400), st.binary(max_size=30))
def test_login_reads_exactly_one_complete_frame(
    info: ClientInfo, nonce: bytes, end: int, behind: bytes
) -> None:
    frame = seal_client_info(v.CLIENT, v.SERVER.public, info, nonce=nonce)
    login = ServerLogin(v.SERVER, random=v.gives(v.SERVER_NONCE))
    part = min(end, len(frame) - 1)
    assert login.receive_untrusted(bytearray(frame), part) == (0, None)
    stream = bytearray(frame + behind)
    consumed, logged_in = login.receive_untrusted(stream, len(stream))
    assert logged_in is not None
    assert (consumed, logged_in.client, logged_in.info) == (len(frame), v.CLIENT.public, info)
    nonce = OwnNonces(v.SERVER, b"relay", random=v.gives(v.SERVER_NONCE)).make()
    assert logged_in.server_info == seal_server_info(v.SHARED_KEY, nonce=nonce)


@quick
@given(st.data(), st.lists(st.binary(max_size=200), max_size=5))
def test_websocket_has_the_same_stream_in_any_chunking(
    data: st.DataObject, messages: list[bytes]
) -> None:
    wire = b"".join(Frame(Opcode.BINARY, m).serialize(mask=True) for m in messages)
    server = WebSocketServer()
    stream = [part for chunk in data.draw(chunked(wire)) for part in server.receive_data(chunk)]
    assert b"".join(stream) == b"".join(messages)
    assert server.is_open


@quick
@given(st.data(), st.binary(max_size=40))
def test_upgrade_loses_no_byte_in_any_chunking(data: st.DataObject, behind: bytes) -> None:
    reply = UpgradeReply()
    stream: bytes | None = None
    for chunk in data.draw(chunked(v.SWITCHING_PROTOCOLS + behind)):
        if stream is not None:
            stream += chunk
        elif chunk:
            stream = reply.receive_data(chunk)
    assert stream == behind


# Invalid bytes

CLIENT_STREAM = b"".join(
    (v.SERVER_KEY_FRAME, v.SERVER_INFOS[1][2], *(bytes.fromhex(h) for h, _, _ in v.SERVER_STREAMS))
)


@quick
@given(mutated(CLIENT_STREAM) | st.lists(st.binary(max_size=60), max_size=4))
def test_client_session_refuses_invalid_bytes(chunks: list[bytes]) -> None:
    sessions = [
        client(),
        ClientSession(v.CLIENT, random=v.gives(v.CLIENT_NONCE), server_key=v.SERVER.public),
    ]
    for session, chunk in itertools.product(sessions, chunks):
        failed = session.error
        raised = ""
        try:
            session.receive_data(chunk)
        except RemoteProtocolError as e:
            raised = str(e)
        assert raised in ("", str(session.error))
        assert raised or failed is None, "a session that failed stays so"
        assert (session.state is ClientState.FAILED) == (session.error is not None)


@quick
@given(st.integers(0, 255), st.binary(max_size=80))
def test_client_session_reads_any_frame(kind: int, payload: bytes) -> None:
    session = client()
    session.receive_data(v.SERVER_KEY_FRAME)
    with contextlib.suppress(RemoteProtocolError):
        assert len(session.receive_data(frames.pack_frame(kind, payload))) <= 1


@quick
@given(mutated(v.CLIENT_INFOS[2][2]) | st.lists(st.binary(max_size=200), max_size=1))
def test_server_login_refuses_invalid_bytes(chunks: list[bytes]) -> None:
    data = bytearray(b"".join(chunks))
    login = ServerLogin(v.SERVER, random=bytes)
    for end in {*range(0, len(data), 16), len(data)}:
        with contextlib.suppress(RemoteProtocolError):
            consumed, logged_in = login.receive_untrusted(data, end)
            if logged_in is not None:  # then the frame was not changed
                assert data[:consumed] == v.CLIENT_INFOS[2][2]


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=70),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=5,
)
names = st.sampled_from(["meshKey", "MESHKEY", "version", "CanAckPings", "isprober", "AppName", ""])


@quick
@given(
    st.binary(max_size=80)
    | mutated(v.CLIENT_INFOS[2][1]).map(b"".join)
    | st.dictionaries(names, json_values).map(lambda d: json.dumps(d).encode())
    | json_values.map(lambda d: json.dumps(d).encode())
)
@example(b'{"meshKey":"\\ud800"}')
@example(b'{"\\ud800":1}')
def test_client_info_refuses_invalid_bytes(text: bytes) -> None:
    with contextlib.suppress(RemoteProtocolError):
        info = ClientInfo.from_json_untrusted(text)
        assert ClientInfo.from_json_untrusted(info.to_json()) == info


REQUESTS = (
    upgrade_request("h", "/derp?x=1", user_agent="p", fast_start=True)
    + b"POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n"
    + b"HEAD /derp/probe HTTP/1.1\r\nHost: h\r\n\r\n"
    + b"PUT / HTTP/1.1\r\nHost: h\r\nExpect: 100-continue\r\nContent-Length: 3\r\n\r\nabc"
)


@quick
@given(mutated(REQUESTS) | st.lists(st.binary(max_size=100), max_size=4))
def test_http_connection_refuses_invalid_bytes(chunks: list[bytes]) -> None:
    http = HttpConnection()
    for chunk in chunks:
        http.receive_data(chunk)
        try:
            while http.next_request() is not None:
                answer = http.respond(Response(200, body=b"x"))
                assert answer.startswith(b"HTTP/1.1 200 OK\r\n")
        except RemoteProtocolError:
            assert http.refusal().startswith(b"HTTP/1.1 ")
            assert http.next_request() is None
            break


REPLY = v.SWITCHING_PROTOCOLS.replace(b"101 Switching Protocols", b"502 Bad Gateway")


@quick
@given(
    mutated(v.SWITCHING_PROTOCOLS + v.SERVER_KEY_FRAME)
    | mutated(REPLY + b"some words")
    | mutated(b"HTTP/1.1 103 \r\n\r\nHTTP/1.1 404 \r\nTransfer-Encoding: chunked\r\n\r\n1\r\na\r\n")
    | st.lists(st.binary(max_size=100), max_size=4)
)
def test_upgrade_reply_refuses_invalid_bytes(chunks: list[bytes]) -> None:
    reply = UpgradeReply()
    with contextlib.suppress(RemoteProtocolError):
        for chunk in [*filter(None, chunks), b""]:
            if reply.receive_data(chunk) is not None:
                return
        raise AssertionError("neither an answer nor an error at the end")


WEBSOCKET = b"".join(
    frame.serialize(mask=True)
    for frame in (
        Frame(Opcode.BINARY, b"x" * 130),
        Frame(Opcode.BINARY, b"a", fin=False),
        Frame(Opcode.PING, b"ping"),
        Frame(Opcode.CONT, b"b"),
        Frame(Opcode.TEXT, "é".encode()),
        Frame(Opcode.CLOSE, b"\x03\xe8bye"),
    )
)


@quick
@given(mutated(WEBSOCKET) | st.lists(st.binary(max_size=60), max_size=4))
def test_websocket_server_closes_on_invalid_bytes(chunks: list[bytes]) -> None:
    """It raises nothing. It closes, and then sends nothing more."""
    server = WebSocketServer()
    for chunk in chunks:
        server.receive_data(chunk)
        server.send([b"answer"])
    server.receive_eof()
    assert not server.is_open
    assert server.data_to_send()[-1] == b""
    server.send([b"too late"])
    server.close()
    assert server.data_to_send() == []


@quick
@given(
    st.lists(st.binary(max_size=80) | mutated(v.META_CERTIFICATE).map(b"".join), max_size=2),
    st.booleans(),
)
def test_chain_scan_skips_invalid_certificates(chain: list[bytes], followed: bool) -> None:
    found = scan_chain_untrusted([*chain, v.META_CERTIFICATE] if followed else chain)
    if followed:
        assert found is not None
    if found is not None:
        assert 0 <= found[1] <= 255
