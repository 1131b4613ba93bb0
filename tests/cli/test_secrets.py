"""No secret of a URL, and no control character, is printed or logged."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable
from typing import TypeAlias

import pytest

from pyderp.cli.process import log_to_stderr

from .commands import Done

Here: TypeAlias = Callable[..., Done]

GONE = "127.0.0.1:1"


@pytest.mark.parametrize(
    "args",
    [
        ["u:SECRET@host/derp"],
        ["u:SECRET@host/derp", "--ipv6"],
        ["ftp://u:SECRET@host/derp"],
        ["https://u:SECRET@[::1/derp"],
        ["https://u:SECRET@host:99999/derp"],
        ["https://u:SECRET@host/derp", "--pin", "0" * 64],
        ["https://host/derp?token=SECRET", "--insecure"],
        ["https://host", "https://u:SECRET@host/derp"],
        ["https://host", "u:SECRET@host/derp"],
        ["https://host", "https://host/derp?token=SECRET"],
        [f"http://u:SECRET@{GONE}/derp?token=SECRET"],
        [f"http://u:SECRET@{GONE}/derp?token=SECRET", "--websocket"],
        ["http://host", "--proxy", f"http://u:SECRET@{GONE}"],
        ["http://host", "--proxy", f"socks5://u:SECRET@{GONE}"],
        ["http://host", "--proxy", "u:SECRET@host:port"],
    ],
)
def test_a_secret_of_a_url_is_not_repeated(here: Here, args: list[str]) -> None:
    """Neither by errors about a command line nor by the log of an attempt."""
    done = here("ping", *args, "--verbose", "--connect-timeout", "5")
    assert done.code in (1, 2)
    assert done.err
    assert "SECRET" not in done.err + done.out


@pytest.mark.usefixtures("here")
@pytest.mark.parametrize("form", ["text", "brief"])
def test_a_peer_cannot_write_lines_of_the_log(monkeypatch: pytest.MonkeyPatch, form: str) -> None:
    """Line breaks of all kinds and control characters, also those of an exception."""
    made: list[logging.Handler] = []
    monkeypatch.setattr(logging, "basicConfig", lambda *, handlers: made.extend(handlers))
    log_to_stderr(form)
    try:
        raise ValueError("one\r\ntwo")
    except ValueError:
        text = "he says:\npyderp: all is well\u2028\x1b[2J"
        record = logging.LogRecord("pyderp", logging.INFO, "", 0, text, None, sys.exc_info())
    (handler,) = made
    line, *traceback = handler.format(record).split("\n")
    assert line.isprintable()
    assert line.endswith(r"he says:\npyderp: all is well\u2028\x1b[2J")
    assert all(each.isprintable() and each.startswith("  ") for each in traceback)
    assert traceback[-2:] == [r"  ValueError: one\r", "  two"]
