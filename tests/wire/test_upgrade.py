"""The upgrade from HTTP to DERP, on both sides."""

from __future__ import annotations

import pytest

from pyderp.errors import BadUpgrade, UpgradeRejected
from pyderp.text import printable
from pyderp.wire.http import HttpConnection, Request, Upgrade
from pyderp.wire.upgrade import UpgradeReply, switching_protocols, upgrade_request
from tests import vectors as v

from .chunks import byte_by_byte, chunkings


def request(*headers: tuple[str, str]) -> Request:
    """Return a request to `/derp` with these headers, read by HttpConnection."""
    lines = "".join(f"{name}: {value}\r\n" for name, value in headers)
    http = HttpConnection()
    http.receive_data(f"GET /derp HTTP/1.1\r\nHost: h\r\n{lines}\r\n".encode())
    read = http.next_request()
    assert read is not None
    return read


WS = ("Upgrade", "websocket")
OFFER = "Sec-WebSocket-Protocol"


@pytest.mark.parametrize(
    ("headers", "upgrade"),
    [
        ([], Upgrade.NONE),
        ([("Connection", "Upgrade")], Upgrade.NONE),
        ([("Upgrade", "")], Upgrade.NONE),
        ([("Upgrade", "h2c")], Upgrade.NONE),
        ([("Upgrade", "DERP, websocket")], Upgrade.NONE),
        ([("Upgrade", "DERP")], Upgrade.DERP),
        ([("Upgrade", "derp")], Upgrade.DERP),
        ([("uPGRADE", "DeRp"), ("Connection", "close")], Upgrade.DERP),
        # an old client sends websocket and expects plain DERP
        ([WS], Upgrade.DERP),
        ([WS, (OFFER, "chat")], Upgrade.DERP),
        ([WS, (OFFER, "DERP")], Upgrade.DERP),
        ([WS, (OFFER, "derp")], Upgrade.WEBSOCKET),
        ([("Upgrade", "WebSocket"), (OFFER, "derp")], Upgrade.WEBSOCKET),
        ([WS, (OFFER, "derpx")], Upgrade.WEBSOCKET),
        ([WS, (OFFER, "chat, derp")], Upgrade.WEBSOCKET),
        ([WS, (OFFER, "chat"), (OFFER, "derp")], Upgrade.WEBSOCKET),
        ([("Upgrade", "DERP"), (OFFER, "derp")], Upgrade.DERP),
    ],
)
def test_the_requested_upgrade_is_recognised(
    headers: list[tuple[str, str]], upgrade: Upgrade
) -> None:
    assert request(*headers).upgrade is upgrade


@pytest.mark.parametrize(
    ("value", "fast"), [("1", True), ("0", False), ("true", False), ("11", False), ("", False)]
)
def test_fast_start_is_requested_by_1_only(value: str, fast: bool) -> None:
    assert request(("derp-fast-start", value)).wants_fast_start is fast


def test_fast_start_is_not_the_default() -> None:
    assert not request().wants_fast_start


def test_the_answer_is_that_of_go() -> None:
    assert switching_protocols(v.SERVER.public) == v.SWITCHING_PROTOCOLS


# Requests of a client


def test_the_request_is_that_of_go() -> None:
    assert upgrade_request("127.0.0.1:8080", "/derp?x=1", user_agent="pyderp") == (
        b"GET /derp?x=1 HTTP/1.1\r\nHost: 127.0.0.1:8080\r\nUser-Agent: pyderp\r\n"
        b"Connection: Upgrade\r\nUpgrade: DERP\r\n\r\n"
    )


def test_the_fast_start_request_is_that_of_go() -> None:
    assert upgrade_request("h", "/derp", user_agent="pyderp", fast_start=True) == (
        b"GET /derp HTTP/1.1\r\nHost: h\r\nUser-Agent: pyderp\r\n"
        b"Connection: Upgrade\r\nDerp-Fast-Start: 1\r\nUpgrade: DERP\r\n\r\n"
    )


def test_other_headers_are_sorted_by_name() -> None:
    asked = upgrade_request(
        "h", "", user_agent="p", ideal_node="1f", fast_start=True, extra=[("X-Y", "z"), ("A", "b")]
    )
    assert asked == (
        b"GET / HTTP/1.1\r\nHost: h\r\nUser-Agent: p\r\nA: b\r\nConnection: Upgrade\r\n"
        b"Derp-Fast-Start: 1\r\nIdeal-Node: 1f\r\nUpgrade: DERP\r\nX-Y: z\r\n\r\n"
    )


