#!/usr/bin/env python3
"""Measure pyderp's client and Go's derphttp client in turn: CPU a packet, sent and received.

The relay (pyderp's) and the peer (Go's client) are the same for both. The client that is
measured sends or receives bursts of packets; a small packet back acknowledges each burst.
CPU is user + system time of the measured process alone, between warm-up and end.
"""

from __future__ import annotations

import argparse
import asyncio
import hashlib
import json
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pyderp
from pyderp import Client, DERPNode, DERPRegion, NodePrivate, ReceivedPacket
from relaybench import machine, peers
from relaybench.errors import BenchError

SOURCE = peers.REPO / "bench" / "clientpeer"
RESULTS = peers.REPO / "bench" / "CLIENT.md"
KINDS = ("go", "uvloop", "asyncio")
WARMUP = 9_600  # whole bursts


@dataclass(frozen=True)
class Work:
    """One row of the table."""

    role: str
    tls: bool
    burst: int
    in_flight: int

    @property
    def title(self) -> str:
        """The row's name in the table."""
        tls = "TLS 1.3" if self.tls else "no TLS"
        return f"{tls}, {self.role}, bursts of {self.burst}"


WORKS = [
    Work(role, tls, burst, in_flight)
    for tls in (False, True)
    for role in ("send", "receive")
    for burst, in_flight in ((24, 1), (8, 3), (1, 24))
]


@dataclass(frozen=True)
class RunningRelay:
    """Port and pin of the relay that runs; an empty pin means no TLS."""

    port: int
    pin: str

    @property
    def go_flags(self) -> list[str]:
        """Arguments with which clientpeer connects to it."""
        if self.pin:
            return ["-host", "127.0.0.1", "-port", str(self.port), "-pin", self.pin]
        return ["-url", f"http://127.0.0.1:{self.port}/derp"]

    def client(self, private: NodePrivate) -> Client:
        """Returns a client of ours for it."""
        if not self.pin:
            return Client.for_url(f"http://127.0.0.1:{self.port}/derp", private_key=private)
        node = DERPNode(
            name="1a",
            region_id=1,
            host_name="127.0.0.1",
            derp_port=self.port,
            cert_name=self.pin,
        )
        return Client.for_region(DERPRegion(region_id=1, nodes=(node,)), private_key=private)


@contextmanager
def running_relay(*, tls: bool) -> Iterator[RunningRelay]:
    """Run a relay of ours until the block ends."""
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder) / "log"
        flags = ["--dev", "--no-stun"]
        if tls:
            flags = ["--certmode=manual", "--hostname=127.0.0.1", f"--certdir={folder}"]
            flags += ["--no-stun", "--http-port=-1", "-c", f"{folder}/relay.key"]
        command = [sys.executable, "-m", "pyderp", "relay", "-a", "127.0.0.1:0", *flags]
        with log.open("wb") as out:
            process = subprocess.Popen(command, stdout=out, stderr=out)
        try:
            port = _wait_for(log, process, r"listening on \S*127\.0\.0\.1:(\d+)")
            pin = _wait_for(log, process, r"(sha256-raw:[0-9a-f]{64})") if tls else ""
            yield RunningRelay(int(port), pin)
        finally:
            process.kill()
            process.wait()


def _wait_for(log: Path, process: subprocess.Popen[bytes], pattern: str) -> str:
    for _ in range(500):
        if found := re.search(pattern, log.read_text()):
            return found[1]
        if process.poll() is not None:
            break
        time.sleep(0.02)
    raise BenchError(f"the relay does not start:\n{log.read_text()}")


def key_of(seed: str, role: str) -> NodePrivate:
    """Returns the key that clientpeer derives in the same way."""
    raw = bytearray(hashlib.sha256((seed + role).encode()).digest())
    raw[0] &= 248
    raw[31] = raw[31] & 127 | 64
    return NodePrivate.parse(f"privkey:{bytes(raw).hex()}")


def measure(kind: str, work: Work, relay: RunningRelay, packets: int) -> float:
    """Run once; returns CPU microseconds a packet."""
    seed = f"{time.time_ns()}"
    other = {"send": "receive", "receive": "send"}[work.role]
    flags = ["-packets", str(packets), "-warmup", str(WARMUP), "-seed", seed]
    flags += ["-burst", str(work.burst), "-in-flight", str(work.in_flight)]
    go = [str(peers.PEERS / "clientpeer"), *relay.go_flags, *flags]
    measured = [*go, "-role", work.role]
    if kind != "go":
        request = {
            "kind": kind, "role": work.role, "port": relay.port, "pin": relay.pin, "seed": seed,
            "packets": packets, "burst": work.burst, "in_flight": work.in_flight,
        }  # fmt: skip
        measured = [sys.executable, __file__, "--worker", json.dumps(request)]
    processes: list[subprocess.Popen[str]] = []
    try:
        for command in (measured, [*go, "-role", other]):
            process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
            )
            processes.append(process)
            assert process.stdout is not None
            if process.stdout.readline() != "ready\n":
                raise BenchError(f"{command[0]} does not connect")
        for process in reversed(processes):  # the peer first
            assert process.stdin is not None
            process.stdin.write("\n")
            process.stdin.flush()
        out, _ = processes[0].communicate(timeout=300)
        return float(json.loads(out)["cpu_us_per_packet"])
    finally:
        for process in processes:
            process.kill()
            process.communicate()


