"""Relays as subprocesses: Go's ``derper`` and pyderp, set up alike."""

from __future__ import annotations

import re
import socket
import subprocess
import sys
import time
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, Literal, TypeAlias, get_args

import pytest

from tests.server.certificates import write_pair

from .certificates import write_localhost
from .peers import need
from .ports import free_port

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

Kind: TypeAlias = Literal["derper", "derper-v1.104.7", "pyderp"]
"""Go's relay, by the name of its program (the one without a version is v1.102.3), and pyderp."""
OLDER: Final[Kind] = "derper"
NEWER: Final[Kind] = "derper-v1.104.7"
DERPERS: Final = (OLDER, NEWER)
KINDS: Final[tuple[Kind, ...]] = get_args(Kind)
each_derper = pytest.mark.parametrize("derper", DERPERS)
Setup: TypeAlias = Literal["plain", "named", "pinned"]
"""No TLS; TLS with a certificate for ``localhost``; TLS with a self-signed one for 127.0.0.1."""

MESH_KEY = "0123456789abcdef" * 4

_START_TIMEOUT = 20.0
"""Seconds a relay may take until it listens: mostly the interpreter's start on a busy machine."""
_POLL = 0.02
_LISTENING = re.compile(r"(?<!server )listening on \S*\d:(\d+)")
_PIN = re.compile(r"sha256-raw:[0-9a-f]{64}")


@dataclass
class Relay:
    """A running relay."""

    kind: Kind
    setup: Setup
    process: subprocess.Popen[bytes]
    log: Path
    port: int
    ca: Path | None = None
    pin: str | None = None
    address: str = "127.0.0.1"
    hostname: str = "localhost"
    """What a ``named`` relay's certificate is for."""
    args: list[str] = field(default_factory=list)

    @property
    def client_args(self) -> list[str]:
        """The flags with which ``gopeer`` finds and trusts this relay."""
        scheme, host = {
            "plain": ("http", "127.0.0.1"),
            "named": ("https", "localhost"),
            "pinned": ("https", "127.0.0.1"),
        }[self.setup]
        args = ["-kind", self.kind, "-mesh-key", MESH_KEY]
        args += ["-url", f"{scheme}://{host}:{self.port}/derp"]
        if self.ca:
            args += ["-ca", str(self.ca)]
        if self.pin:
            args += ["-pin", self.pin]
        return args

    def log_text(self) -> str:
        """Return the relay's log so far."""
        return self.log.read_text(errors="replace")

    def kill(self) -> None:
        """End it at once, as a crash would; the kernel closes its connections."""
        self.process.kill()
        self.process.wait()

    def start_again(self) -> None:
        """Start it with the same key on the same port, once it has ended; wait until it listens."""
        address = self.args.index("-a") + 1
        self.args[address] = f"{self.address}:{self.port}"
        self.process = _spawn(self.args, self.log)
        _wait_for_port(self)

    def check_health(self) -> None:
        """Fail if the relay has died or has logged an unexpected error."""
        text = self.log_text()
        code = self.process.poll()
        assert code is None, f"{self.kind} exited with {code}\n{text[-2000:]}"
        assert "Traceback" not in text, f"{self.kind} logged a traceback\n{text[-4000:]}"


class _Failed(Exception):
    """A relay ended before it listened."""


@contextmanager
def running(
    kind: Kind,
    setup: Setup,
    directory: Path,
    *,
    address: str = "127.0.0.1",
    hostname: str = "localhost",
    options: Sequence[str] = (),
) -> Iterator[Relay]:
    """Run a relay with its files in ``directory`` until the block ends.

    It listens on ``address``, and uses a certificate for ``hostname`` if ``named``;
    ``options`` are more of its flags.
    """
    mesh = directory / "mesh.key"
    mesh.write_text(MESH_KEY + "\n")
    flags = ["-c", str(directory / "relay.json"), "--mesh-psk-file", str(mesh), *options]
    ca = _write_certificate(directory, hostname) if setup == "named" else None
    if setup != "plain":
        name = hostname if setup == "named" else address
        flags += ["--certmode=manual", f"--certdir={directory}", f"--hostname={name}"]
    relay = _start(kind, setup, address, directory / "relay.log", flags)
    relay.ca = ca
    relay.hostname = hostname
    try:
        if setup == "pinned":
            relay.pin = _wait_for_log(relay, _PIN)[0]
        yield relay
        relay.check_health()
    finally:
        _stop(relay.process)


def _write_certificate(directory: Path, hostname: str) -> Path:
    if hostname == "localhost":
        return write_localhost(directory)
    write_pair(directory, hostname)
    return directory / f"{hostname}.crt"


def _start(kind: Kind, setup: Setup, address: str, log: Path, flags: list[str]) -> Relay:
    if kind != "pyderp":
        program = [str(need(kind)), "-stun=false", "-http-port=-1", *flags]
        for _ in range(3):
            # derper cannot pick a port, so a free one is guessed; another process may take it
            # first.
            port = free_port(address)
            args = [*program, "-a", f"{address}:{port}"]
            relay = _launch(kind, setup, log, args, address, port)
            try:
                _wait_for_port(relay)
            except _Failed:
                continue
            return relay
        raise AssertionError(f"{kind} does not start\n{log.read_text()[-2000:]}")
    mode = ["--dev"] if setup == "plain" else ["--http-port=-1"]
    if not any(flag.startswith("--tcp-write-timeout") for flag in flags):
        mode.append("--tcp-write-timeout=2s")  # derper's default
    if not any(flag.startswith("--stun-port") for flag in flags):
        mode.append("--no-stun")  # as derper above; the usual port may be taken
    program = [sys.executable, "-m", "pyderp", "relay", *mode, "-a", f"{address}:0", *flags]
    relay = _launch(kind, setup, log, program, address, 0)
    try:
        relay.port = int(_wait_for_log(relay, _LISTENING)[1])
    except BaseException:
        _stop(relay.process)
        raise
    return relay


def _launch(kind: Kind, setup: Setup, log: Path, args: list[str], address: str, port: int) -> Relay:
    log.unlink(missing_ok=True)
    return Relay(kind, setup, _spawn(args, log), log, port, address=address, args=args)


def _spawn(args: list[str], log: Path) -> subprocess.Popen[bytes]:
    with log.open("ab") as output:
        return subprocess.Popen(
            args, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT, cwd=log.parent
        )


def _wait_for_port(relay: Relay) -> None:
    deadline = time.monotonic() + _START_TIMEOUT
    while time.monotonic() < deadline:
        if relay.process.poll() is not None:
            raise _Failed
        try:
            socket.create_connection((relay.address, relay.port), timeout=1).close()
        except OSError:
            time.sleep(_POLL)
        else:
            return
    _stop(relay.process)
    raise _Failed


def _wait_for_log(relay: Relay, pattern: re.Pattern[str]) -> re.Match[str]:
    deadline = time.monotonic() + _START_TIMEOUT
    while time.monotonic() < deadline:
        ended = relay.process.poll() is not None  # before the log is read: then the log is complete
        if match := pattern.search(relay.log_text()):
            return match
        if ended:
            break
        time.sleep(_POLL)
    tail = relay.log_text()[-2000:]
    raise AssertionError(f"{relay.kind} never logged {pattern.pattern!r}\n{tail}")


def _stop(process: subprocess.Popen[bytes]) -> None:
    """End a process: by SIGTERM, after ten seconds by SIGKILL, and not twice."""
    process.terminate()
    try:
        process.wait(10)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
