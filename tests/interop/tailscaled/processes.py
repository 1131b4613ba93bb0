"""Processes of the test: start inside a namespace, wait until ready, stop."""

from __future__ import annotations

import os
import re
import subprocess
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from threading import Timer
from typing import IO, TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from pathlib import Path

    from .namespaces import Namespace

POLL_INTERVAL = 0.1
"""Seconds between two looks at a condition."""


@dataclass(frozen=True)
class Daemon:
    """A running background process that writes both its outputs to one file."""

    process: subprocess.Popen[bytes]
    log: Path

    def wait_for(self, what: str, ready: Callable[[], object], timeout: float = 20) -> None:
        """Wait until ``ready()``, at most ``timeout`` seconds and never past the process's end."""

        def look() -> object:
            if (code := self.process.poll()) is not None:
                raise AssertionError(f"exited with {code} before {what}{self.tail()}")
            return ready()

        try:
            eventually(what, look, timeout)
        except TimeoutError as error:
            raise AssertionError(f"{error}{self.tail()}") from None

    def wait_for_line(self, pattern: str, timeout: float = 20) -> str:
        """Wait until the log holds a match of ``pattern``; return its first group."""
        found: list[str] = []

        def search() -> bool:
            match = re.search(pattern, self.log.read_text(errors="replace"), re.MULTILINE)
            found.extend([match[1]] if match else [])
            return match is not None

        self.wait_for(f"a line like {pattern!r}", search, timeout)
        return found[0]

    def stop(self) -> None:
        """End the process: by SIGTERM, after 10 seconds by SIGKILL, and not twice."""
        self.process.terminate()
        try:
            self.process.wait(10)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()

    def tail(self, lines: int = 30) -> str:
        """Return the end of the log, for a failure message."""
        end = self.log.read_text(errors="replace").splitlines()[-lines:]
        return "\n".join([f"; end of {self.log.name}:", *end])


@contextmanager
def daemon(
    namespace: Namespace, args: Sequence[str], log: Path, env: Mapping[str, str]
) -> Iterator[Daemon]:
    """Run ``args`` inside ``namespace`` until the block ends."""
    with log.open("ab") as output:
        process = subprocess.Popen(
            namespace.command(args),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            env=env,
            cwd=log.parent,
        )
    running = Daemon(process, log)
    try:
        yield running
    finally:
        running.stop()


def eventually(what: str, ready: Callable[[], object], timeout: float = 20) -> None:
    """Look until ``ready()``; raise ``TimeoutError`` naming ``what`` after ``timeout`` seconds."""
    deadline = time.monotonic() + timeout
    while not ready():
        if time.monotonic() > deadline:
            raise TimeoutError(f"no sign of {what} within {timeout} seconds")
        time.sleep(POLL_INTERVAL)


def round_trip(args: Sequence[str], env: Mapping[str, str], data: bytes, timeout: float) -> bytes:
    """Write ``data`` to the process ``args``; return as many bytes of its output, if it prints
    them.

    The input stays open until the output is complete: ``tailscale nc`` takes its end for the
    end of the whole conversation.
    """
    with (
        subprocess.Popen(args, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=env) as process,
        ThreadPoolExecutor(1) as pool,
    ):
        assert process.stdin
        assert process.stdout
        overdue = Timer(timeout, process.kill)  # ends the output, and so the read below
        overdue.start()
        writing = pool.submit(_write_all, process.stdin, data)
        received = process.stdout.read(len(data))
        overdue.cancel()
        process.terminate()
        writing.exception()  # waits; what the process did not take shows in the answer
        with suppress(BrokenPipeError):
            process.stdin.close()
    return received


def _write_all(stream: IO[bytes], data: bytes) -> None:
    stream.write(data)
    stream.flush()


def quiet_environment(home: Path, **extra: str) -> dict[str, str]:
    """Return a minimal environment: no proxies, and no writing to the user's home."""
    env = {"PATH": os.environ["PATH"], "HOME": str(home), "LANG": "C.UTF-8"}
    return env | extra
