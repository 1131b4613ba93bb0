"""How a process logs, also errors that Python cannot raise, and how it ends."""

from __future__ import annotations

import contextlib
import datetime
import gc
import json
import logging
import re
import ssl
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from pyderp.cli.process import LogHandler, log_to_stderr, log_unraisable
from pyderp.cli.relay import run as relayrun

from .process import BOUND, environment

Format = Callable[..., str]


# Lines of the log, as text and as JSON


@pytest.fixture
def formatted(monkeypatch: pytest.MonkeyPatch) -> Format:
    """Format a record as a relay would."""

    def run(form: str, text: str, *values: object, error: Exception | None = None) -> str:
        root = logging.getLogger()
        monkeypatch.setattr(root, "handlers", [])
        log_to_stderr(form)
        info = None if error is None else (type(error), error, None)
        record = logging.LogRecord("pyderp.relay", logging.ERROR, "f", 1, text, values, info)
        return root.handlers[0].format(record)

    return run


def test_a_text_line_cannot_control_a_terminal(formatted: Format) -> None:
    line = formatted("text", "a %s", "b\x1b[2J\nc\\d é")
    assert re.fullmatch(r"\d{4}-\d\d-\d\d [\d:,]+ ERROR a b\\x1b\[2J\\nc\\d é", line)
    assert formatted("text", "plain").endswith(" ERROR plain")


def test_a_traceback_follows_the_line(formatted: Format) -> None:
    line, *rest = formatted("text", "x", error=ValueError("cause")).split("\n")
    assert line.endswith("ERROR x")
    assert rest == ["  ValueError: cause"]


def test_json_is_one_object_a_line(formatted: Format) -> None:
    line = formatted("json", "a %s", "b\x1b\n\u2028é", error=ValueError("cause"))
    assert line.isprintable()
    assert line.isascii()
    entry = json.loads(line)
    time = datetime.datetime.fromisoformat(entry.pop("time"))
    assert time.utcoffset() == datetime.timedelta(0)
    assert abs(time - datetime.datetime.now(datetime.UTC)) < datetime.timedelta(minutes=1)
    assert entry == {
        "level": "error",
        "logger": "pyderp.relay",
        "message": "a b\x1b\n\u2028é",
        "exception": "ValueError: cause",
    }
    assert list(json.loads(formatted("json", "x"))) == ["time", "level", "logger", "message"]


def test_the_client_logs_warnings_at_most_at_any_level() -> None:
    client = logging.getLogger("pyderp.client")
    levels = {"info": logging.WARNING, "error": logging.ERROR, "debug": logging.WARNING}
    for level, effective in levels.items():
        relayrun._set_level(level)
        assert logging.getLogger().level == logging.getLevelNamesMapping()[level.upper()]
        assert client.getEffectiveLevel() == effective


# Errors that Python cannot raise


@pytest.fixture
def hooked(monkeypatch: pytest.MonkeyPatch) -> None:
    """Such errors are logged until the end of the test."""
    monkeypatch.setattr(sys, "unraisablehook", None)
    log_unraisable()


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
    monkeypatch.setattr(sys, "unraisablehook", None)
    log_unraisable(lambda: now)
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


@pytest.mark.usefixtures("hooked")
def test_text_of_peers_is_cut_and_escaped(caplog: pytest.LogCaptureFixture) -> None:
    _fail("\x1b[2J\n" + "x" * 10000)
    (message,) = caplog.messages
    assert message.isprintable()
    assert len(message) < 1000


@pytest.mark.usefixtures("hooked")
def test_a_server_name_that_is_not_utf_8_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    """Clients can send it; Python fails before it calls any callback."""
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


# The end does not wait for threads that wait for other servers

_BLOCKED = """
import asyncio, logging, threading
from pyderp.cli.relay import run as relayrun

async def main():
    asyncio.get_running_loop().run_in_executor(None, threading.Event().wait)
    logging.getLogger().warning("stopped")

relayrun._run({loop!r}, main)
"""


@pytest.mark.parametrize("loop", ["asyncio", "uvloop"])
def test_a_silent_name_server_does_not_delay_the_end(loop: str) -> None:
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


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full")
def test_an_error_of_writing_the_log_lasts_until_a_write_succeeds() -> None:
    handler = LogHandler()
    record = logging.LogRecord("pyderp", logging.INFO, "", 0, "text", (), None)
    good = handler.stream
    with contextlib.suppress(OSError), open("/dev/full", "w") as handler.stream:
        handler.handle(record)
    assert handler.trouble == "the log cannot be written: No space left on device"
    handler.stream = good
    handler.handle(record)
    assert handler.trouble == ""
