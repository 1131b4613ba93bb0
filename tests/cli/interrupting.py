"""Starts a command repeatedly, signals each twice, and prints how they ended as JSON.

    python -m tests.cli.interrupting LOOP RUNS SEED COMMAND...

Each run is a fork of one process that has imported the command, which is faster than a start.
"""

from __future__ import annotations

import json
import os
import random
import signal
import sys
import time
from typing import Any

import pyderp.cli.app  # noqa: F401 (every fork has it)
from pyderp.cli.main import main

_READY = (b"connected to ", b"admits every client", b"pong from", b"tcp.any")


def start() -> tuple[int, int]:
    """Fork; returns the child's id and the pipe of its output, or 0 and 0 in the child."""
    reader, writer = os.pipe()
    if pid := os.fork():
        os.close(writer)
        return pid, reader
    os.close(reader)
    os.dup2(writer, 1)
    os.dup2(writer, 2)
    os.close(writer)
    return 0, 0


def signal_twice(pid: int, pipe: int, gap: float) -> dict[str, Any]:
    """Wait until it is ready, then send SIGINT twice; returns how it ended."""
    text = b""
    while not any(word in text for word in _READY):
        data = os.read(pipe, 65536)
        if not data:
            break
        text += data
    os.kill(pid, signal.SIGINT)
    time.sleep(gap)
    os.kill(pid, signal.SIGINT)
    while data := os.read(pipe, 65536):
        text += data
    os.close(pipe)
    status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    return {"code": status, "text": text.decode(), "gap": gap}


def interrupt_all(runs: int, seed: int) -> bool:
    """Print how each ended; False in a child, which runs the command instead."""
    choose = random.Random(seed)
    for _ in range(runs):
        gap = choose.choice((0.0, choose.uniform(0, 0.003), choose.uniform(0, 0.02)))
        pid, pipe = start()
        if not pid:
            return False
        print(json.dumps(signal_twice(pid, pipe, gap)), flush=True)  # noqa: T201
    return True


if __name__ == "__main__":
    loop, runs, seed, *command = sys.argv[1:]
    if loop == "asyncio":
        sys.modules["uvloop"] = None  # type: ignore[assignment]
    sys.argv = ["pyderp", *command]
    if not interrupt_all(int(runs), int(seed)):
        main()
