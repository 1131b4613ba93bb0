"""Run the commands that connect to a relay: in this process, or in a process of their own."""

from __future__ import annotations

import contextlib
import json
import os
import re
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import IO, Any

from .process import BOUND, environment

_NO_PROXIES = ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY")


@dataclass(frozen=True)
class Done:
    """A command that has ended."""

    code: int
    out: str
    err: str

    @property
    def events(self) -> list[dict[str, Any]]:
        """Its JSON lines."""
        return [json.loads(line) for line in self.out.splitlines()]

    def event(self, kind: str) -> dict[str, Any]:
        """Its only JSON line of a type."""
        (found,) = [event for event in self.events if event["type"] == kind]
        return found


class Command:
    """A running command, with pipes to all of its streams."""

    def __init__(self, *args: object, **extra: str) -> None:
        env = {k: v for k, v in environment().items() if k.upper() not in _NO_PROXIES}
        self.popen = subprocess.Popen(
            [sys.executable, "-W", "error", "-m", "pyderp", *map(str, args)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=env | extra,
        )
        self.out = ""
        self.err = ""

    def wait_for(self, pattern: str) -> re.Match[str]:
        """Read standard error until a pattern is in it."""
        while not (found := re.search(pattern, self.err)):
            self.err += self._more(self.popen.stderr, pattern, self.err)
        return found

    def wait_for_out(self, pattern: str) -> re.Match[str]:
        """Read standard output until a pattern is in it."""
        while not (found := re.search(pattern, self.out)):
            self.out += self._more(self.popen.stdout, pattern, self.out)
        return found

    def _more(self, pipe: IO[bytes] | None, pattern: str, seen: str) -> str:
        assert pipe is not None
        ready, _, _ = select.select([pipe], [], [], BOUND)
        data = os.read(pipe.fileno(), 65536) if ready else b""
        assert data, f"{pattern!r} does not come; so far:\n{seen}\nand:\n{self.err}"
        return data.decode()

    def feed(self, data: bytes) -> None:
        """Write to its standard input, which stays open."""
        assert self.popen.stdin is not None
        self.popen.stdin.write(data)
        self.popen.stdin.flush()

    def interrupt(self) -> None:
        """Press Ctrl-C."""
        self.popen.send_signal(signal.SIGINT)

    def end(self, stdin: bytes | None = None) -> Done:
        """Wait until it ends, with this as the rest of its input."""
        out, err = self.popen.communicate(stdin, timeout=BOUND)
        self.out += (out or b"").decode()
        self.err += err.decode()
        assert "Traceback" not in self.err, self.err
        return Done(self.popen.returncode, self.out, self.err)


@contextlib.contextmanager
def command(*args: object, **extra: str) -> Iterator[Command]:
    """A command; it is killed at the end if it still runs."""
    running = Command(*args, **extra)
    try:
        yield running
    finally:
        running.popen.kill()
        with contextlib.suppress(ValueError):
            running.popen.communicate()


@contextlib.contextmanager
def listening(*args: object) -> Iterator[tuple[Command, str]]:
    """`pyderp listen`, connected; yields it and its public key."""
    with command("listen", *args) as running:
        running.wait_for("connected to ")
        yield running, running.wait_for(r"listening as (nodekey:[0-9a-f]{64})")[1]


def run(*args: object, stdin: bytes = b"", **extra: str) -> Done:
    """Run a command to its end."""
    started = time.monotonic()
    with command(*args, **extra) as running:
        done = running.end(stdin)
    assert time.monotonic() - started < BOUND
    return done
