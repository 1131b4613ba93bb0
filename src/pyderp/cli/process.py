"""How a command's process runs, logs and ends: event loop, signals, errors and their advice."""

from __future__ import annotations

import asyncio
import contextlib
import datetime
import json
import logging
import os
import sys
import threading
import time
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from typing import Any, Final, TextIO

from pyderp.cli.interrupts import stop_with
from pyderp.cli.output import Output
from pyderp.errors import ConfigError, DerpError
from pyderp.text import LOG_FIELDS, printable, system_words
from pyderp.throttle import Throttle

__all__ = ["EXIT_LOGIN_REFUSED", "LogHandler", "Refused", "errors_seen", "json_line"]
__all__ += ["leave_soon", "log_to_stderr", "log_unraisable", "loop_factory", "run_command"]

log = logging.getLogger("pyderp.relay")

_FORMATS: Final = {
    "text": "%(asctime)s %(levelname)s %(message)s",
    "brief": "pyderp: %(message)s",
}
EXIT_LOGIN_REFUSED: Final = 4
_PATIENCE: Final = 0.5
"""Seconds that a process has to end by itself, when nothing that matters is left to do."""
_PAUSE: Final = 1.0
"""Seconds between two lines about unraisable errors."""
_LONGEST: Final = 200
"""Characters of an object or an error in such a line."""