# The measured program, if it is ours


async def work(request: dict[str, int | str]) -> float:
    """Connect and do the work; returns CPU microseconds a packet."""
    relay = RunningRelay(int(request["port"]), str(request["pin"]))
    seed, role = str(request["seed"]), str(request["role"])
    packets, burst = int(request["packets"]), int(request["burst"])
    other = key_of(seed, {"send": "receive", "receive": "send"}[role]).public
    async with relay.client(key_of(seed, role)) as client:
        await client.connect()
        print("ready", flush=True)
        await asyncio.get_running_loop().run_in_executor(None, sys.stdin.readline)

        async def send(count: int) -> None:
            batch = [bytes(1200)] * burst
            waiting = 0
            for _ in range(0, count, burst):
                if waiting == int(request["in_flight"]):
                    waiting -= await packets_of(client)
                await client.send_many(other, batch)
                waiting += 1
            while waiting > 0:
                waiting -= await packets_of(client)

        async def receive(count: int) -> None:
            got = acknowledged = 0
            while got < count:
                got += await packets_of(client)
                while acknowledged + burst <= got:
                    acknowledged += burst
                    await client.send(other, b"ack")

        move = send if role == "send" else receive
        await move(WARMUP)
        before = time.process_time()
        await move(packets)
        return (time.process_time() - before) * 1e6 / packets


async def packets_of(client: Client) -> int:
    """Wait for packets; returns how many came."""
    while True:
        messages = await client.receive_many()
        count = sum(1 for message in messages if type(message) is ReceivedPacket)
        if count:
            return count


def worker(request: dict[str, int | str]) -> None:
    """Run as the measured program."""
    factory = asyncio.new_event_loop
    if request["kind"] == "uvloop":
        import uvloop

        factory = uvloop.new_event_loop
    with asyncio.Runner(loop_factory=factory) as runner:
        print(json.dumps({"cpu_us_per_packet": runner.run(work(request))}))


# The comparison


def compare(rounds: int, packets: int) -> str:
    """Measure all rows; returns the table."""
    lines = [
        "| work | Go µs | pyderp, uvloop | pyderp, asyncio | ratio, uvloop | ratio, asyncio |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for tls in (False, True):
        with running_relay(tls=tls) as relay:
            for row in (w for w in WORKS if w.tls == tls):
                taken: dict[str, list[float]] = {kind: [] for kind in KINDS}
                for _ in range(rounds):
                    for kind in KINDS:
                        taken[kind].append(measure(kind, row, relay, packets))
                lines.append(_line(row, taken))
                sys.stderr.write(lines[-1] + "\n")
    return "\n".join(lines)


def _line(row: Work, taken: dict[str, list[float]]) -> str:
    median = {kind: statistics.median(values) for kind, values in taken.items()}
    cells = [row.title, *(f"{median[kind]:.2f}" for kind in KINDS)]
    for kind in KINDS[1:]:
        ratios = [ours / go for ours, go in zip(taken[kind], taken["go"], strict=True)]
        ratio = median[kind] / median["go"]
        cells.append(f"**{ratio:.2f}** ({min(ratios):.2f}–{max(ratios):.2f})")
    return f"| {' | '.join(cells)} |"


PAGE = """# The client, against Go's

CPU microseconds a packet of 1,200 B, of the client's process alone; medians of {rounds} rounds of
{packets:,} packets, taken in turn. Written by `python bench/client.py --write`; how to read it is
in [README.md](README.md). In brackets: the lowest and highest ratio of a round.

{table}

pyderp {version}; Go's client is `derp/derphttp` of Tailscale {tailscale}. {machine}
"""


def main() -> int:
    """Run the command line; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5, help="default %(default)s")
    parser.add_argument(
        "--packets", type=int, default=96_000, help="whole bursts of 24; default %(default)s"
    )
    parser.add_argument("--write", action="store_true", help=f"write {RESULTS.name}")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.worker:
        worker(json.loads(args.worker))
        return 0
    try:
        go = machine.module_version(peers.build(SOURCE, "clientpeer"))
        table = compare(args.rounds, args.packets)
    except BenchError as e:
        sys.stderr.write(f"bench: {e}\n")
        return 1
    page = PAGE.format(
        rounds=args.rounds,
        packets=args.packets,
        table=table,
        version=pyderp.__version__,
        tailscale=go,
        machine=machine.one_line(),
    )
    if args.write:
        RESULTS.write_text(page)
    else:
        print(page)
    return 0


if __name__ == "__main__":
    sys.exit(main())
