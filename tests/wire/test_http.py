"""HttpConnection: requests before DERP, answered one after another or refused."""

from __future__ import annotations

from collections.abc import AsyncGenerator

import pytest

from pyderp.defaults import MAX_HTTP_HEAD
from pyderp.errors import BadUpgrade
from pyderp.wire.http import (
    BROWSER_HEADERS,
    HttpConnection,
    Request,
    Response,
    StreamedResponse,
    Upgrade,
    page,
    text_response,
)
from tests.leftovers import none_left_now

from .chunks import byte_by_byte, chunkings

GET = b"GET /a?b=c HTTP/1.1\r\nHost: h\r\nX-Some:  one \r\nx-some: two\r\n\r\n"
HEAD = b"HEAD /probe HTTP/1.1\r\nHost: h\r\n\r\n"


def opened(data: bytes) -> tuple[HttpConnection, Request]:
    """Return a connection that received `data`, and its first request."""
    http = HttpConnection()
    http.receive_data(data)
    request = http.next_request()
    assert request is not None
    return http, request


def refused(http: HttpConnection, data: bytes) -> bytes:
    """Return the answer to bytes that are no acceptable request."""
    http.receive_data(data)
    with pytest.raises(BadUpgrade):
        http.next_request()
    answer = http.refusal()
    assert http.finished
    assert http.next_request() is None
    return answer


def is_finished(http: HttpConnection) -> bool:
    """Return `finished`; a function, so that type checkers do not narrow it."""
    return http.finished


# Heads


@pytest.mark.parametrize(
    ("target", "path"),
    [
        ("/a?b=http://c", "/a?b=http://c"),
        ("//a", "//a"),
        ("/http://a", "/http://a"),
        ("http://h/a?b=c", "/a?b=c"),
        ("HTTPS://h:443/a", "/a"),
        ("http://h", "/"),
        ("http://h?b=c", "/?b=c"),
        ("http://u@[::1]:80/", "/"),
        ("http:///a", "/a"),
        ("ftp://h/a", "ftp://h/a"),
        ("*", "*"),
    ],
)
def test_a_target_may_be_a_whole_url(target: str, path: str) -> None:
    _, request = opened(f"GET {target} HTTP/1.1\r\nHost: h\r\n\r\n".encode())
    assert request.target == path


def test_the_host_of_a_whole_url_replaces_the_host_header() -> None:
    """RFC 9112 §3.2.2; access to `/debug/` depends on it."""
    _, request = opened(b"GET http://evil.example/debug/ HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n")
    assert request.header_values(b"host") == ["evil.example"]


@pytest.mark.parametrize("chunks", chunkings(GET))
def test_a_head_is_read_however_the_stream_is_cut(chunks: list[bytes]) -> None:
    http = HttpConnection()
    for chunk in chunks[:-1]:
        http.receive_data(chunk)
        assert http.next_request() is None
    http.receive_data(chunks[-1])
    assert http.next_request() == Request(
        method="GET",
        target="/a?b=c",
        http_version="1.1",
        headers=[(b"host", b"h"), (b"x-some", b"one"), (b"x-some", b"two")],
    )
    assert not http.finished


def test_headers_of_a_request_can_be_read() -> None:
    _, request = opened(GET)
    assert request.path == "/a"
    assert request.header(b"x-some") == "one"
    assert request.header_values(b"x-some") == ["one", "two"]
    assert request.header(b"x-none") == ""
    assert request.header_values(b"x-none") == []


def test_header_values_may_be_latin1() -> None:
    _, request = opened(b"GET / HTTP/1.1\r\nHost: h\r\nX: \xe9\r\n\r\n")
    assert request.header(b"x") == "é"
    assert request.header_values(b"x") == ["é"]


def test_without_bytes_there_is_no_request() -> None:
    http = HttpConnection()
    http.receive_data(b"")
    assert http.next_request() is None
    assert not http.finished
    assert http.served == 0


@pytest.mark.parametrize(
    ("target", "fields"),
    [
        ("/", {}),
        ("/?", {}),
        ("/?a=b&c=d%20e&f=&g", {"a": "b", "c": "d e", "f": "", "g": ""}),
        ("/?a=first&a=second", {"a": "first"}),
        ("/?" + "&".join(f"k{i}=v" for i in range(50)), {f"k{i}": "v" for i in range(50)}),
        ("/?" + "&".join(f"k{i}=v" for i in range(51)), {}),
    ],
    ids=["none", "empty", "several", "repeated", "fifty", "too many"],
)
def test_the_query_of_a_target_is_parsed(target: str, fields: dict[str, str]) -> None:
    _, request = opened(f"GET {target} HTTP/1.1\r\nHost: h\r\n\r\n".encode())
    assert request.query == fields


