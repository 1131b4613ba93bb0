"""One HTTP GET: redirects, TLS, limits. More is in `tests/mapio/test_sources.py`."""

from __future__ import annotations

import asyncio
import socket
from typing import Any

import pytest

from pyderp.errors import ConfigError, DerpError, DialError, FailureReason, RemoteProtocolError
from pyderp.net.fetch import Fetched, fetch, shown_url
from pyderp.net.settings import NetworkSettings
from tests.mapio.serving import raw_server, serving


def got(url: str, **more: Any) -> Fetched:
    more = {"limit": 1000, "seconds": 30.0, "settings": NetworkSettings(), **more}
    return asyncio.run(fetch(url, **more))


def test_an_answer_has_status_headers_and_body() -> None:
    with serving(body=b"x" * 1000, headers={"X-A": "b"}, status=201) as server:
        answer = got(f"{server.url}?a=1", headers=[("X-Asked", "yes")])
    assert (answer.status, answer.reason, answer.body) == (201, "Created", b"x" * 1000)
    assert (answer.header("x-a"), answer.header("x-b")) == ("b", "")
    asked = server.requests[0]
    assert (asked["path"], asked["x-asked"], asked["user-agent"]) == ("/map?a=1", "yes", "pyderp")


def test_a_redirect_is_followed_without_the_password() -> None:
    with (
        serving(body=b"there") as second,
        serving(status=307, headers={"Location": second.url}) as first,
    ):
        answer = got(first.url.replace("//", "//me:secret@"))
    assert (answer.url, answer.body) == (second.url, b"there")
    assert "authorization" in first.requests[0]
    assert "authorization" not in second.requests[0]


def test_relative_redirects_are_followed_ten_times() -> None:
    moved = {"Location": "other"}
    with (
        serving(status=302, headers=moved) as server,
        pytest.raises(RemoteProtocolError, match="more than 10 redirects"),
    ):
        got(server.url)
    assert [request["path"] for request in server.requests] == ["/map"] + ["/other"] * 10


def _chunks_without_end(connection: socket.socket) -> None:
    connection.sendall(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
    while True:
        connection.sendall(b"1\r\nx\r\n")


def _head_without_end(connection: socket.socket) -> None:
    connection.sendall(b"HTTP/1.1 200 OK\r\n")
    while True:
        connection.sendall(b"X-A: b\r\n")


def _cut(connection: socket.socket) -> None:
    connection.recv(9999)  # or the kernel would reset the connection
    connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nx")


def _nothing(connection: socket.socket) -> None:
    connection.recv(9999)


@pytest.mark.parametrize(
    ("talk", "error"),
    [
        (_chunks_without_end, "more than 1000 bytes"),
        (_head_without_end, "the answer is not HTTP"),
        (_cut, "the answer is not HTTP"),
        (_nothing, "nothing but a closed connection"),
    ],
)
def test_a_hostile_answer_is_bounded(talk: Any, error: str) -> None:
    with raw_server(talk) as url, pytest.raises(RemoteProtocolError, match=error):
        got(url)


def test_an_answer_that_stops_halfway_is_bounded_in_time() -> None:
    def stop(connection: socket.socket) -> None:
        connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nx")
        while connection.recv(9999):
            pass

    with raw_server(stop) as url, pytest.raises(DialError, match="no whole answer") as caught:
        got(url, seconds=0.3)
    assert caught.value.reason is FailureReason.TIMEOUT


@pytest.mark.parametrize(
    "url", ["ftp://a/", "http://", "http://a:0/", "http://a:99999/", "https://[::1/", "x"]
)
def test_a_url_that_cannot_be_requested_is_a_config_error(url: str) -> None:
    with pytest.raises(ConfigError):
        got(url)


def test_https_to_a_server_without_tls_says_so() -> None:
    with serving() as server, pytest.raises(DerpError, match="does not speak TLS"):
        got(server.url.replace("http:", "https:"))


def test_a_url_is_shown_without_its_password() -> None:
    assert shown_url("https://me:secret@h:1/a?b=c") == "https://h:1/a?b=c"
    assert shown_url("https://h/a") == "https://h/a"
