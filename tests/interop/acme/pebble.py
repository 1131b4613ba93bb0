"""Pebble, Let's Encrypt's small ACME server for tests, and its DNS server, as subprocesses."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import ssl
import subprocess
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.interop.peers import need
from tests.interop.ports import free_port
from tests.server.certificates import write_pair

_START_TIMEOUT = 20.0
_POLL = 0.02


@dataclass
class Pebble:
    """A certificate authority, with all names at 127.0.0.1."""

    folder: Path
    http_port: int
    """Port that it asks for HTTP-01."""
    tls_port: int
    settings: Mapping[str, Any]
    environment: Mapping[str, str]
    dns: str
    port: int = 0
    process: subprocess.Popen[bytes] | None = field(default=None)

    @property
    def url(self) -> str:
        return f"https://127.0.0.1:{self.port}/dir"

    @property
    def ca_file(self) -> Path:
        """The certificate that Pebble's own HTTPS is verified with."""
        return self.folder / "127.0.0.1.crt"

    def log(self) -> str:
        return (self.folder / "pebble.log").read_text(errors="replace")

    def start(self) -> None:
        """Start it, again on the same port if it ran before; wait until it listens."""
        for _ in range(3):
            port = self.port or free_port()
            config = {
                "listenAddress": f"127.0.0.1:{port}",
                "managementListenAddress": "",
                "certificate": str(self.ca_file),
                "privateKey": str(self.folder / "127.0.0.1.key"),
                "httpPort": self.http_port,
                "tlsPort": self.tls_port,
                "keyAlgorithm": "ecdsa",
                "retryAfter": {"authz": 0, "order": 0},
                **self.settings,
            }
            path = self.folder / "pebble.json"
            path.write_text(json.dumps({"pebble": config}))
            command = [str(need("pebble")), "-config", str(path), "-dnsserver", self.dns]
            self.process = _spawn(command, self.folder / "pebble.log", self.environment)
            if _listens(self.process, port, tls=True):
                self.port = port
                return
        raise AssertionError(f"pebble does not start\n{self.log()[-2000:]}")

    def stop(self) -> None:
        if self.process is not None:
            _end(self.process)


@contextlib.contextmanager
def running(
    folder: Path,
    *,
    http_port: int,
    tls_port: int,
    environment: Mapping[str, str] | None = None,
    **settings: Any,
) -> Iterator[Pebble]:
    """Run Pebble until the block ends.

    Args:
        http_port: where it asks for HTTP-01.
        tls_port: where it asks for TLS-ALPN-01.
        environment: variables over those that make it quick and reliable.
        settings: of its JSON file.
    """
    folder.mkdir(exist_ok=True)
    write_pair(folder, "127.0.0.1")
    knobs = {"PEBBLE_VA_NOSLEEP": "1", "PEBBLE_WFE_NONCEREJECT": "0", "PEBBLE_AUTHZREUSE": "0"}
    knobs |= environment or {}
    with _dns(folder) as dns:
        pebble = Pebble(folder, http_port, tls_port, settings, knobs, dns)
        try:
            pebble.start()
            yield pebble
        finally:
            pebble.stop()


@contextlib.contextmanager
def _dns(folder: Path) -> Iterator[str]:
    program = str(need("pebble-challtestsrv"))
    for _ in range(3):
        port = free_port()
        dns = f"127.0.0.1:{port}"
        off = [f"-{name}=" for name in ("http01", "https01", "tlsalpn01", "doh", "defaultIPv6")]
        command = [program, f"-dnsserver={dns}", f"-management=127.0.0.1:{free_port()}", *off]
        process = _spawn(command, folder / "dns.log", {})
        try:
            if _listens(process, port):
                yield dns
                return
        finally:
            _end(process)
    raise AssertionError((folder / "dns.log").read_text())


def _spawn(command: list[str], log: Path, extra: Mapping[str, str]) -> subprocess.Popen[bytes]:
    with log.open("ab") as output:
        return subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            env={**os.environ, **extra},
        )


def _listens(process: subprocess.Popen[bytes], port: int, *, tls: bool = False) -> bool:
    """Wait until a port answers; whether it did before the process ended."""
    context = ssl._create_unverified_context()
    deadline = time.monotonic() + _START_TIMEOUT
    while time.monotonic() < deadline and process.poll() is None:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port)) as sock:
            if tls:
                context.wrap_socket(sock).close()
            return True
        time.sleep(_POLL)
    return False


def _end(process: subprocess.Popen[bytes]) -> None:
    process.kill()
    process.wait()