@pytest.mark.parametrize(
    ("host", "target"),
    [
        ("h\r\nX: y", "/"),
        ("h", "/ HTTP/1.1\r\nX: y"),
        ("h", "/a b"),
        ("h", "/é"),
        ("é", "/"),
        ("h\0", "/"),
    ],
)
def test_an_invalid_host_or_target_is_refused(host: str, target: str) -> None:
    with pytest.raises(BadUpgrade, match="cannot ask for an upgrade"):
        upgrade_request(host, target, user_agent="p")


def test_the_relay_reads_the_request() -> None:
    http = HttpConnection()
    http.receive_data(upgrade_request("h", "/derp", user_agent="p", fast_start=True) + b"\x02")
    asked = http.next_request()
    assert asked is not None
    assert (asked.path, asked.header(b"host")) == ("/derp", "h")
    assert asked.upgrade is Upgrade.DERP
    assert asked.wants_fast_start
    assert http.take_over() == b"\x02"


# Answers to a client


@pytest.mark.parametrize("chunks", chunkings(v.SWITCHING_PROTOCOLS))
def test_a_101_is_read_however_it_is_cut(chunks: list[bytes]) -> None:
    reply = UpgradeReply()
    assert [reply.receive_data(chunk) for chunk in chunks[:-1]] == [None] * (len(chunks) - 1)
    assert reply.receive_data(chunks[-1]) == b""


@pytest.mark.parametrize("behind", [v.SERVER_KEY_FRAME, b"HTTP/1.1 200 OK\r\n\r\n", b"\0"])
def test_bytes_behind_the_101_are_returned(behind: bytes) -> None:
    assert UpgradeReply().receive_data(v.SWITCHING_PROTOCOLS + behind) == behind


def test_the_stream_starts_in_the_chunk_that_ends_the_101() -> None:
    whole = v.SWITCHING_PROTOCOLS + v.SERVER_KEY_FRAME
    for at in range(1, len(whole)):
        reply = UpgradeReply()
        first = reply.receive_data(whole[:at])
        if first is None:
            assert reply.receive_data(whole[at:]) == v.SERVER_KEY_FRAME
        else:
            assert first == v.SERVER_KEY_FRAME[: at - len(v.SWITCHING_PROTOCOLS)]


@pytest.mark.parametrize(
    "head",
    [
        b"HTTP/1.1 101 Whatever\r\n\r\n",
        b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: other\r\nDerp-Version: 9\r\n\r\n",
        b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nA: b\r\n\r\n"
        b"HTTP/1.1 101 Switching Protocols\r\n\r\n",
    ],
)
def test_only_the_status_101_matters(head: bytes) -> None:
    assert UpgradeReply().receive_data(head + b"rest") == b"rest"


