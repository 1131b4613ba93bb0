"""The contents of a websocket are not logged, at any level."""

from __future__ import annotations

import logging

import pytest

from pyderp.wire.http import HttpConnection
from pyderp.wire.websocket import WebSocketServer, websocket_accept
from pyderp.wire.websocket_client import WebSocketClient


def test_the_contents_of_a_websocket_are_not_logged_at_any_level(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """The library would log handshake, messages and closes."""
    caplog.set_level(logging.DEBUG)
    for name in ("websockets", "websockets.client", "websockets.server"):
        caplog.set_level(logging.DEBUG, name)
    client = WebSocketClient("relay.test", "/derp", user_agent="test")
    http = HttpConnection()
    http.receive_data(client.data_to_send())
    request = http.next_request()
    assert request is not None
    client.receive_data(websocket_accept(request)[0])
    server = WebSocketServer()
    client.send(b"SECRET")
    assert server.receive_data(client.data_to_send()) == [b"SECRET"]
    server.send([b"SECRET"])
    assert client.receive_data(b"".join(server.data_to_send())) == b"SECRET"
    server.close()
    client.receive_data(b"".join(server.data_to_send()))
    server.receive_data(client.data_to_send())
    assert client.ended
    assert not server.is_open
    assert caplog.records == []


def test_a_malformed_message_is_not_logged_either(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    server = WebSocketServer()
    server.receive_data(b"\xf2\x86maskSECRET")
    assert server.error is not None
    assert caplog.records == []
