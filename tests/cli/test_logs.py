"""Lines of the relay's log, as text and as JSON."""

from __future__ import annotations

import datetime
import json
import logging
import re
from collections.abc import Callable

import pytest

from pyderp.cli.process import log_to_stderr, set_level

Format = Callable[..., str]


@pytest.fixture
def formatted(monkeypatch: pytest.MonkeyPatch) -> Format:
    """Format a record as a relay would."""

    def run(form: str, text: str, *values: object, error: Exception | None = None) -> str:
        root = logging.getLogger()
        monkeypatch.setattr(root, "handlers", [])
        log_to_stderr("warning", form)
        assert root.level == logging.WARNING
        info = None if error is None else (type(error), error, None)
        record = logging.LogRecord("pyderp.relay", logging.ERROR, "f", 1, text, values, info)
        return root.handlers[0].format(record)

    return run


def test_text_is_a_line_that_cannot_steer_a_terminal(formatted: Format) -> None:
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


def test_the_client_warns_at_most_whatever_the_level(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logging.getLogger(), "handlers", [])
    client = logging.getLogger("pyderp.client")
    log_to_stderr("info", "text")
    assert client.getEffectiveLevel() == logging.WARNING
    for level, effective in (("error", logging.ERROR), ("debug", logging.WARNING)):
        set_level(level)
        assert logging.getLogger().level == logging.getLevelNamesMapping()[level.upper()]
        assert client.getEffectiveLevel() == effective
