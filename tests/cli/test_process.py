"""How a process logs errors that Python cannot raise, and how it ends."""

from __future__ import annotations

import gc
import logging
import ssl
import subprocess
import sys
import time

import pytest

from pyderp.cli.process import UnraisableLog

from .process import BOUND, environment


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


# The end does not wait for threads that wait for others

_BLOCKED = """
import asyncio, logging, threading
from pyderp.cli.relay import run as relayrun

async def main():
    asyncio.get_running_loop().run_in_executor(None, threading.Event().wait)
    logging.getLogger().warning("stopped")

relayrun._run({loop!r}, main)
"""


@pytest.mark.parametrize("loop", ["asyncio", "uvloop"])
def test_a_name_server_that_does_not_answer_holds_nobody_up(loop: str) -> None:
    started = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-c", _BLOCKED.format(loop=loop)],
        capture_output=True,
        text=True,
        timeout=BOUND,
        env=environment(),
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "stopped\n")
    assert time.monotonic() - started < BOUND / 2


def test_a_process_that_ends_in_time_ends_by_itself() -> None:
    script = """
import atexit
from pyderp.cli.relay import run as relayrun

async def main(): pass

atexit.register(print, "by itself")
relayrun._run("asyncio", main)
"""
    done = subprocess.run(
        [sys.executable, "-c", script],
        capture_output=True,
        text=True,
        timeout=BOUND,
        env=environment(),
        check=False,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "by itself\n", "")
