"""Run `pyderp` as a user does, in its own process, and watch its output."""

from __future__ import annotations

import contextlib
import os
import re
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator

BOUND = 20.0
"""Seconds that a step of a process may take on a busy machine."""


def environment(**extra: str) -> dict[str, str]:
    """The environment of the tests, without variables that the relay would read as settings."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("PYDERP_")}
    return {**kept, "COLUMNS": "200", "NO_COLOR": "1", **extra}


def pyderp(*args: object, **extra: str) -> subprocess.CompletedProcess[str]:
    """Run to the end."""
    return subprocess.run(
        [sys.executable, "-m", "pyderp", *map(str, args)],
        capture_output=True,
        text=True,
        timeout=BOUND,
        env=environment(**extra),
        check=False,
    )


class Process:
    """A running relay.

    Args:
        command: what is before its flags.
        stdout: where its standard output goes.
    """

    def __init__(
        self,
        *args: object,
        command: str = "relay",
        stdout: int = subprocess.DEVNULL,
        **extra: str,
    ) -> None:
        self.popen = subprocess.Popen(
            [sys.executable, "-m", "pyderp", command, *map(str, args)],
            stdout=stdout,
            stderr=subprocess.PIPE,
            env=environment(**extra),
        )
        self.text = ""

    def wait_for(self, pattern: str) -> re.Match[str]:
        """Read the log until a pattern is in it."""
        assert self.popen.stderr is not None
        end = time.monotonic() + BOUND
        while not (found := re.search(pattern, self.text)):
            ready, _, _ = select.select([self.popen.stderr], [], [], max(0, end - time.monotonic()))
            data = os.read(self.popen.stderr.fileno(), 65536) if ready else b""
            assert data, f"{pattern!r} is not in the log:\n{self.text}"
            self.text += data.decode()
        return found

    def address(self) -> tuple[str, int]:
        """Wait until it listens; returns the address."""
        found = self.wait_for(r"listening on (\S+):(\d+),")
        self.wait_for("admits every client")
        return found[1].strip("[]"), int(found[2])

    def signal(self, number: signal.Signals) -> None:
        self.popen.send_signal(number)

    def end(self) -> int:
        """Wait until it ends; returns the exit code."""
        assert self.popen.stderr is not None
        with contextlib.suppress(ValueError):
            self.text += self.popen.stderr.read().decode()
        return self.popen.wait(BOUND)


@contextlib.contextmanager
def running(
    *args: object, command: str = "relay", stdout: int = subprocess.DEVNULL, **extra: str
) -> Iterator[Process]:
    """A relay; it is killed at the end if it still runs."""
    process = Process(*args, command=command, stdout=stdout, **extra)
    try:
        yield process
    finally:
        process.popen.kill()
        process.popen.wait()
        assert process.popen.stderr is not None
        process.popen.stderr.close()
