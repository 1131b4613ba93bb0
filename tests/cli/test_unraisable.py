"""Errors that strangers cause where Python can raise none: a line, and not one for each."""

from __future__ import annotations

import gc
import logging
import ssl
import sys

import pytest

from pyderp.cli.unraisable import UnraisableLog


class _Broken:
    def __init__(self, text: str) -> None:
        self.text = text

    def __repr__(self) -> str:
        return "<a\x1b[2J thing>"

    def __del__(self) -> None:
        raise ValueError(self.text)


def _fail(text: str = "a reason") -> None:
    _Broken(text)
    gc.collect()


def test_one_line_a_second_counts_the_others(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    now = 5.0
    monkeypatch.setattr(sys, "unraisablehook", UnraisableLog(lambda: now))
    for _ in range(10):
        _fail()
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    assert "__del__" in record.getMessage()
    assert f"{__file__}:" in record.getMessage()
    assert record.getMessage().endswith(": ValueError: a reason")
    now = 6.0
    _fail()
    assert caplog.messages[1].endswith("a reason; 9 more since the last such line")
    now = 7.5
    _fail()
    assert caplog.messages[2].endswith("a reason")


def test_what_strangers_send_is_cut_and_escaped(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(sys, "unraisablehook", UnraisableLog())
    _fail("\x1b[2J\n" + "x" * 10000)
    (message,) = caplog.messages
    assert message.isprintable()
    assert len(message) < 1000


def test_a_server_name_that_is_no_text(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """As clients can send it; Python itself gives up on it before it asks any callback."""
    monkeypatch.setattr(sys, "unraisablehook", UnraisableLog())
    hello = ssl.MemoryBIO()
    client = ssl.create_default_context().wrap_bio(
        ssl.MemoryBIO(), hello, server_hostname="some.example"
    )
    with pytest.raises(ssl.SSLWantReadError):
        client.do_handshake()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.sni_callback = lambda *_: None
    incoming = ssl.MemoryBIO()
    incoming.write(hello.read().replace(b"some.example", b"\xe9ome.example"))
    server = context.wrap_bio(incoming, ssl.MemoryBIO(), server_side=True)
    with pytest.raises(ssl.SSLError):
        server.do_handshake()
    (message,) = caplog.messages
    assert message.isascii()
    assert "UnicodeDecodeError" in message
    assert "ome.example" in message
