"""The entry points of the commands, which run before anything slow is imported."""

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

    Exits 1 on failure, 2 for a wrong command line, 130 on Ctrl-C; some commands have more codes.
    """
    install()
    if sys.argv[1:2] in (["relay"], ["derper"]):
        _prepare_relay()
    try:
        _set_up_streams()
        _check_installed()
        # Not at the top: this import takes a fifth of a second.
        from pyderp.cli.dispatch import run_words

        run_words(sys.argv[1:])
    except KeyboardInterrupt:
        sys.exit(130)
    finally:
        gc.enable()


def derper_main() -> None:
    """Run the command `pyderp-derper`, which is `pyderp derper` with the same arguments."""
    sys.argv.insert(1, "derper")
    main()


def _prepare_relay() -> None:
    # By default SIGHUP ends a process; one that comes before the settings are read must not.
    if hasattr(signal, "SIGHUP"):
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
    # The imports leave 0.3 MB of garbage, and searching for it takes a fifth of their time.
    # `pyderp.cli.relay.run` turns the collector on again before the relay serves.
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
            # The stream is closed. Without this, the next socket would get its file descriptor,
            # and with it all that is written to the stream.
            os.open(os.devnull, os.O_RDWR)
    for stream in (sys.stdout, sys.stderr):
        # A terminal that is not UTF-8 gets escapes, where an encoding error would end the command.
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
