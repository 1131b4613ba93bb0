#!/usr/bin/env python3
"""Fuzz pyderp: run each target in turn under atheris, in its own process."""

from __future__ import annotations

import argparse
import importlib.util
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import deque
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import IO, Final

ROOT: Final = Path(__file__).resolve().parent.parent
# With `python fuzz/run.py`, sys.path begins with this folder and not with its parent.
sys.path.insert(0, str(ROOT))

from fuzz.targets import CORPUS, NAMES, load  # noqa: E402

CRASHES: Final = ROOT / "fuzz" / "crashes"
MAX_INPUT: Final = 4096
"""Bytes of one input."""
MAX_KEPT: Final = 2048
"""Bytes; --keep-new puts no larger input into the repository."""
SLOW: Final = 30
"""Seconds that one input may take."""
MEMORY: Final = 1024
"""MiB of memory that a target may take."""
GRACE: Final = 60.0
"""Seconds beyond its time after which a target counts as hanging."""
PULSE: Final = 10.0
"""Seconds between two lines of progress."""

OK, FOUND, CANNOT, INTERRUPTED = 0, 1, 2, 130

EPILOG = f"""\
targets: {", ".join(NAMES)}

exit status: {OK} nothing found; {FOUND} something found, and saved in fuzz/crashes;
{CANNOT} cannot run; {INTERRUPTED} interrupted with nothing found so far
"""

_STATUS: Final = re.compile(r"^#(\d+)\s+\w+\s+cov: (\d+).*?corp: (\d+)")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; return the exit status."""
    args = parse_args(argv)
    names: list[str] = args.target or NAMES
    if args.replay:
        return replay(names, args.replay)
    if importlib.util.find_spec("atheris") is None:
        say("atheris is not installed; it exists for Linux and Python up to 3.13")
        return CANNOT
    # Otherwise a target, which has its own session, would outlive this process.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    found: list[str] = []
    for name in names:
        try:
            if not fuzz(name, args.seconds, keep_new=args.keep_new):
                found.append(name)
        except KeyboardInterrupt:
            say("interrupted")
            return FOUND if found else INTERRUPTED
    say(f"found something in: {', '.join(found)}" if found else "nothing found")
    return FOUND if found else OK


def parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--seconds", type=_positive, default=60, metavar="N", help="for each target (60)"
    )
    parser.add_argument(
        "--target",
        action="append",
        choices=NAMES,
        metavar="NAME",
        help="only this; repeatable",
    )
    parser.add_argument(
        "--keep-new",
        action="store_true",
        help=f"add what reaches new code, up to {MAX_KEPT} bytes each, to fuzz/corpus",
    )
    parser.add_argument(
        "--replay",
        nargs="+",
        type=Path,
        metavar="FILE",
        help="play these inputs only; the traceback of a finding is shown. Needs no atheris",
    )
    args = parser.parse_args(argv)
    if args.replay and len(args.target or ()) != 1:
        parser.error("--replay needs one --target")
    return args


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a positive number")
    return int(text)


def say(text: str) -> None:
    """Print a line at once, so that a log file of a long run can be followed."""
    print(text, flush=True)


def replay(names: list[str], files: Iterable[Path]) -> int:
    """Play inputs without atheris."""
    command = [sys.executable, "-m", "fuzz.child", *names, "--replay"]
    command += [str(path.resolve()) for path in files]
    return FOUND if subprocess.run(command, cwd=ROOT, check=False).returncode else OK


def fuzz(name: str, seconds: int, *, keep_new: bool) -> bool:
    """Fuzz one target; returns whether nothing was found."""
    CRASHES.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f"pyderp-fuzz-{name}-") as scratch:
        corpus = Path(scratch, "corpus")
        shutil.copytree(CORPUS / name, corpus)
        dictionary = Path(scratch, "tokens")
        dictionary.write_text(_dictionary(load(name).tokens))
        say(f"{name}: {seconds} s")
        run = Run(name, seconds, [f"-dict={dictionary}", str(corpus)])
        try:
            status = run.wait()
        finally:
            if keep_new:
                _keep_new(name, corpus)
    if status == 0:
        return True
    say(f"{name}: FOUND SOMETHING (exit status {status}); the last lines were:")
    for line in run.last:
        say(f"    {line}")
    for path in sorted(CRASHES.glob(f"{name}-*")):
        if path.stat().st_mtime >= run.began:
            shown = path.relative_to(ROOT)
            say(f"again: {Path(sys.executable).name} fuzz/run.py --target {name} --replay {shown}")
    return False


class Run:
    """The process of a target that is being fuzzed."""

    def __init__(self, name: str, seconds: int, args: list[str]) -> None:
        self.name = name
        self.seconds = seconds
        self.last: deque[str] = deque(maxlen=40)
        self.began = time.time()
        self._status = ""
        command = [
            *(sys.executable, "-m", "fuzz.child", name),
            f"-max_total_time={seconds}",
            f"-max_len={MAX_INPUT}",
            f"-timeout={SLOW}",
            f"-rss_limit_mb={MEMORY}",
            f"-artifact_prefix={CRASHES}{os.sep}{name}-",
            *args,
        ]
        # In its own session it does not get Ctrl-C: this program does, and stops it.
        self._process = subprocess.Popen(
            command,
            cwd=ROOT,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            start_new_session=True,
        )
        assert self._process.stdout is not None
        self._reader = threading.Thread(target=self._read, args=(self._process.stdout,))
        self._reader.start()

    def _read(self, stream: IO[str]) -> None:
        for line in stream:
            self.last.append(line.rstrip())
            if match := _STATUS.match(line):
                inputs, reached, kept = match.groups()
                self._status = f"{inputs} inputs, {reached} edges reached, {kept} kept"

    def wait(self) -> int:
        """Wait for its end, and print progress meanwhile; returns its exit status."""
        try:
            while True:
                try:
                    status = self._process.wait(PULSE)
                except subprocess.TimeoutExpired:
                    self._report()
                    if time.time() - self.began > self.seconds + GRACE:
                        self.last.append(f"hung: {GRACE:g} s more than it was given")
                        self._stop()
                        return -1
                else:
                    self._reader.join()
                    self._report()
                    return status
        finally:
            self._stop()

    def _report(self) -> None:
        say(f"{self.name}: {time.time() - self.began:4.0f} s, {self._status or 'starting'}")

    def _stop(self) -> None:
        process = self._process
        for number in (signal.SIGINT, signal.SIGKILL):
            if process.poll() is None:
                process.send_signal(number)
                try:
                    process.wait(5)
                except subprocess.TimeoutExpired:
                    continue
        self._reader.join()
        if process.stdout is not None:
            process.stdout.close()


def _dictionary(tokens: Iterable[bytes]) -> str:
    quoted = ("".join(f"\\x{byte:02x}" for byte in token) for token in tokens)
    return "".join(f'"{token}"\n' for token in quoted)


def _keep_new(name: str, corpus: Path) -> None:
    committed = CORPUS / name
    known = {path.read_bytes() for path in committed.iterdir()}
    kept = 0
    for path in corpus.iterdir():
        data = path.read_bytes()
        if data not in known and len(data) <= MAX_KEPT:
            shutil.copy(path, committed / path.name)
            kept += 1
    say(f"{name}: new inputs in {committed.relative_to(ROOT)}: {kept}")


if __name__ == "__main__":
    sys.exit(main())
