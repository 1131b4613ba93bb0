#!/usr/bin/env python3
"""Measure the STUN servers of pyderp and of Go's derper in turn: answers a second of CPU.

Both listen on all addresses; one client asks over IPv4 loopback, some requests at once, and
waits for their answers before the next. CPU is user + system time of the server's process.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import pyderp
from pyderp.server.services import stun
from pyderp.wire.stun import pack_request, parse_response_untrusted
from relaybench import machine, peers
from relaybench.errors import BenchError

RESULTS = peers.REPO / "bench" / "STUN.md"
AT_ONCE: Final = (1, 8, 64)
WARMUP: Final = 1000
SERVERS: Final = {
    "derper": (),
    "uvloop": ("uvloop", str(stun.BATCH)),
    "asyncio": ("asyncio", str(stun.BATCH)),
    "one a turn": ("uvloop", "1"),
}
"""Each with the arguments of `--serve`; the last shows the effect of batching."""


# The measured program, if it is ours


async def serve(batch: int) -> None:
    """Print the port, and answer until killed."""
    # The server reads BATCH at each use, so that this changes it.
    vars(stun)["BATCH"] = batch
    server = stun.StunServer(stun.stun_sockets("", 0))
    server.start()
    print(server.addresses[0][1], flush=True)
    await asyncio.Event().wait()


def run_server(loop: str, batch: int) -> None:
    """Serve on the event loop of this name."""
    factory: Callable[[], asyncio.AbstractEventLoop] = asyncio.new_event_loop
    if loop == "uvloop":
        import uvloop

        factory = uvloop.new_event_loop
    with asyncio.Runner(loop_factory=factory) as runner:
        runner.run(serve(batch))


# The measurement


@contextmanager
def running(name: str, folder: str, derper: Path) -> Iterator[tuple[int, int]]:
    """Run a server; yields its process id and port."""
    port = 0
    if name == "derper":
        port = _free_port(socket.SOCK_DGRAM)
        command = [str(derper), "-c", f"{folder}/derper.json", "-http-port=-1"]
        command += [f"-stun-port={port}", "-a", f":{_free_port(socket.SOCK_STREAM)}"]
    else:
        command = [sys.executable, __file__, "--serve", *SERVERS[name]]
    with Path(folder, "log").open("wb") as log:
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, text=True)
    try:
        assert process.stdout is not None
        yield process.pid, port or int(process.stdout.readline())
    finally:
        process.kill()
        process.communicate()


def _free_port(kind: socket.SocketKind) -> int:
    with socket.socket(socket.AF_INET6, kind) as probe:
        probe.bind(("::", 0))
        return int(probe.getsockname()[1])


def measure(name: str, at_once: int, total: int, derper: Path) -> float:
    """Run once; returns answers a second of CPU."""
    with (
        tempfile.TemporaryDirectory() as folder,
        running(name, folder, derper) as (pid, port),
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock,
    ):
        sock.settimeout(0.2)
        sock.connect(("127.0.0.1", port))
        for _ in range(50):
            if ask(sock, at_once, WARMUP):
                break
            time.sleep(0.05)
        else:
            raise BenchError(f"{name} does not answer:\n{Path(folder, 'log').read_text()}")
        sock.settimeout(10)
        before = cpu_seconds(pid)
        if not ask(sock, at_once, total):
            raise BenchError(f"{name} left a request without an answer; measure again")
        return total / (cpu_seconds(pid) - before)


def ask(sock: socket.socket, at_once: int, total: int) -> bool:
    """Send requests and read their answers; returns whether all came."""
    tx_id = os.urandom(12)
    request = pack_request(tx_id)
    try:
        for _ in range(0, total, at_once):
            for _ in range(at_once):
                sock.send(request)
            for _ in range(at_once):
                answer = sock.recv(2048)
    except OSError:  # also "refused": the server does not listen yet
        return False
    return parse_response_untrusted(answer).tx_id == tx_id


def cpu_seconds(pid: int) -> float:
    """Returns user + system time of a process so far, to the nanosecond."""
    tasks = Path(f"/proc/{pid}/task").glob("*/schedstat")
    return sum(int(task.read_text().split()[0]) for task in tasks) / 1e9


def compare(rounds: int, total: int, derper: Path) -> str:
    """Measure all rows; returns the table."""
    ours = [name for name in SERVERS if name != "derper"]
    head = ["requests at once", *SERVERS, *(f"ratio, {name}" for name in ours)]
    lines = [_row(head), _row(["---"] * len(head))]
    for at_once in AT_ONCE:
        taken: dict[str, list[float]] = {name: [] for name in SERVERS}
        for _ in range(rounds):
            for name in SERVERS:
                taken[name].append(measure(name, at_once, total, derper))
        lines.append(_line(at_once, taken))
        sys.stderr.write(lines[-1] + "\n")
    return "\n".join(lines)


def _line(at_once: int, taken: Mapping[str, list[float]]) -> str:
    median = {name: statistics.median(values) for name, values in taken.items()}
    cells = [str(at_once), *(f"{median[name]:,.0f}" for name in SERVERS)]
    for name in SERVERS:
        if name != "derper":
            ratios = [own / go for own, go in zip(taken[name], taken["derper"], strict=True)]
            ratio = median[name] / median["derper"]
            cells.append(f"**{ratio:.2f}** ({min(ratios):.2f}–{max(ratios):.2f})")
    return _row(cells)


def _row(cells: list[str]) -> str:
    return f"| {' | '.join(cells)} |"


PAGE = """# The STUN server, against Go's

Answers a second of CPU, user and system, of the server's process alone; medians of {rounds}
rounds of {total:,} requests, taken in turn. Written by `python bench/stun.py --write`. More is
better, also of the ratios, ours to derper's; in brackets: the lowest and highest of a round.

Both listen on all addresses of both families, are asked over IPv4 loopback, and answer from the
address that was asked (derper since v1.104). "One a turn" is uvloop with one packet a turn of the
loop instead of up to {batch}: the difference is what batching gives. With one request at once there
is nothing to batch, and waking up is most of the cost.

{table}

pyderp {version}; derper {derper}. {machine}
"""


def main() -> int:
    """Run the command line; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5, help="default %(default)s")
    parser.add_argument(
        "--requests", type=int, default=64_000, help="multiple of 64; default %(default)s"
    )
    parser.add_argument(
        "--derper", default=peers.DERPER, metavar="PROGRAM", help="default %(default)s"
    )
    parser.add_argument("--write", action="store_true", help=f"write {RESULTS.name}")
    parser.add_argument("--serve", nargs=2, metavar=("LOOP", "BATCH"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.serve:
        run_server(args.serve[0], int(args.serve[1]))
        return 0
    try:
        derper = peers.find_derper(args.derper)
        table = compare(args.rounds, args.requests, derper)
    except BenchError as e:
        sys.stderr.write(f"bench: {e}\n")
        return 1
    page = PAGE.format(
        rounds=args.rounds,
        total=args.requests,
        batch=stun.BATCH,
        table=table,
        version=pyderp.__version__,
        derper=machine.derper_version(derper),
        machine=machine.one_line(),
    )
    if args.write:
        RESULTS.write_text(page)
    else:
        print(page)
    return 0


if __name__ == "__main__":
    sys.exit(main())
