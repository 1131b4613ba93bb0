"""HTTP before DERP, on a fake transport."""

from __future__ import annotations

import logging
import re
import time
from dataclasses import replace
from email.utils import parsedate_to_datetime
from ipaddress import ip_network

import pytest

from pyderp.keys import MeshKey
from pyderp.server.conn.accept import protocol_factory
from pyderp.server.conn.context import ConnectionContext
from pyderp.server.site.routes import relay_routes
from pyderp.wire import frames
from pyderp.wire.frames import FrameType, pack_frame
from pyderp.wire.http import Request, Response
from pyderp.wire.messages import Pong
from pyderp.wire.upgrade import UpgradeReply, upgrade_request
from tests.server.fakes import SIDE_ROUTES, FakeLoop, Wire, make_context

MESH = MeshKey.parse("ab" * 32)
GET_DERP = upgrade_request("relay.test", "/derp", user_agent="tests")


@pytest.fixture
def loop() -> FakeLoop:
    return FakeLoop()


@pytest.fixture
def core(loop: FakeLoop) -> ConnectionContext:
    return make_context(loop, mesh_key=MESH)


def two(core: ConnectionContext) -> tuple[Wire, Wire]:
    first, second = Wire(core), Wire(core, peername=("192.0.2.2", 4712))
    first.login()
    second.login()
    return first, second


