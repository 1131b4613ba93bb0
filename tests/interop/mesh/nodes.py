"""Nodes of a mesh as subprocesses: Go's ``derper`` and pyderp, each with one list of all."""

from __future__ import annotations

import os
import re
import socket
import subprocess
import sys
import time
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from tests.interop.certificates import write_localhost
from tests.interop.peers import need
from tests.interop.ports import free_port
from tests.interop.relays import MESH_KEY, Kind

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

BOUND = 30.0
"""Seconds for anything that nodes do: they try each other every five, on a busy machine."""
_POLL = 0.05
_STUN = re.compile(r"STUN server listening on \S*:(\d+)")
OTHER_MESH_KEY = "f" * 64


@dataclass
class Node:
    """One relay of the mesh."""

    kind: Kind
    port: int
    log: Path
    command: list[str]
    environment: dict[str, str] = field(repr=False)
    process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"https://localhost:{self.port}/derp"

    def start(self) -> None:
        """Start it, for the first time or again, with the same key on the same port."""
        with self.log.open("ab") as output:
            self.process = subprocess.Popen(
                self.command,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env=self.environment,
                cwd=self.log.parent,
            )

    def listens(self) -> None:
        """Wait until it listens."""
        deadline = time.monotonic() + BOUND
        while time.monotonic() < deadline:
            try:
                socket.create_connection(("127.0.0.1", self.port), timeout=1).close()
            except OSError:
                assert self.process is not None
                code = self.process.poll()
                assert code is None, f"{self.kind} exited with {code}\n{self.text()[-2000:]}"
                time.sleep(_POLL)
            else:
                return
        raise AssertionError(f"{self.kind} does not listen\n{self.text()[-2000:]}")

    def kill(self) -> None:
        """End it at once, as a crash would."""
        assert self.process is not None
        self.process.kill()
        self.process.wait()

    def stop(self) -> None:
        """End it by SIGTERM; it must not have logged an unexpected error."""
        if self.process is None:
            return
        self.process.terminate()
        try:
            self.process.wait(10)
        except subprocess.TimeoutExpired:
            self.kill()
        assert "Traceback" not in self.text(), self.text()[-4000:]

    def text(self) -> str:
        """Its log so far."""
        return self.log.read_text(errors="replace")

    def logs(self, pattern: str, count: int = 1) -> None:
        """Wait until it has logged this, this many times."""
        deadline = time.monotonic() + BOUND
        while len(re.findall(pattern, self.text())) < count:
            assert time.monotonic() < deadline, f"never logged {pattern!r}\n{self.text()[-2000:]}"
            time.sleep(_POLL)

    @property
    def stun_port(self) -> int:
        """The UDP port that it answers on."""
        found = _STUN.search(self.text())
        assert found is not None, self.text()
        return int(found[1])


@contextmanager
def mesh(
    kinds: Sequence[Kind],
    directory: Path,
    *,
    options: Sequence[str] = (),
    stun: bool = False,
    keys: Sequence[str] = (),
) -> Iterator[list[Node]]:
    """Run a full mesh; each node's list has all, itself too, in derper's two ways of writing.

    Args:
        options: more flags for pyderp.
        stun: pyderp answers STUN as well, on any free port.
        keys: the mesh key of each; by default the same.
    """
    ca = write_localhost(directory)
    ports = _free_ports(len(kinds))
    with_dial = [f"localhost:{port}/127.0.0.1" for port in ports]
    hosts = [host if n % 2 else f"localhost:{ports[n]}" for n, host in enumerate(with_dial)]
    environment = {**os.environ, "SSL_CERT_FILE": str(ca)}
    nodes: list[Node] = []
    for number, (kind, port) in enumerate(zip(kinds, ports, strict=True)):
        key = directory / f"mesh{number}.key"
        key.touch(0o600)
        key.write_text((keys[number] if keys else MESH_KEY) + "\n")
        flags = [
            "-a",
            f"127.0.0.1:{port}",
            "-c",
            str(directory / f"relay{number}.json"),
            "--http-port=-1",
            "--certmode=manual",
            f"--certdir={directory}",
            "--hostname=localhost",
            f"--mesh-psk-file={key}",
            f"--mesh-with={','.join(hosts)}",
        ]
        if kind == "pyderp":
            udp = "--stun-port=0" if stun else "--no-stun"
            command = [sys.executable, "-m", "pyderp", "relay", udp, *flags, *options]
        else:
            command = [str(need(kind)), "-stun=false", *flags]
        nodes.append(Node(kind, port, directory / f"relay{number}.log", command, environment))
    with ExitStack() as stack:
        for node in nodes:
            stack.callback(node.stop)
            node.start()
        for node in nodes:
            node.listens()
        yield nodes
        for node in nodes:  # all at once, as each takes its time
            assert node.process is not None
            assert node.process.poll() is None, f"{node.kind} has ended\n{node.text()[-2000:]}"
            node.process.terminate()


def _free_ports(count: int) -> list[int]:
    """Ports that must be known before the nodes listen, as each node gets the list of all."""
    found: set[int] = set()
    while len(found) < count:
        found.add(free_port())
    return list(found)
