"""Ctrl-C and SIGTERM: the first stops every command, the second ends it at once, without a
traceback."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from pyderp.testing import RelayThread

from .commands import command, listening
from .process import BOUND, environment

RUNS = int(os.environ.get("PYDERP_INTERRUPT_RUNS", "60"))
"""Of all commands together; 500 for a thorough search."""
NOISE = ("Traceback", "Error", "xception", "transport", "never", "Warning", "closed loop")
COMMANDS = {
    "listen": ["listen", "URL"],
    "listen-json": ["listen", "URL", "--json"],
    "doctor": ["doctor", "URL", "--stun-port=-1", "--http-port=1", "--watch", "--every=1"],
    "ping": ["ping", "URL", "--count", "0", "--interval", "0"],
    "relay": ["relay", "--dev", "-a", "127.0.0.1:0", "--no-stun"],
}


@pytest.mark.timeout(60 + RUNS * 5)
@pytest.mark.parametrize("loop", ["uvloop", "asyncio"])
@pytest.mark.parametrize("name", COMMANDS)
def test_two_signals_close_together_end_it_quietly(
    relay: RelayThread, name: str, loop: str
) -> None:
    runs = -(-RUNS // (2 * len(COMMANDS)))
    seed = random.randrange(2**32)
    args = [relay.url if arg == "URL" else arg for arg in COMMANDS[name]]
    if name == "relay":
        args += ["--loop", loop]
    done = subprocess.run(
        [sys.executable, "-m", "tests.cli.interrupting", loop, str(runs), str(seed), *args],
        capture_output=True,
        text=True,
        timeout=BOUND + runs * 5,
        cwd=Path(__file__).parents[2],
        env=environment(),
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    ends = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(ends) == runs
    # A signal in the last instant of a process, after Python has ended, ends it as any program.
    codes = {0, -signal.SIGINT} if name == "relay" else {130, -signal.SIGINT}
    bad = [e for e in ends if e["code"] not in codes or any(n in e["text"] for n in NOISE)]
    assert not bad, f"seed {seed}: {bad[0]}"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_signal_that_timeout_sends_twice_counts_once(
    relay: RelayThread, number: signal.Signals
) -> None:
    """So `timeout 5 pyderp send` prints its summary."""
    with listening(relay.url) as (listener, key), command("send", relay.url, key) as sender:
        sender.feed(b"a line\n")
        listener.wait_for_out("a line")
        sender.popen.send_signal(number)
        sender.popen.send_signal(number)
        done = sender.end()
    assert done.code == 128 + number
    assert "handed to the relay" in done.err


STUCK = """
import asyncio, sys, threading
from pyderp.cli.interrupts import install
from pyderp.cli.output import Output
from pyderp.cli.process import run_command

async def work():
    try:
        print("ready", file=sys.stderr, flush=True)
        await asyncio.Event().wait()
    finally:
        print("stopping", file=sys.stderr, flush=True)
        {stuck}

install()
run_command(work, Output(as_json=False))
"""


@pytest.mark.parametrize(
    "stuck", ["await asyncio.Event().wait()", "threading.Event().wait()"], ids=["loop", "thread"]
)
@pytest.mark.parametrize("second", [signal.SIGINT, signal.SIGTERM])
def test_the_second_signal_ends_a_command_that_does_not_stop(
    stuck: str, second: signal.Signals
) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", STUCK.format(stuck=stuck)],
        stderr=subprocess.PIPE,
        text=True,
        env=environment(),
    ) as process:
        assert process.stderr is not None
        assert process.stderr.readline() == "ready\n"
        process.send_signal(signal.SIGTERM if second == signal.SIGINT else signal.SIGINT)
        assert process.stderr.readline() == "stopping\n"
        process.send_signal(second)
        assert process.stderr.read() == ""
        assert process.wait(BOUND) == 128 + second


def test_a_waiting_thread_does_not_keep_a_stopped_command() -> None:
    stuck = "asyncio.get_running_loop().run_in_executor(None, threading.Event().wait)"
    with subprocess.Popen(
        [sys.executable, "-c", STUCK.format(stuck=stuck)],
        stderr=subprocess.PIPE,
        text=True,
        env=environment(),
    ) as process:
        assert process.stderr is not None
        assert process.stderr.readline() == "ready\n"
        process.send_signal(signal.SIGINT)
        assert process.stderr.read() == "stopping\n"
        assert process.wait(BOUND) == 130


HELD = """
import os, signal, sys
from pyderp.cli import key
from pyderp.cli.main import main

def write(*args, **more):
    os.kill(os.getpid(), signal.SIGINT)
    os.kill(os.getpid(), signal.SIGINT)
    return original(*args, **more)

original, key.write_atomically = key.write_atomically, write
main()
"""


def test_a_key_file_that_is_being_written_is_finished(tmp_path: Path) -> None:
    path = tmp_path / "key"
    done = subprocess.run(
        [sys.executable, "-c", HELD, "key", "new", "-o", str(path)],
        capture_output=True,
        timeout=BOUND,
        env=environment(),
        check=False,
    )
    assert (done.returncode, done.stderr) == (130, b"")
    assert list(tmp_path.iterdir()) == [path]
