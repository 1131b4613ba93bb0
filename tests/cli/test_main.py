"""Standard streams that are closed, full or not UTF-8, and Ctrl-C before anything runs."""

from __future__ import annotations

import io
import json
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from pyderp import NodePrivate
from pyderp.cli.main import _set_up_streams
from pyderp.cli.output import Output
from pyderp.testing import RelayThread

from .process import BOUND, environment

KEY = NodePrivate.generate().public
FULL = Path("/dev/full")


def shell(*args: object, redirect: str, **extra: str) -> subprocess.CompletedProcess[bytes]:
    """Run `pyderp` with redirections that only a shell can make."""
    line = shlex.join([sys.executable, "-m", "pyderp", *map(str, args)])
    done = subprocess.run(
        ["sh", "-c", f"exec {line} {redirect}"],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        timeout=BOUND,
        env=environment(NO_PROXY="*", **extra),
        check=False,
    )
    assert b"Traceback" not in done.stderr, done.stderr
    assert b"Exception" not in done.stderr, done.stderr
    return done


# Closed


@pytest.mark.parametrize("redirect", ["<&-", "2>&-", "<&- 2>&-"])
def test_ping_works_with_closed_streams(relay: RelayThread, redirect: str) -> None:
    done = shell("ping", relay.url, "-c1", redirect=redirect)
    assert done.returncode == 0
    assert done.stdout.startswith(b"pong from the relay")


def test_remarks_do_not_go_to_standard_output_if_standard_error_is_closed(
    relay: RelayThread,
) -> None:
    done = shell("send", relay.url, KEY, "-m", "x", "--wait", 1, redirect="2>&-")
    assert done.returncode == 3
    assert done.stdout == b""


def test_a_closed_standard_input_is_reported(relay: RelayThread) -> None:
    done = shell("send", relay.url, KEY, "--wait", 0, redirect="<&-")
    assert done.returncode == 1
    assert b"pyderp: standard input is closed\n" in done.stderr


@pytest.mark.parametrize(
    "args", [["key", "new"], ["--version"], ["--help"], ["send", "--help"], ["ping", "-c1"]]
)
@pytest.mark.parametrize("redirect", [">&-", "<&- >&-"])
def test_a_closed_standard_output_is_an_error(
    relay: RelayThread, args: list[str], redirect: str
) -> None:
    urls = [relay.url] if args[0] == "ping" else []
    done = shell(*args, *urls, redirect=redirect)
    assert done.returncode == 1
    assert done.stderr == b"pyderp: cannot write to standard output: it is closed\n"


def test_a_relay_runs_without_standard_streams() -> None:
    line = shlex.join([sys.executable, "-m", "pyderp", "relay", "--dev", "-a", "127.0.0.1:0"])
    running = subprocess.Popen(
        ["sh", "-c", f"exec {line} <&- >&-"], stderr=subprocess.PIPE, env=environment()
    )
    try:
        assert running.stderr is not None
        log = iter(running.stderr.readline, b"")
        assert any(b"admits every client" in line for line in log)
        running.terminate()
        assert running.wait(BOUND) == 0
    finally:
        running.kill()
        running.communicate()


# Full


@pytest.mark.skipif(not FULL.exists(), reason="no /dev/full here")
@pytest.mark.parametrize(
    "args",
    [
        ["key", "new"],
        ["--version"],
        ["--help"],
        ["ping", "-c1", "URL"],
        ["ping", "-c1", "URL", "--json"],
        ["listen", "--json", "URL"],
        ["send", "--json", "-m", "x", "URL", str(KEY)],
    ],
)
def test_a_full_standard_output_is_reported_in_one_line(
    relay: RelayThread, args: list[str]
) -> None:
    done = shell(*[relay.url if a == "URL" else a for a in args], redirect=f"> {FULL}")
    assert done.returncode == 1
    lines = done.stderr.decode().splitlines()
    expected = "pyderp: cannot write to standard output: No space left on device"
    assert lines.count(expected) == 1
    assert lines[-1] == expected


# Not UTF-8


@pytest.mark.parametrize("command", ["ping", "send", "listen", "netcheck", "relay"])
def test_help_is_printed_on_a_terminal_without_utf_8(command: str) -> None:
    done = shell(command, "--help", redirect="", LC_ALL="C", LANG="C", PYTHONUTF8="0")
    assert done.returncode == 0
    assert b"Usage" in done.stdout


def test_a_terminal_without_utf_8_shows_escapes(monkeypatch: pytest.MonkeyPatch) -> None:
    raw = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(raw, encoding="ascii"))
    _set_up_streams()
    Output(as_json=False).packet(KEY, "ü".encode())
    assert raw.getvalue().endswith(b" \\xfc\n")


@pytest.mark.parametrize("group", [[], ["key"], ["map"]])
def test_the_help_of_each_group_has_or_names_examples(group: list[str]) -> None:
    words = [sys.executable, "-m", "pyderp", *group, "--help"]
    done = subprocess.run(words, capture_output=True, text=True, check=True)
    assert "xamples" in done.stdout


# Without docstrings


@pytest.mark.parametrize("args", [["--help"], ["send", "--help"], ["key", "--help"]])
def test_the_help_is_complete_under_oo(args: list[str]) -> None:
    texts = [
        subprocess.run(
            [sys.executable, *flags, "-m", "pyderp", *args],
            capture_output=True,
            text=True,
            timeout=BOUND,
            env=environment(),
            check=True,
        ).stdout
        for flags in ([], ["-OO"])
    ]
    assert texts[0] == texts[1]
    assert "acket" in texts[0] or "Make" in texts[0]


# Early signals

INTERRUPTED = """
import os, signal, sys

class Finder:
    def find_spec(self, name, *_):
        if name == "typer":
            os.kill(os.getpid(), signal.SIGINT)
            os.kill(os.getpid(), signal.SIGINT)

sys.meta_path.insert(0, Finder())
sys.argv = ["pyderp", *sys.argv[1:]]
from pyderp.cli.main import main
main()
"""


@pytest.mark.parametrize("command", ["ping", "relay"])
def test_ctrl_c_during_imports_exits_130(command: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", INTERRUPTED, command],
        capture_output=True,
        timeout=BOUND,
        env=environment(),
        check=False,
    )
    assert (done.returncode, done.stderr) == (130, b"")


def test_go_s_spelling_is_explained_in_json_too() -> None:
    done = shell("ping", "-count=5", "--json", redirect="")
    assert done.returncode == 2
    assert json.loads(done.stdout)["error"].startswith("-count=5: write --count=5")
