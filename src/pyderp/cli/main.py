"""Where the command `pyderp` begins: before anything slow is imported."""

from __future__ import annotations

import gc
import io
import os
import signal
import sys
from importlib.util import find_spec

from pyderp.cli.interrupts import install
from pyderp.extras import install_line

__all__ = ["derper_main", "main"]


def main() -> None:
    """Run the command line.

    Exits 1 for what cannot be done, 2 for a wrong command line, 130 on Ctrl-C.
    """
    install()
    if sys.argv[1:2] in (["relay"], ["derper"]):
        _prepare_relay()
    try:
        _set_up_streams()
        _check_installed()
        # Takes a fifth of a second.
        from pyderp.cli.dispatch import run_words

        run_words(sys.argv[1:])
    except KeyboardInterrupt:
        sys.exit(130)
    finally:
        gc.enable()


def derper_main() -> None:
    """Run the command line `pyderp-derper`: all of it is for `pyderp derper`."""
    sys.argv.insert(1, "derper")
    main()


def _prepare_relay() -> None:
    # Its reload signal that comes before there is anything to reload must not end it.
    if hasattr(signal, "SIGHUP"):
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
    # Imports make 0.3 MB of garbage, and looking for it takes a fifth of their time. A relay that
    # serves has the collector on again (`pyderp.cli.relay.run`).
    gc.disable()


def _check_installed() -> None:
    if find_spec("typer") is None:
        extra = "relay" if sys.argv[1:2] in (["relay"], ["derper"]) else "cli"
        text = f"pyderp: the command is not installed, only the library: {install_line(extra)}"
        if sys.stderr is not None:
            print(text, file=sys.stderr)  # noqa: T201 (a command's error)
        sys.exit(2)


def _set_up_streams() -> None:
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            # Closed. A socket would get this number, and what is meant for the stream.
            os.open(os.devnull, os.O_RDWR)
    for stream in (sys.stdout, sys.stderr):
        # A terminal that is not UTF-8 shows escapes, and the command goes on.
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