@pytest.mark.parametrize(
    ("lines", "upgrade"),
    [
        ("", Upgrade.NONE),
        ("Upgrade: DERP", Upgrade.DERP),
        ("Upgrade: derp", Upgrade.DERP),
        ("Upgrade: h2c", Upgrade.NONE),
        ("Upgrade: WebSocket\r\nSec-WebSocket-Protocol: derp", Upgrade.WEBSOCKET),
        (
            "Upgrade: websocket\r\nSec-WebSocket-Protocol: a\r\nSec-WebSocket-Protocol: derp",
            Upgrade.WEBSOCKET,
        ),
        ("Upgrade: websocket\r\nSec-WebSocket-Protocol: chat", Upgrade.DERP),
        ("Upgrade: websocket", Upgrade.DERP),
    ],
)
def test_the_upgrade_is_chosen_as_by_go(lines: str, upgrade: Upgrade) -> None:
    head = "\r\n".join(["GET /derp HTTP/1.1", "Host: h", *lines.split("\r\n")]).rstrip()
    _, request = opened(f"{head}\r\n\r\n".encode())
    assert request.upgrade is upgrade


@pytest.mark.parametrize(
    ("value", "wanted"), [("1", True), ("0", False), ("true", False), ("11", False), (None, False)]
)
def test_a_fast_start_is_wanted_by_the_exact_value(value: str | None, wanted: bool) -> None:
    header = b"" if value is None else f"Derp-Fast-Start: {value}\r\n".encode()
    _, request = opened(b"GET /derp HTTP/1.1\r\nHost: h\r\n" + header + b"\r\n")
    assert request.wants_fast_start is wanted


# Answers


