"""How commands log: lines of text, or for a relay, if asked, a JSON object a line."""

from __future__ import annotations

import datetime
import json
import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final

from pyderp.text import printable

__all__ = ["LINE", "LineFormatter", "errors_seen", "json_line", "log_to_stderr", "set_level"]


LINE: Final = "%(asctime)s %(levelname)s %(message)s"


class LineFormatter(logging.Formatter):
    """A line that cannot steer a terminal; texts of strangers may be in it.

    Lines of a traceback follow, indented, so that none looks like another event.
    """

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802 (logging's name)
        """The line of the event."""
        return printable(super().formatMessage(record))

    def formatException(self, ei: Any) -> str:  # noqa: N802 (logging's name)
        """The lines of the traceback."""
        lines = super().formatException(ei).split("\n")
        return "\n".join(f"  {printable(line)}" for line in lines)


class _JSON(logging.Formatter):
    """One object a line: time (RFC 3339, UTC), level, logger, message, and exception if any."""

    def format(self, record: logging.LogRecord) -> str:
        """The line."""
        time = datetime.datetime.fromtimestamp(record.created, datetime.UTC)
        entry = {
            "time": time.isoformat(timespec="milliseconds").replace("+00:00", "Z"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        if record.exc_info:
            entry["exception"] = self.formatException(record.exc_info)
        return json.dumps(entry)


def json_line(level: int, logger: str, message: str) -> str:
    """A line of the JSON log."""
    return _JSON().format(logging.LogRecord(logger, level, "", 0, "%s", (message,), None))


class _Seen(logging.Handler):
    def __init__(self) -> None:
        super().__init__(logging.ERROR)
        self.messages: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.messages.append(record.getMessage())


@contextmanager
def errors_seen() -> Iterator[list[str]]:
    """Gives a list; what is logged as an error in the block is added to it, too."""
    seen = _Seen()
    logger = logging.getLogger("pyderp")
    logger.addHandler(seen)
    try:
        yield seen.messages
    finally:
        logger.removeHandler(seen)


def log_to_stderr(level: str, form: str) -> None:
    """Log to standard error from now on, unless the program that runs this logs already.

    Args:
        level: `debug`, `info`, `warning` or `error`.
        form: `text` or `json`.
    """
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_JSON() if form == "json" else LineFormatter(LINE))
    logging.basicConfig(handlers=[handler], level=level.upper())
    _quieten_client()


def set_level(level: str) -> None:
    """Log from this level up from now on; as for `log_to_stderr`."""
    logging.getLogger().setLevel(level.upper())
    _quieten_client()


def _quieten_client() -> None:
    # A line for each attempt to reach a relay of the mesh; the mesh has its own.
    logging.getLogger("pyderp.client").setLevel(max(logging.WARNING, logging.getLogger().level))
