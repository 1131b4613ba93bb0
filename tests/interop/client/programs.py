"""Proxies of other projects as subprocesses: tinyproxy, microsocks, haproxy, nginx."""

from __future__ import annotations

import itertools
import os
import socket
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.interop.peers import need
from tests.interop.tailscaled.peers import missing

USER, PASSWORD = "bob", "s3cret"

_START_TIMEOUT = 10.0
_POLL = 0.02
_ATTEMPTS = 3
_serial = itertools.count(1)


@dataclass(frozen=True)
class Program:
    """A running proxy on 127.0.0.1."""

    process: subprocess.Popen[bytes]
    port: int
    log: Path

    def log_text(self) -> str:
        return self.log.read_text(errors="replace")


@contextmanager
def tinyproxy(directory: Path, names: Sequence[str]) -> Iterator[Program]:
    """An HTTP proxy with Basic authorization, which resolves `names` to 127.0.0.1."""

    def command(port: int) -> list[str]:
        config = directory / "tinyproxy.conf"
        config.write_text(
            f"Listen 127.0.0.1\nPort {port}\nTimeout 60\nLogLevel Connect\n"
            f"MaxClients 100\nBasicAuth {USER} {PASSWORD}\n"
        )
        return with_names(names, [str(need("tinyproxy")), "-d", "-c", str(config)], directory)

    with _started("tinyproxy", command, directory) as program:
        yield program


@contextmanager
def microsocks(directory: Path, names: Sequence[str]) -> Iterator[Program]:
    """A SOCKS5 proxy with user and password, which resolves `names` to 127.0.0.1."""

    def command(port: int) -> list[str]:
        args = ["-i", "127.0.0.1", "-p", str(port), "-u", USER, "-P", PASSWORD]
        return with_names(names, [str(need("microsocks")), *args], directory)

    with _started("microsocks", command, directory) as program:
        yield program


@contextmanager
def haproxy(directory: Path, sections: Callable[[int], str]) -> Iterator[Program]:
    """haproxy with the sections that are made for its port."""

    def command(port: int) -> list[str]:
        config = directory / "haproxy.cfg"
        config.write_text(
            "defaults\n timeout connect 5s\n timeout client 60s\n timeout server 60s\n"
            f" timeout tunnel 60s\n{sections(port)}"
        )
        return [str(need("haproxy")), "-db", "-f", str(config)]

    with _started("haproxy", command, directory) as program:
        yield program


@contextmanager
def nginx(directory: Path, server: Callable[[int], str]) -> Iterator[Program]:
    """nginx in one process, with what is made for its port as the `http` section."""

    def command(port: int) -> list[str]:
        config = directory / "nginx.conf"
        kinds = ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
        paths = "".join(f" {kind}_temp_path {directory}/{kind};\n" for kind in kinds)
        config.write_text(
            f"daemon off;\nmaster_process off;\npid {directory}/nginx.pid;\nerror_log stderr;\n"
            f"events {{}}\nhttp {{\n access_log off;\n{paths}{server(port)}}}\n"
        )
        return [str(need("nginx")), "-p", str(directory), "-e", "stderr", "-c", str(config)]

    with _started("nginx", command, directory) as program:
        yield program


def with_names(names: Sequence[str], command: Sequence[str], directory: Path) -> list[str]:
    """The command, in its own mount namespace where /etc/hosts has `names`."""
    if not names:
        return list(command)
    if os.geteuid() != 0:
        missing("permission for `unshare --mount`", "run as root")
    hosts = directory / "hosts"
    hosts.write_text("".join(f"127.0.0.1 {name}\n" for name in ("localhost", *names)))
    script = 'mount --bind "$0" /etc/hosts && exec "$@"'
    return [str(need("unshare")), "--mount", "sh", "-c", script, str(hosts), *command]


@contextmanager
def _started(
    name: str, command: Callable[[int], Sequence[str]], directory: Path
) -> Iterator[Program]:
    """Run the command line that `command` returns for a free port, until the block ends."""
    log = directory / f"{name}-{next(_serial)}.log"
    program = _launch(command, log)
    for _ in range(_ATTEMPTS - 1):
        # None of them can pick a port, so a free one is guessed; another process may take it first.
        if _listens(program):
            break
        _stop(program.process)
        program = _launch(command, log)
    try:
        assert _listens(program), f"{name} does not start\n{program.log_text()[-2000:]}"
        yield program
        assert program.process.poll() is None, f"{name} died\n{program.log_text()[-2000:]}"
    finally:
        _stop(program.process)


def _launch(command: Callable[[int], Sequence[str]], log: Path) -> Program:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = int(probe.getsockname()[1])
    args = command(port)
    with log.open("ab") as output:
        process = subprocess.Popen(
            args, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT, cwd=log.parent
        )
    return Program(process, port, log)


def _listens(program: Program) -> bool:
    deadline = time.monotonic() + _START_TIMEOUT
    while time.monotonic() < deadline and program.process.poll() is None:
        try:
            socket.create_connection(("127.0.0.1", program.port), timeout=1).close()
        except OSError:
            time.sleep(_POLL)
        else:
            return True
    return False


def _stop(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(5)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
