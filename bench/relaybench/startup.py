"""Measures how long a relay takes until it serves, and how much memory it needs then."""

from __future__ import annotations

import contextlib
import re
import socket
import ssl
import statistics
import subprocess
import time
from collections.abc import Mapping
from pathlib import Path

from .errors import BenchError
from .processes import RelayCommand, child, free_port, tail

STARTS = 5
"""Starts of one sample, whose median counts; one start before them is not counted."""

_TIMEOUT_S = 30.0
_PAUSE_S = 0.002
_REQUEST = b"GET /derp/probe HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"


def measure_starts(command: RelayCommand, *, tls: bool, work: Path) -> Mapping[str, object]:
    """Start a relay several times; return the medians and all times."""
    runs = [_start(command, tls=tls, work=work) for _ in range(STARTS + 1)][1:]
    times = [ms for ms, _ in runs]
    return {
        "start_ms": statistics.median(times),
        "rss_MiB": statistics.median(mib for _, mib in runs),
        "starts_ms": times,
    }


def _start(command: RelayCommand, *, tls: bool, work: Path) -> tuple[float, float]:
    """Return the time in ms until the first answer, and the memory in MiB after it."""
    log = work / f"{command.name}.log"
    port = free_port()
    argv = command.argv(tls=tls, port=port, work=work)
    began = time.monotonic()
    with child(argv, log) as process:
        while not _answers(port, tls=tls):
            if process.poll() is not None:
                raise BenchError(f"{command.name} did not start:\n{tail(log)}")
            if time.monotonic() > began + _TIMEOUT_S:
                raise BenchError(f"{command.name} does not answer:\n{tail(log)}")
            time.sleep(_PAUSE_S)
        ms = (time.monotonic() - began) * 1000
        time.sleep(0.3)  # the relay still works for a moment after it listens
        return ms, _rss_mib(process)


def _answers(port: int, *, tls: bool) -> bool:
    """Whether the relay answers a probe."""
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 5) as tcp:
        if not tls:
            return _asked(tcp)
        context = ssl.create_default_context()
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE  # the certificate is self-signed
        with context.wrap_socket(tcp, server_hostname="localhost") as secure:
            return _asked(secure)
    return False


def _asked(stream: socket.socket) -> bool:
    stream.sendall(_REQUEST)
    return stream.recv(64).startswith(b"HTTP/1.1 ")


def _rss_mib(process: subprocess.Popen[bytes]) -> float:
    """Return the resident memory of a process and of its descendants."""
    children: dict[int, list[int]] = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            parent = int(path.read_text().rpartition(")")[2].split()[1])
            children.setdefault(parent, []).append(int(path.parent.name))
    tree = [process.pid]
    for pid in tree:
        tree += children.get(pid, [])
    kib = 0
    for pid in tree:
        with contextlib.suppress(OSError):
            found = re.search(r"^VmRSS:\s*(\d+)", Path(f"/proc/{pid}/status").read_text(), re.M)
            kib += int(found[1]) if found else 0
    return kib / 1024