class _Line(logging.Formatter):
    """A line that cannot steer a terminal, even with text of a peer in it.

    Lines of a traceback follow, indented, so that none looks like another event.
    """

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802 (logging's name)
        return printable(super().formatMessage(record))

    def formatException(self, ei: Any) -> str:  # noqa: N802 (logging's name)
        lines = super().formatException(ei).split("\n")
        return "\n".join(f"  {printable(line)}" for line in lines)


class _JSON(logging.Formatter):
    """One object a line: time (RFC 3339, UTC), level, logger, message; exception if any.

    Lines about a client also have connection, address and, if they are known, key, label, reason.
    """

    def format(self, record: logging.LogRecord) -> str:
        time = datetime.datetime.fromtimestamp(record.created, datetime.UTC)
        entry: dict[str, object] = {
            "time": time.isoformat(timespec="milliseconds").replace("+00:00", "Z"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        fields = getattr(record, LOG_FIELDS, None)
        if isinstance(fields, dict):
            entry |= fields
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
    """Yields a list to which the text of each error that the block logs is added."""
    seen = _Seen()
    logger = logging.getLogger("pyderp")
    logger.addHandler(seen)
    try:
        yield seen.messages
    finally:
        logger.removeHandler(seen)


class LogHandler(logging.StreamHandler[TextIO]):
    """Logs to standard error, and remembers whether that works.

    If a disk is full or the reader of a pipe gone, the failure cannot be logged, and the traceback
    that `logging` prints by default would go to the same stream.
    """

    def __init__(self) -> None:
        super().__init__(sys.stderr)
        self.trouble = ""
        """Why the last line could not be written; empty: it was."""
        self._why = ""

    def emit(self, record: logging.LogRecord) -> None:
        """Write a line."""
        self._why = ""
        super().emit(record)
        self.trouble = self._why

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802 (logging's name)
        """Remember why a line could not be written."""
        error = sys.exception()
        if isinstance(error, OSError | ValueError):  # ValueError: standard error is closed
            self._why = f"the log cannot be written: {getattr(error, 'strerror', None) or error}"
        else:
            super().handleError(record)


def log_to_stderr(form: str) -> LogHandler:
    """Log to standard error from now on, unless the program that runs this logs already.

    Args:
        form: `text`; `brief`, without time and level; or `json`.
    """
    handler = LogHandler()
    handler.setFormatter(_JSON() if form == "json" else _Line(_FORMATS[form]))
    logging.basicConfig(handlers=[handler])
    return handler


class Refused(DerpError):
    """The command line, or a file that it names, cannot be used: exit status 2."""


def run_command(
    work: Callable[[], Coroutine[Any, Any, int]],
    output: Output,
    *,
    from_map: bool = False,
    pinned: bool = False,
) -> None:
    """Run a command's coroutine to its end and exit with the number that it returns.

    A `DerpError` or `OSError` is printed, with what to do about it, and the exit status is 1, 2 for
    `Refused`, or 4 when the relay refuses the login. On Ctrl-C and SIGTERM the coroutine is
    cancelled; the exit status is 130 or 143. The second such signal ends the process at once.

    Args:
        from_map: a DERP map says where the relay is.
        pinned: the command line has the hash of the relay's certificate, `--pin`.
    """
    try:
        with (
            contextlib.ExitStack() as end,
            asyncio.Runner(loop_factory=loop_factory()) as runner,
        ):
            code = runner.run(_until_signal(work))
            if code > 128:
                end.callback(leave_soon(code).cancel)
    except BrokenPipeError:
        raise  # standard output is gone
    except (DerpError, OSError) as e:
        # Not at the top: it imports code of the client, which a relay does without.
        from pyderp.cli.advice import advice, login_refused, notes

        text = _words(e)
        if remarks := notes(e):
            text += f" ({', '.join(remarks)})"
        lines = advice(e, from_map=from_map, pinned=pinned)
        output.remark("error", text, error=text, advice=lines)
        for line in lines:
            output.note(line)
        code = 2 if isinstance(e, Refused) else 1
        if login_refused(e):
            code = EXIT_LOGIN_REFUSED
    sys.exit(code)


def _words(error: DerpError | OSError) -> str:
    if isinstance(error, DerpError) or error.errno is None:
        return str(error) or type(error).__name__
    # Python's text has a number and quotes the file.
    where = f"{error.filename}: " if error.filename is not None else ""
    return f"{where}{system_words(error)}"


async def _until_signal(work: Callable[[], Coroutine[Any, Any, int]]) -> int:
    loop = asyncio.get_running_loop()
    working = asyncio.ensure_future(work())
    signalled: list[int] = []

    def stop(number: int) -> None:
        with contextlib.suppress(RuntimeError):  # the loop is closed
            loop.call_soon_threadsafe(working.cancel)
            signalled.append(number)

    stop_with(stop)
    try:
        return await working
    except asyncio.CancelledError:
        if not signalled:
            raise
        return 128 + signalled[0]


def loop_factory(kind: str = "auto") -> Callable[[], asyncio.AbstractEventLoop] | None:
    """Returns what makes the event loop; `None`: asyncio makes its own.

    Args:
        kind: `auto`, `uvloop` or `asyncio`.

    Raises:
        ConfigError: uvloop is asked for and not installed.
    """
    if kind == "asyncio":
        return None
    try:
        import uvloop
    except ImportError:
        if kind == "auto":
            return None
        raise ConfigError("uvloop is not installed; install it, or use --loop=asyncio") from None
    return uvloop.new_event_loop


def leave_soon(code: int = 0) -> threading.Timer:
    """End this process, with this exit status, unless it ends by itself in half a second.

    A name look-up cannot be cancelled: its thread waits for the name server for many seconds, and
    asyncio and Python wait for the thread.

    Returns:
        the timer; its `cancel` calls that off.
    """

    def leave() -> None:
        logging.shutdown()
        os._exit(code)

    timer = threading.Timer(_PATIENCE, leave)
    timer.daemon = True
    timer.start()
    return timer


def log_unraisable(clock: Callable[[], float] = time.monotonic) -> None:
    """From now on, log errors that Python cannot raise, at most one line a second.

    Python's own hook prints a traceback for each. Errors in OpenSSL's callbacks are such errors,
    so a client could fill the log with the server names that it asks for.

    Args:
        clock: seconds of a monotonic clock.
    """
    throttle = Throttle(_PAUSE)

    def hook(unraisable: sys.UnraisableHookArgs) -> None:
        left_out = throttle.admit(clock())
        if left_out is not None:
            more = f"; {left_out} more since the last such line" if left_out else ""
            log.warning("%s%s", _described(unraisable), more)

    sys.unraisablehook = hook


def _described(unraisable: sys.UnraisableHookArgs) -> str:
    # Only texts are used: the object may be what a peer sent, and if it is being deleted, a
    # reference to it must not be kept.
    where = _cut(repr(unraisable.object))
    error = unraisable.exc_value
    what = f"{unraisable.exc_type.__name__}: {_cut(str(error))}"
    frame = unraisable.exc_traceback
    while frame is not None and frame.tb_next is not None:
        frame = frame.tb_next
    line = "" if frame is None else f", {frame.tb_frame.f_code.co_filename}:{frame.tb_lineno}"
    return f"{unraisable.err_msg or 'exception ignored in'} {where}{line}: {what}"


def _cut(text: str) -> str:
    return printable(text if len(text) <= _LONGEST else f"{text[:_LONGEST]}…")
