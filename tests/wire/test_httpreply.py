"""Answers to HTTP requests: complete, cut short, endless, or not HTTP."""

from __future__ import annotations

import pytest

from pyderp.errors import LocalProtocolError, RemoteProtocolError
from pyderp.wire.httpreply import MAX_HEAD, HttpExchange

PAGE = b"HTTP/1.1 200 OK\r\nX-A: 1\r\nContent-Length: 5\r\n\r\nhello"


def read(*pieces: bytes, method: str = "GET", max_body: int = 100) -> HttpExchange:
    http = HttpExchange("h", "/x", method=method, max_body=max_body)
    for piece in pieces:
        http.receive_data_untrusted(piece)
    return http


def test_the_request_has_host_and_headers() -> None:
    http = HttpExchange("h:1", "/x?y", headers=[("A", "b")])
    assert http.request == b"GET /x?y HTTP/1.1\r\nHost: h:1\r\nUser-Agent: pyderp\r\nA: b\r\n\r\n"


@pytest.mark.parametrize("size", [1, 7, 1000])
def test_an_answer_may_arrive_in_pieces(size: int) -> None:
    data = b"HTTP/1.1 100 Continue\r\n\r\n" + PAGE
    http = read(*(data[at : at + size] for at in range(0, len(data), size)))
    assert http.finished
    assert http.reply is not None
    assert (http.reply.status, http.reply.reason, http.body) == (200, "OK", b"hello")
    assert http.reply.header("x-a") == http.reply.header("X-A") == "1"
    assert http.reply.header("x-b") == ""


def test_head_has_no_body() -> None:
    assert read(PAGE[:-5], method="HEAD").finished


def test_the_end_of_the_connection_may_end_the_body() -> None:
    http = read(b"HTTP/1.0 200 OK\r\n\r\nab")
    assert not http.finished
    http.receive_data_untrusted(b"")
    assert http.finished
    assert http.body == b"ab"


def test_a_body_is_read_up_to_max_body() -> None:
    http = read(b"HTTP/1.1 200 OK\r\n\r\n" + b"x" * 500)
    assert http.finished
    assert http.body == b"x" * 100


def test_bytes_behind_an_answer_are_ignored() -> None:
    http = read(PAGE + b"x" * 10_000, b"HTTP/1.1 500 No\r\n\r\n")
    assert http.reply is not None
    assert (http.reply.status, http.body, http.rest) == (200, b"hello", b"")


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(b"\x16\x03\x01\x02\x00\x01\xff\r\n\r\n", id="tls"),
        pytest.param(b"SSH-2.0-x\r\n\r\n", id="ssh"),
        pytest.param(b"HTTP/1.1 200 OK\r\nbad header\r\n\r\n", id="bad_header"),
        pytest.param(b"HTTP/1.1 200 OK\r\n" + b"A: b\r\n" * 1000, id="too_many_lines"),
        pytest.param(b"HTTP/1.1 200 OK\r\nA: " + b"b" * 2 * MAX_HEAD, id="too_long"),
        pytest.param(b"HTTP/1.1 100 Continue\r\n\r\n" * 10_000, id="endless_informational"),
        pytest.param(b"HTTP/1.1 101 Switching\r\n\r\n" + bytes(2 * MAX_HEAD), id="switches"),
    ],
)
def test_an_invalid_answer_is_refused(data: bytes) -> None:
    with pytest.raises(RemoteProtocolError, match="the answer is not HTTP: "):
        read(data)


@pytest.mark.parametrize("data", [b"", b"HTTP/1.1 200", PAGE[:-1]])
def test_an_answer_cut_short_is_refused(data: bytes) -> None:
    http = read(*([data] if data else []))
    with pytest.raises(RemoteProtocolError, match="the answer is not HTTP: "):
        http.receive_data_untrusted(b"")


@pytest.mark.parametrize(("host", "target"), [("h\r\nX: 1", "/"), ("h", "/ x\r\n")])
def test_a_host_or_target_with_line_breaks_is_refused(host: str, target: str) -> None:
    with pytest.raises(LocalProtocolError, match="cannot ask"):
        HttpExchange(host, target)


SWITCHED = b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: DERP\r\nConnection: Upgrade\r\n\r\n"


@pytest.mark.parametrize("size", [1, 7, 100_000])
@pytest.mark.parametrize("rest", [b"", b"HTTP/1.1 is no answer here", bytes(range(250)) * 100])
def test_an_upgrade_keeps_the_bytes_behind_the_answer(size: int, rest: bytes) -> None:
    """Bytes in the same piece, and in later ones."""
    http = HttpExchange("h", "/derp", headers=[("Connection", "Upgrade"), ("Upgrade", "DERP")])
    data = SWITCHED + rest
    for at in range(0, len(data), size):
        http.receive_data_untrusted(data[at : at + size])
    assert http.finished
    assert http.reply is not None
    assert (http.reply.status, http.reply.header("Upgrade")) == (101, "DERP")
    assert (http.body, http.rest) == (b"", rest)


def test_an_upgrade_may_be_answered_with_a_page() -> None:
    http = HttpExchange("h", "/derp", headers=[("Connection", "Upgrade"), ("Upgrade", "DERP")])
    http.receive_data_untrusted(PAGE + b"more")
    assert http.finished
    assert http.reply is not None
    assert (http.reply.status, http.body, http.rest) == (200, b"hello", b"")


def test_an_upgrade_that_was_not_requested_is_refused() -> None:
    with pytest.raises(RemoteProtocolError, match="the answer is not HTTP: "):
        read(SWITCHED)


@pytest.mark.parametrize(
    ("start", "text"),
    [
        pytest.param([], "nothing but a closed connection", id="none"),
        pytest.param([b"HTTP/1.1 200 OK\r\nA: b"], "unexpectedly closed", id="half_a_head"),
    ],
)
def test_a_connection_that_ends_without_an_answer_is_an_error(
    start: list[bytes], text: str
) -> None:
    http = read(*start)
    with pytest.raises(RemoteProtocolError, match=text):
        http.receive_data_untrusted(b"")