@pytest.mark.parametrize(
    ("response", "answer"),
    [
        (Response(200), b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"),
        (
            Response(200, [("Content-Type", "text/html"), ("X-One", "1")], b"<p>"),
            b"HTTP/1.1 200 OK\r\nContent-Type: text/html\r\nX-One: 1\r\n"
            b"Content-Length: 3\r\n\r\n<p>",
        ),
        (Response(204, [("X", "y")]), b"HTTP/1.1 204 No Content\r\nX: y\r\n\r\n"),
        (
            text_response(426, "DERP requires connection upgrade"),
            b"HTTP/1.1 426 Upgrade Required\r\nContent-Type: text/plain; charset=utf-8\r\n"
            b"X-Content-Type-Options: nosniff\r\nContent-Length: 33\r\n\r\n"
            b"DERP requires connection upgrade\n",
        ),
    ],
)
def test_the_next_request_follows_an_answer(response: Response, answer: bytes) -> None:
    http, _ = opened(GET)
    assert http.respond(response) == answer
    assert (is_finished(http), http.served) == (False, 1)
    http.receive_data(HEAD)
    request = http.next_request()
    assert request is not None
    assert request.target == "/probe"


def test_headers_of_an_answer_may_be_latin1() -> None:
    http, _ = opened(GET)
    assert b"\r\nX: caf\xe9\r\n" in http.respond(Response(200, [("X", "café")]))


def test_an_answer_may_end_the_connection() -> None:
    http, _ = opened(GET + HEAD)
    answer = http.respond(text_response(503, "full", close=True))
    assert answer == (
        b"HTTP/1.1 503 Service Unavailable\r\nContent-Type: text/plain; charset=utf-8\r\n"
        b"X-Content-Type-Options: nosniff\r\nContent-Length: 5\r\nConnection: close\r\n\r\nfull\n"
    )
    assert http.finished
    assert http.next_request() is None


def test_a_page_has_the_headers_that_restrict_browsers() -> None:
    response = page("text/html", b"<p>")
    assert (response.status, response.body, response.close) == (200, b"<p>", False)
    assert response.headers == [("Content-Type", "text/html"), *BROWSER_HEADERS]


async def no_chunks() -> AsyncGenerator[bytes, None]:
    """The pieces of a streamed answer, which its caller sends itself."""
    yield b""


def test_a_streamed_answer_is_sent_in_pieces() -> None:
    http, _ = opened(GET)
    response = StreamedResponse(200, [("X", "y")], no_chunks())
    assert http.begin(response) == (
        b"HTTP/1.1 200 OK\r\nX: y\r\nTransfer-Encoding: chunked\r\n\r\n"
    )
    assert http.chunk(b"abc") == b"3\r\nabc\r\n"
    assert http.chunk(b"") == b"", "an empty chunk would end the body"
    assert http.chunk(b"d") == b"1\r\nd\r\n"
    assert http.end() == b"0\r\n\r\n"
    assert (http.finished, http.served) == (False, 1)


def test_a_streamed_answer_to_head_has_no_body() -> None:
    http, _ = opened(HEAD)
    head = http.begin(StreamedResponse(200, [("X", "y")], no_chunks()))
    assert head.startswith(b"HTTP/1.1 200 OK\r\nX: y\r\n")
    assert http.chunk(b"abc") == http.end() == b""
    assert not http.finished


def test_head_is_answered_without_the_body() -> None:
    http, request = opened(HEAD + GET)
    assert request.method == "HEAD"
    answer = http.respond(Response(200, body=b"body"))
    assert answer == b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\n"
    following = http.next_request()
    assert following is not None
    assert following.path == "/a"


@pytest.mark.parametrize("chunks", [[GET + HEAD], byte_by_byte(GET + HEAD), [GET, HEAD]])
def test_two_requests_in_a_row_are_answered(chunks: list[bytes]) -> None:
    http = HttpConnection()
    seen = []
    for chunk in chunks:
        http.receive_data(chunk)
        while (request := http.next_request()) is not None:
            seen.append(request.target)
            http.respond(Response(200))
    assert seen == ["/a?b=c", "/probe"]
    assert (http.finished, http.served) == (False, 2)


@pytest.mark.parametrize(
    "request_",
    [
        b"POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 5\r\n\r\nhello",
        b"POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 5\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\nno chunk\r\n",
        b"GET / HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n",
        b"GET / HTTP/1.0\r\n\r\n",
    ],
)
def test_the_connection_ends_after_a_body_or_if_requested(request_: bytes) -> None:
    http, _ = opened(request_ + GET)
    answer = http.respond(Response(200))
    assert answer == b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
    assert is_finished(http)
    assert http.next_request() is None


def test_a_post_without_a_body_keeps_the_connection() -> None:
    http, _ = opened(b"POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 0\r\n\r\n" + HEAD)
    http.respond(Response(405))
    assert http.next_request() is not None


def test_a_refused_upgrade_keeps_the_connection() -> None:
    http, _ = opened(
        b"GET / HTTP/1.1\r\nHost: h\r\nConnection: Upgrade\r\nUpgrade: h2c\r\n\r\n" + HEAD
    )
    http.respond(Response(426))
    assert http.next_request() is not None


def test_a_request_that_is_not_answered_is_the_last() -> None:
    http, _ = opened(GET + GET)
    assert http.next_request() is None
    assert http.finished


# Invalid requests


@pytest.mark.parametrize(
    "data",
    [
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",  # TLS
        b"SSH-2.0-OpenSSH_9.2\r\n\r\n",
        b"GET /\r\n\r\n",
        b"GET / HTTP/1.1\r\n\r\n",  # no Host
        b"GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: h\r\nno colon\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: h\r\nX: a\0b\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: h\r\nContent-Length: x\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n",
    ],
)
def test_bytes_that_are_not_http_are_refused_with_400(data: bytes) -> None:
    assert refused(HttpConnection(), data) == (
        b"HTTP/1.1 400 Bad Request\r\nContent-Type: text/plain; charset=utf-8\r\n"
        b"Connection: close\r\n\r\n400 Bad Request"
    )


@pytest.mark.parametrize("length", ["0", "4", "5"])
@pytest.mark.parametrize("first", ["Content-Length", "Transfer-Encoding"])
@pytest.mark.parametrize("what", ["GET / HTTP/1.1", "POST /derp HTTP/1.1\r\nUpgrade: DERP"])
def test_a_body_with_two_lengths_is_refused_and_ends_the_connection(
    what: str, first: str, length: str
) -> None:
    """RFC 9112 §6.1: a proxy in front may have used the other one."""
    lines = [f"Content-Length: {length}", "Transfer-Encoding: chunked"]
    lines.sort(key=lambda line: not line.startswith(first))
    head = "\r\n".join([what, "Host: h", *lines, "", ""])
    http = HttpConnection()
    answer = refused(http, head.encode() + b"0\r\n\r\n" + HEAD)
    assert answer.startswith(b"HTTP/1.1 400 Bad Request\r\n")
    assert b"\r\nConnection: close\r\n" in answer
    assert is_finished(http)
    assert http.next_request() is None


def test_an_unknown_transfer_encoding_is_refused_with_501() -> None:
    answer = refused(
        HttpConnection(), b"POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: gzip\r\n\r\n"
    )
    assert answer.startswith(b"HTTP/1.1 501 Not Implemented\r\n")


def test_a_connect_request_is_refused_with_405() -> None:
    """For h11 the connection would be a tunnel after any successful answer."""
    answer = refused(HttpConnection(), b"CONNECT h:443 HTTP/1.1\r\nHost: h\r\n\r\n")
    assert answer.startswith(b"HTTP/1.1 405 Method Not Allowed\r\n")


def head_of(size: int) -> bytes:
    """Return a request whose target, header names and values have `size` bytes."""
    return b"GET / HTTP/1.1\r\nHost: h\r\nX: " + b"x" * (size - 7) + b"\r\n\r\n"


TOO_LARGE = (
    b"HTTP/1.1 431 Request Header Fields Too Large\r\nContent-Type: text/plain; charset=utf-8\r\n"
    b"Connection: close\r\n\r\n431 Request Header Fields Too Large"
)


def test_a_head_of_64_kib_in_one_chunk_is_read_and_a_larger_one_refused() -> None:
    _, request = opened(head_of(MAX_HTTP_HEAD))
    assert len(request.header(b"x")) == MAX_HTTP_HEAD - 7
    assert refused(HttpConnection(), head_of(MAX_HTTP_HEAD + 1)) == TOO_LARGE


def test_an_endless_head_is_refused_at_64_kib() -> None:
    http = HttpConnection()
    http.receive_data(b"GET / HTTP/1.1\r\nX: ")
    for _ in range(63):
        http.receive_data(b"x" * 1024)
        assert http.next_request() is None
    assert refused(http, b"x" * 1024) == TOO_LARGE


def test_a_head_of_more_than_200_lines_is_refused_before_it_ends() -> None:
    http = HttpConnection()
    http.receive_data(b"GET / HTTP/1.1\r\n")
    for _ in range(199):
        http.receive_data(b"X: y\r\n")
        assert http.next_request() is None
    assert refused(http, b"X: y\r\n") == TOO_LARGE


def test_a_bad_second_request_is_refused() -> None:
    http, _ = opened(GET)
    http.respond(Response(200))
    assert refused(http, b"rubbish\r\n\r\n").startswith(b"HTTP/1.1 400 ")


# Taking over

UPGRADE = b"GET /derp HTTP/1.1\r\nHost: h\r\nConnection: Upgrade\r\nUpgrade: DERP\r\n\r\n"
DERP = b"\x02\x00\x00\x00\x68GET / HTTP/1.1\r\n\r\n"


@pytest.mark.parametrize("head", [UPGRADE, GET, UPGRADE.replace(b"1.1", b"1.0")])
@pytest.mark.parametrize("behind", [b"", b"\x02", DERP])
def test_bytes_behind_the_head_are_handed_over(head: bytes, behind: bytes) -> None:
    http, _ = opened(head + behind)
    assert http.take_over() == behind
    assert is_finished(http)
    assert http.next_request() is None


def test_bytes_behind_the_head_are_handed_over_wherever_it_is_cut() -> None:
    for at in range(len(UPGRADE), len(UPGRADE + DERP)):
        http, _ = opened((UPGRADE + DERP)[:at])
        assert http.take_over() == DERP[: at - len(UPGRADE)]


def test_bytes_that_arrived_after_the_request_was_returned_are_handed_over() -> None:
    http, _ = opened(UPGRADE + DERP[:3])
    http.receive_data(DERP[3:])
    assert http.take_over() == DERP


def test_an_upgrade_may_follow_an_ordinary_request() -> None:
    http, _ = opened(GET + UPGRADE + DERP)
    http.respond(Response(200))
    assert http.next_request() is not None
    assert http.take_over() == DERP


def test_the_body_of_a_post_is_the_start_of_the_stream() -> None:
    """As in Go, which hands over everything that is buffered."""
    http, request = opened(
        b"POST /derp HTTP/1.1\r\nHost: h\r\nUpgrade: DERP\r\nContent-Length: 4\r\n\r\n" + DERP
    )
    assert request.method == "POST"
    assert http.take_over() == DERP


BROKEN = [
    b"\x16\x03\x01 this is TLS\r\n\r\n",
    b"GET /derp SPDY/9\r\n\r\n",
    b"GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n",
    b"GET / HTTP/1.1\r\nno colon\r\n\r\n",
    b"CONNECT a:1 HTTP/1.1\r\nHost: a\r\n\r\n",
    b"GET / HTTP/1.1\r\nX: " + b"a" * 70_000,
    b"GET / HTTP/1.1\r\n" + b"\r\n" * 5000,
    b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\nnot a chunk",
]


def end_with(data: bytes) -> None:
    http = HttpConnection()
    http.receive_data(data)
    try:
        if http.next_request() is not None:
            http.respond(text_response(200, "x"))
    except BadUpgrade:
        http.refusal()


@pytest.mark.parametrize("data", BROKEN, ids=range(len(BROKEN)))
def test_a_connection_without_valid_http_leaves_no_reference_cycle(data: bytes) -> None:
    """An error of h11 refers to itself through its traceback."""
    with none_left_now():
        end_with(data)