def problems(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [each.getMessage() for each in caplog.records if each.levelno >= logging.WARNING]


def login_bytes(core: ConnectionContext, wire: Wire) -> bytes:
    """Return the ClientInfo frame of a client that knows the relay's key."""
    wire.session.receive_data(core.login.greeting)
    return b"".join(wire.session.data_to_send())


def test_the_101_and_server_key_are_sent_in_one_write(core: ConnectionContext) -> None:
    wire = Wire(core)
    wire.feed(GET_DERP)
    assert len(wire.transport.writes) == 1
    head, _, rest = wire.transport.writes[0].partition(b"\r\n\r\n")
    assert head.split(b"\r\n") == [
        b"HTTP/1.1 101 Switching Protocols",
        b"Upgrade: DERP",
        b"Connection: Upgrade",
        b"Derp-Version: 2",
        b"Derp-Public-Key: " + core.router.own_key.hex().encode(),
    ]
    assert rest == pack_frame(FrameType.SERVER_KEY, frames.MAGIC + core.router.own_key)


def test_fast_start_is_answered_with_server_key_and_no_http(core: ConnectionContext) -> None:
    wire = Wire(core)
    wire.feed(upgrade_request("h", "/derp", user_agent="t", fast_start=True))
    assert wire.transport.writes == [core.login.greeting]


@pytest.mark.parametrize("value", ["true", "01", "1, 1", ""])
def test_fast_start_with_another_value_is_answered_with_http(
    core: ConnectionContext, value: str
) -> None:
    wire = Wire(core)
    wire.feed(
        b"GET /derp HTTP/1.1\r\nHost: h\r\nUpgrade: DERP\r\nDerp-Fast-Start: %b\r\n\r\n"
        % value.encode()
    )
    assert wire.answer().startswith(b"HTTP/1.1 101 ")


def test_bytes_after_the_request_belong_to_derp(core: ConnectionContext) -> None:
    wire = Wire(core)
    ping = frames.pack_ping(b"12345678")
    wire.feed(GET_DERP + login_bytes(core, wire) + ping)
    rest = UpgradeReply().receive_data(wire.answer())
    assert rest is not None
    messages = wire.session.receive_data(rest[len(core.login.greeting) :])
    assert messages[1:] == [Pong(b"12345678")]


@pytest.mark.parametrize("headers", ["", "Upgrade: h2c\r\n", "Upgrade: \r\n"])
def test_derp_without_upgrade_is_426(core: ConnectionContext, headers: str) -> None:
    wire = Wire(core)
    wire.feed(f"GET /derp HTTP/1.1\r\nHost: h\r\n{headers}\r\n".encode())
    answer = wire.answer()
    assert answer.startswith(b"HTTP/1.1 426 Upgrade Required\r\n")
    assert answer.endswith(b"\r\n\r\nDERP requires connection upgrade\n")
    assert not wire.transport.closing


def test_an_unknown_upgrade_is_logged(
    core: ConnectionContext, caplog: pytest.LogCaptureFixture
) -> None:
    Wire(core).feed(b"GET /derp HTTP/1.1\r\nHost: h\r\nUpgrade: foo\r\n\r\n")
    assert problems(caplog) == [
        "client 1 192.0.2.1:4711: a request for /derp asks for upgrade to 'foo'; a proxy in front "
        "must pass the headers Upgrade and Connection (Upgrade: DERP or websocket) by HTTP/1.1"
    ]


def test_requests_on_one_connection_are_answered_in_order(core: ConnectionContext) -> None:
    wire = Wire(core)
    wire.feed(b"GET /derp/probe HTTP/1.1\r\nHost: h\r\n\r\nHEAD / HTTP/1.1\r\nHost: h\r\n\r\n")
    wire.feed(b"GET /generate_204 HTTP/1.1\r\nHost: h\r\n\r\n")
    answer = wire.answer()
    assert [line for line in answer.split(b"\r\n") if line.startswith(b"HTTP/")] == [
        b"HTTP/1.1 200 OK",
        b"HTTP/1.1 200 OK",
        b"HTTP/1.1 204 No Content",
    ]
    assert b"<html" not in answer, "HEAD has no body"
    wire.feed(GET_DERP)
    assert wire.answer().startswith(b"HTTP/1.1 101 ")


@pytest.mark.parametrize(
    ("request_", "status"),
    [
        (b"GET /last HTTP/1.1\r\nHost: h\r\n\r\n", b"200"),
        (b"GET /derp/probe HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n", b"200"),
        (b"GET /derp/probe HTTP/1.0\r\n\r\n", b"200"),
        (b"POST /x HTTP/1.1\r\nHost: h\r\nContent-Length: 5\r\n\r\n12345", b"404"),
        (b"GET / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\nzz", b"200"),
        (b"\x16\x03\x01\x02\x00", b"400"),
        (b"GET /\r\n\r\n", b"400"),
        (b"GET / HTTP/1.1\r\n\r\n", b"400"),
    ],
)
def test_last_requests_and_bad_ones_are_answered_and_end_the_connection(
    core: ConnectionContext, request_: bytes, status: bytes
) -> None:
    wire = Wire(core)
    wire.feed(request_)
    assert wire.answer().startswith(b"HTTP/1.1 " + status)
    assert wire.gone
    wire.hang_up()
    assert not core.protocols
    assert not core.timers


@pytest.mark.parametrize("path", ["/derp/probe", "/derp", "/generate_204", "/nowhere"])
def test_each_answer_has_the_current_date(core: ConnectionContext, path: str) -> None:
    """Also the second answer of a page that is made once."""
    wire = Wire(core)
    for _ in range(2):
        before = int(time.time())
        wire.feed(f"GET {path} HTTP/1.1\r\nHost: h\r\n\r\n".encode())
        head = wire.answer().partition(b"\r\n\r\n")[0].decode()
        (date,) = re.findall(r"^Date: (.*)\r?$", head, re.MULTILINE)
        assert before <= parsedate_to_datetime(date.strip()).timestamp() <= time.time()


def test_garbage_after_a_good_request_is_refused(core: ConnectionContext) -> None:
    wire = Wire(core)
    wire.feed(b"GET /derp/probe HTTP/1.1\r\nHost: h\r\n\r\n\0\0\0\r\n\r\n")
    answer = wire.answer()
    assert answer.startswith(b"HTTP/1.1 200 OK")
    assert b"HTTP/1.1 400 Bad Request" in answer
    assert wire.gone


def test_bad_http_is_logged_and_counted_once(
    core: ConnectionContext, caplog: pytest.LogCaptureFixture
) -> None:
    Wire(core).feed(b"nonsense\r\n\r\n")
    assert core.router.counters.protocol_errors == 1
    assert len(problems(caplog)) == 1
    assert "192.0.2.1:4711 closed: bad HTTP request" in problems(caplog)[0]


@pytest.mark.parametrize("lines", [66, 100, 4096])
def test_a_head_of_more_than_64_kib_is_refused(core: ConnectionContext, lines: int) -> None:
    wire = Wire(core)
    head = b"GET / HTTP/1.1\r\nHost: h\r\n"
    line = b"X-Padding: " + b"a" * 1000 + b"\r\n"
    wire.feed(head)
    for _ in range(lines):
        wire.feed(line)
    wire.feed(b"\r\n")
    assert wire.answer().startswith(b"HTTP/1.1 431 ")
    assert wire.gone


def test_a_head_of_nearly_64_kib_is_served(core: ConnectionContext) -> None:
    wire = Wire(core)
    wire.feed(b"GET / HTTP/1.1\r\nHost: h\r\nX-Padding: " + b"a" * 65000 + b"\r\n\r\n")
    assert wire.answer().startswith(b"HTTP/1.1 200 OK")


def test_pipelined_requests_without_reading_the_answers_end_the_connection(
    core: ConnectionContext,
) -> None:
    """The relay buffers less than one answer and one read."""
    wire = Wire(core)
    wire.transport.room = 5000
    request = b"GET / HTTP/1.1\r\nHost: h\r\n\r\n"
    for _ in range(100):
        wire.feed(request * 1000)
        assert len(wire.transport.held) < 5000
    assert wire.gone
    assert core.router.counters.protocol_errors == 1


def test_the_side_listener_does_not_serve_derp(core: ConnectionContext) -> None:
    wire = Wire(core, protocol_factory(core, SIDE_ROUTES, None, derp=False)())
    wire.feed(GET_DERP)
    assert wire.answer().startswith(b"HTTP/1.1 302 Found\r\nLocation: https://relay.test/derp\r\n")


def test_requests_continue_once_earlier_answers_are_read(core: ConnectionContext) -> None:
    wire = Wire(core)
    wire.transport.room = 100
    request = b"GET / HTTP/1.1\r\nHost: h\r\n\r\n"
    wire.feed(request)
    assert wire.transport.held
    wire.transport.take(1 << 20)
    wire.feed(request)
    assert wire.answer().count(b"HTTP/1.1 200 OK") == 2
    assert core.router.counters.protocol_errors == 0


ASK_REMOTE = b"GET /remote HTTP/1.1\r\nHost: h\r\n%sConnection: close\r\n\r\n"


@pytest.mark.parametrize(
    ("headers", "remote", "forwarded"),
    [
        (b"", "10.0.0.1", False),
        (b"X-Forwarded-For: 192.0.2.7\r\n", "192.0.2.7", False),
        (b"X-Forwarded-For: unknown\r\n", "10.0.0.1", True),
        (b"X-Forwarded-For:\r\n", "10.0.0.1", True),
        (b"X-Forwarded-For:\r\nX-Forwarded-For: 192.0.2.7\r\n", "192.0.2.7", False),
    ],
)
def test_a_trusted_proxy_names_the_requester(
    core: ConnectionContext, headers: bytes, remote: str, forwarded: bool
) -> None:
    core.rules = replace(core.rules, trusted_proxies=(ip_network("10.0.0.0/8"),))
    assert remote_of_request(core, headers) == (remote, forwarded)


@pytest.mark.parametrize(
    ("headers", "forwarded"),
    [
        (b"", False),
        (b"X-Forwarded-For: 127.0.0.1\r\n", True),
        (b"X-Forwarded-For:\r\nX-Forwarded-For: 192.0.2.7\r\n", True),
        (b"Forwarded: for=127.0.0.1\r\n", True),
    ],
)
def test_forwarding_headers_of_other_addresses_are_only_noted(
    core: ConnectionContext, headers: bytes, forwarded: bool
) -> None:
    assert remote_of_request(core, headers) == ("10.0.0.1", forwarded)


def remote_of_request(core: ConnectionContext, headers: bytes) -> tuple[str, bool]:
    """Return address and forwarded flag that the routes see for a request from 10.0.0.1."""
    seen: list[Request] = []

    def handle(request: Request) -> Response:
        seen.append(request)
        return Response(204)

    protocol = protocol_factory(core, relay_routes({"/remote": handle}), None)()
    wire = Wire(core, protocol, peername=("10.0.0.1", 4711))
    wire.feed(ASK_REMOTE % headers)
    (request,) = seen
    return request.remote, request.forwarded


HELLO = bytes.fromhex("16030100") + bytes((9, 1)) + bytes(8)


@pytest.mark.parametrize(
    ("first", "problem"),
    [
        (HELLO, "TLS on a plain HTTP port: "),
        (b"PROXY TCP4 192.0.2.9 192.0.2.1 5 443\r\n" + GET_DERP, "PROXY header, but proxy-"),
        (b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x0c" + bytes(12), "PROXY header, but proxy-"),
        (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", "HTTP/2, which a relay does not speak"),
        (b"\x03\0\0\x13\x0e\xe0\0\0\0\0\0\x01\0\x08\0\x03\0\0\0", "RDP (Remote Desktop)"),
        (b"SSH-2.0-OpenSSH_9.2\r\n", "SSH"),
        (b"PRI * HTTP/2.0\r\n", "HTTP/2, which a relay does not speak"),
    ],
    ids=["tls", "proxy1", "proxy2", "http2", "rdp", "ssh", "http2 incomplete"],
)
def test_another_protocol_is_named_in_the_log(
    core: ConnectionContext, caplog: pytest.LogCaptureFixture, first: bytes, problem: str
) -> None:
    wire = Wire(core)
    wire.feed(first)
    assert wire.gone
    (line,) = problems(caplog)
    assert line.startswith(f"client 1 192.0.2.1:4711 closed: {problem}")


def test_for_a_derp_request_without_upgrade_the_log_says_what_a_proxy_must_pass(
    core: ConnectionContext, caplog: pytest.LogCaptureFixture
) -> None:
    wire = Wire(core)
    wire.feed(b"GET /derp HTTP/1.1\r\nHost: h\r\n\r\n")
    assert wire.answer().startswith(b"HTTP/1.1 426 ")
    (line,) = problems(caplog)
    assert "a request for /derp has no Upgrade header; a proxy in front must pass" in line