REFUSALS = [
    (
        b"HTTP/1.1 426 Upgrade Required\r\nContent-Length: 9\r\n\r\n no derp\n",
        "upgrade refused: 426 Upgrade Required: no derp",
    ),
    (b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n", "upgrade refused: 404 Not Found"),
    (b"HTTP/1.1 404 \r\nContent-Length: 0\r\n\r\n", "upgrade refused: 404"),
    (
        b"HTTP/1.1 502 Bad Gateway\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nbad\r\n0\r\n\r\n",
        "upgrade refused: 502 Bad Gateway: bad",
    ),
    (
        b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n\xff\xfe",
        "upgrade refused: 200 OK: \ufffd\ufffd",
    ),
]


@pytest.mark.parametrize(("answer", "text"), REFUSALS)
def test_a_refusal_is_read_however_it_is_cut(answer: bytes, text: str) -> None:
    for chunks in chunkings(answer):
        reply = UpgradeReply()
        assert [reply.receive_data(chunk) for chunk in chunks[:-1]] == [None] * (len(chunks) - 1)
        with pytest.raises(BadUpgrade) as caught:
            reply.receive_data(chunks[-1])
        assert str(caught.value) == text


def test_a_refusal_may_end_with_the_connection() -> None:
    reply = UpgradeReply()
    assert reply.receive_data(b"HTTP/1.1 403 Forbidden\r\nConnection: close\r\n\r\ngo") is None
    assert reply.receive_data(b" away") is None
    with pytest.raises(BadUpgrade, match=r"^upgrade refused: 403 Forbidden: go away$"):
        reply.receive_data(b"")


def test_control_characters_of_a_refusal_are_escaped() -> None:
    """Line breaks, too; `body` is not escaped."""
    body = b"x\nCRITICAL root all is lost\x1b[31m\xc2\x9b1m"
    head = f"HTTP/1.1 403 For\x9b31m\tbidden\r\nContent-Length: {len(body)}\r\n\r\n"
    with pytest.raises(UpgradeRejected) as caught:
        UpgradeReply().receive_data(head.encode("latin-1") + body)
    assert str(caught.value) == (
        r"upgrade refused: 403 For\x9b31m\tbidden: x\nCRITICAL root all is lost\x1b[31m\x9b1m"
    )
    assert caught.value.body == body.decode()


def test_a_refusal_is_known_before_its_body_has_arrived() -> None:
    reply = UpgradeReply()
    assert reply.receive_data(b"HTTP/1.1 403 Forbidden\r\nContent-Len") is None
    assert not reply.refused
    assert reply.receive_data(b"gth: 100\r\n\r\n") is None
    assert reply.refused
    assert (reply.refusal().status, reply.refusal().body) == (403, "")
    assert reply.receive_data(b"go away") is None
    assert str(reply.refusal()) == "upgrade refused: 403 Forbidden: go away"
    with pytest.raises(UpgradeRejected, match=r"403 Forbidden: go away$"):
        reply.receive_data(b"")


def test_an_upgrade_is_no_refusal() -> None:
    reply = UpgradeReply()
    reply.receive_data(v.SWITCHING_PROTOCOLS)
    assert not reply.refused


def test_a_truncated_refusal_has_the_text_that_arrived() -> None:
    reply = UpgradeReply()
    assert reply.receive_data(b"HTTP/1.1 500 Oh\r\nContent-Length: 99\r\n\r\nhalf") is None
    with pytest.raises(BadUpgrade, match=r"^upgrade refused: 500 Oh: half$"):
        reply.receive_data(b"")


def test_an_endless_refusal_is_read_up_to_4_kib() -> None:
    reply = UpgradeReply()
    head = b"HTTP/1.1 200 OK\r\nContent-Length: 1000000\r\n\r\n"
    assert reply.receive_data(head + b"x" * 4096) is None
    with pytest.raises(BadUpgrade) as caught:
        reply.receive_data(b"x" * 4096)
    assert str(caught.value) == "upgrade refused: 200 OK: " + "x" * 199 + "…"


@pytest.mark.parametrize(
    "data",
    [
        b"SSH-2.0-OpenSSH_9.2\r\n\r\n",
        v.SERVER_KEY_FRAME,
        b"HTTP/1.1 abc\r\n\r\n",
        b"HTTP/1.1 099 Low\r\n\r\n",
        b"HTTP/1.1 101 Switching Protocols\r\n\0: x\r\n\r\n",
        b"HTTP/1.1 101 Switching Protocols\r\nno colon\r\n\r\n",
    ],
)
def test_an_answer_that_is_not_http_is_refused(data: bytes) -> None:
    with pytest.raises(BadUpgrade, match="the relay's answer is not HTTP"):
        UpgradeReply().receive_data(data + b"\r\n\r\n")


def test_the_error_about_other_protocols_is_one_line() -> None:
    with pytest.raises(BadUpgrade) as caught:
        UpgradeReply().receive_data(b"HTTP/1.1 \x1b[31m\r\nCRITICAL\r\n\r\n")
    assert str(caught.value).isprintable()


def test_an_endless_head_is_refused() -> None:
    reply = UpgradeReply()
    assert reply.receive_data(b"HTTP/1.1 101 Switching Protocols\r\nX: ") is None
    with pytest.raises(BadUpgrade, match="not HTTP"):
        reply.receive_data(b"x" * 65536)


def test_a_connection_closed_without_an_answer_is_reported_as_such() -> None:
    with pytest.raises(BadUpgrade) as caught:
        UpgradeReply().receive_data(b"")
    assert str(caught.value) == "the relay closed the connection without an answer"


@pytest.mark.parametrize("size", [1, 20, len(v.SWITCHING_PROTOCOLS) - 1])
def test_a_truncated_answer_is_refused(size: int) -> None:
    reply = UpgradeReply()
    for chunk in byte_by_byte(v.SWITCHING_PROTOCOLS[:size]):
        assert reply.receive_data(chunk) is None
    start = printable(v.SWITCHING_PROTOCOLS[:size][:40].decode())
    with pytest.raises(BadUpgrade) as caught:
        reply.receive_data(b"")
    assert str(caught.value) == (
        f'the relay\'s answer is not HTTP, or not whole: it begins with "{start}"'
    )
