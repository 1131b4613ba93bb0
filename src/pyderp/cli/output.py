"""What commands print: results on standard output, remarks on standard error.

What comes from a peer or a relay is printed so that it cannot steer a terminal.
"""

from __future__ import annotations

import base64
import contextlib
import json
import os
import sys
import time
from collections.abc import Iterator

from pyderp.errors import DerpError
from pyderp.keys import NodePublic
from pyderp.text import printable

__all__ = ["Output", "OutputError", "escaped", "escaped_bytes", "flush_stdout"]
__all__ += ["print_error", "print_event", "print_line"]


class OutputError(DerpError):
    """Standard output is closed, or cannot be written to."""


def print_line(text: str) -> None:
    """Print a line on standard output, and flush it.

    Raises:
        OutputError: standard output is closed, or its disk is full.
        BrokenPipeError: its reader is gone.
    """
    if sys.stdout is None:
        raise OutputError("cannot write to standard output: it is closed")
    with _explained():
        print(text, flush=True)  # noqa: T201 (a command's result)


def print_error(text: str) -> None:
    """Print a line on standard error; nothing happens if it is closed or cannot be written to."""
    if sys.stderr is not None:
        with contextlib.suppress(OSError):
            print(text, file=sys.stderr, flush=True)  # noqa: T201 (a command's error)


def print_event(kind: str, values: dict[str, object]) -> None:
    """Print a JSON object on standard output, with keys and errors as text.

    Raises as `print_line`.
    """
    print_line(json.dumps({"type": kind, "time": round(time.time(), 6), **values}, default=str))


def flush_stdout() -> None:
    """Flush what other code has printed; raises as `print_line`, but not if it is closed."""
    if sys.stdout is not None:
        with _explained():
            sys.stdout.flush()


@contextlib.contextmanager
def _explained() -> Iterator[None]:
    try:
        yield
    except OSError as e:
        # Without this, Python would flush again when it exits, and print a message of its own.
        with contextlib.suppress(OSError, ValueError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        if isinstance(e, BrokenPipeError):
            raise
        raise OutputError(f"cannot write to standard output: {e.strerror or e}") from e


def escaped(text: str) -> str:
    r"""Returns a peer's text for a terminal: `\`, control and invisible characters are escaped."""
    if text.isprintable() and "\\" not in text:
        return text
    return "".join(_character(c) for c in text)


def _character(c: str) -> str:
    if c == "\\":
        return "\\\\"
    if c.isprintable():
        return c
    # U+0085 becomes \u0085: \x85 stands for a byte that is not UTF-8.
    return f"\\u{ord(c):04x}" if 0x7F < ord(c) < 0x10000 else ascii(c)[1:-1]


def escaped_bytes(data: bytes) -> str:
    r"""Returns a peer's bytes for a terminal, read as UTF-8; other bytes become `\xNN`."""
    try:
        return escaped(data.decode())
    except UnicodeDecodeError:
        # surrogateescape keeps such a byte as U+DC00 + byte, for which UTF-8 has no other use.
        text = data.decode(errors="surrogateescape")
        return "".join(
            f"\\x{ord(c) - 0xDC00:02x}" if 0xDC80 <= ord(c) <= 0xDCFF else _character(c)
            for c in text
        )


class Output:
    """Standard output and standard error of a command.

    Args:
        as_json: results, and what else happens, as one JSON object a line.
    """

    def __init__(self, *, as_json: bool) -> None:
        self._as_json = as_json

    def result(self, kind: str, text: str, /, **values: object) -> None:
        """Print a result of the command. `text` must be escaped."""
        if self._as_json:
            print_event(kind, values)
        else:
            print_line(text)

    def remark(self, kind: str, text: str, /, **values: object) -> None:
        """Print what happens beside the results: on standard error, and in JSON as an object."""
        self.event(kind, **values)
        self.note(text)

    def event(self, kind: str, /, **values: object) -> None:
        """Print, in JSON only, what happens and is logged to standard error elsewhere."""
        if self._as_json:
            print_event(kind, values)

    def note(self, text: str) -> None:
        """Print a line on standard error only.

        Backslashes are not escaped: errors quote values with escapes already.
        """
        print_error(f"pyderp: {printable(text)}")

    def packet(self, source: NodePublic, data: bytes) -> None:
        """Print a packet that was received."""
        values = {"data": base64.b64encode(data).decode("ascii")}
        with contextlib.suppress(UnicodeDecodeError):
            values["text"] = data.decode()
        self.result("packet", f"{source} {escaped_bytes(data)}", source=source, **values)
