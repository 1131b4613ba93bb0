"""How a relay logs: lines of text, or a JSON object a line."""

from __future__ import annotations

import datetime
import json
import logging
import sys

__all__ = ["log_to_stderr"]


class _Text(logging.Formatter):
    """A line that cannot steer a terminal; texts of strangers may be in it."""

    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname)s %(message)s")

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802 (logging's name)
        """The line, without a traceback that may follow."""
        text = super().formatMessage(record)
        if text.isprintable():
            return text
        return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


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


def log_to_stderr(level: str, form: str) -> None:
    """Log to standard error from now on, unless the program that runs this logs already.

    Args:
        level: `debug`, `info`, `warning` or `error`.
        form: `text` or `json`.
    """
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_JSON() if form == "json" else _Text())
    logging.basicConfig(handlers=[handler], level=level.upper())
    # A line for each attempt to reach a relay of the mesh; the mesh has its own.
    logging.getLogger("pyderp.client").setLevel(max(logging.WARNING, logging.getLogger().level))
