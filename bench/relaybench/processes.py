"""Child processes: starts relays, waits until they serve, and always stops them."""

from __future__ import annotations

import contextlib
import os
import resource
import shlex
import signal
import socket
import subprocess
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from .errors import BenchError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from pathlib import Path

READY_TIMEOUT_S = 20.0
STOP_TIMEOUT_S = 5.0

TLS_FLAGS = (
    "--http-port=-1",
    "--certmode=manual",
    "--certdir={certdir}",
    "--hostname=localhost",
)


@dataclass(frozen=True, slots=True)
class RelayCommand:
    """How a relay is started."""

    name: str
    template: str
    """A command line with `{port}`, `{key}` (a file) and `{certdir}`, and as words of
    their own `{tls}` (the TLS flags, or nothing) and `{dev}` (`--dev` without TLS)."""

    programs: Mapping[str, str]
    """Paths of the programs that the command line names without a path."""

    loadgen_args: tuple[str, ...] = ()
    """Arguments that the load generator needs for this relay."""

    config: tuple[str, str] | None = None
    """Contents of the file that `{config}` names: without TLS, and with it."""

    def words(self, *, tls: bool) -> list[str]:
        """Return the command line with `{port}`, `{key}` and `{certdir}` left in."""
        out: list[str] = []
        for word in shlex.split(self.template):
            match word:
                case "{tls}":
                    out += TLS_FLAGS if tls else ()
                case "{dev}":
                    out += () if tls else ("--dev",)
                case _:
                    out.append(word)
        return out

    def argv(self, *, tls: bool, port: int, work: Path) -> list[str]:
        """Return the command to execute."""
        values = {
            "port": str(port),
            "key": str(work / f"{self.name}.key.json"),
            "certdir": str(work),
        }
        out = self.words(tls=tls)
        if self.config is not None:
            path = work / f"{self.name}.toml"
            path.write_text(_filled(self.config[1 if tls else 0], values))
            values["config"] = str(path)
        out = [_filled(word, values) for word in out]
        return [self.programs.get(out[0], out[0]), *out[1:]]


def _filled(text: str, values: Mapping[str, str]) -> str:
    for name, value in values.items():
        text = text.replace("{" + name + "}", value)
    return text


def free_port() -> int:
    """Return a loopback TCP port that no socket uses at the moment."""
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    assert isinstance(port, int)
    return port


@contextlib.contextmanager
def child(argv: Sequence[str], log: Path) -> Iterator[subprocess.Popen[bytes]]:
    """Run a program in a session of its own, and end it with all its children.

    In its own session it does not get the terminal's Ctrl-C; it is always ended here.
    """
    with log.open("wb") as out:
        try:
            process = subprocess.Popen(
                argv,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=subprocess.STDOUT,
                cwd=log.parent,
                start_new_session=True,
            )
        except OSError as exc:
            raise BenchError(f"cannot start {argv[0]}: {exc.strerror}") from exc
    try:
        yield process
    finally:
        stop(process)


def stop(process: subprocess.Popen[bytes]) -> None:
    """End the process's session: with SIGTERM, then with SIGKILL."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        # Also if the process itself has ended: its children may still run.
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, number)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(STOP_TIMEOUT_S)


@contextlib.contextmanager
def running_relay(
    command: RelayCommand, *, tls: bool, work: Path, prefix: Sequence[str]
) -> Iterator[tuple[int, int]]:
    """Run a fresh relay; yield its process id and port once it accepts connections.

    Raises `BenchError` if it does not start, or ends before the block does.
    """
    log = work / f"{command.name}.log"
    port = free_port()
    argv = [*prefix, *command.argv(tls=tls, port=port, work=work)]
    with child(argv, log) as process:
        _await_ready(process, port, command.name, log)
        yield process.pid, port
        if process.poll() is not None:
            raise BenchError(
                f"{command.name} ended during the measurement, exit status "
                f"{process.returncode}:\n{tail(log)}"
            )


def _await_ready(process: subprocess.Popen[bytes], port: int, name: str, log: Path) -> None:
    deadline = time.monotonic() + READY_TIMEOUT_S
    while time.monotonic() < deadline:
        if process.poll() is not None:
            raise BenchError(
                f"{name} did not start, exit status {process.returncode}:\n{tail(log)}"
            )
        with contextlib.suppress(OSError):
            socket.create_connection(("127.0.0.1", port), 0.5).close()
            time.sleep(0.3)  # the relay still works for a moment after it listens
            return
        time.sleep(0.05)
    raise BenchError(
        f"{name} did not listen on its port within {READY_TIMEOUT_S:g} s:\n{tail(log)}"
    )


def tail(log: Path) -> str:
    """Return the first and the last lines of a log, indented."""
    text = log.read_text(errors="replace").splitlines()
    if len(text) > 15:
        text = [*text[:3], "...", *text[-11:]]
    return "\n".join(f"    {line}" for line in text) or "    (it printed nothing)"


def raise_file_limit(needed: int) -> None:
    """Let this process's children open that many files."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < needed:
        raise BenchError(
            f"{needed} open files are needed and {hard} allowed: use a smaller "
            "--conns, or raise the hard limit (ulimit -Hn)"
        )
    if soft != resource.RLIM_INFINITY and soft < needed:
        resource.setrlimit(resource.RLIMIT_NOFILE, (needed, hard))
