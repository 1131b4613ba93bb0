"""What is measured: workloads, and the figures that are compared."""

from __future__ import annotations

from dataclasses import dataclass

MAX_LOSS = 0.01
"""A relay that loses this fraction of the packets or more has not done the work."""

MAX_IDLE_CONNS = 15_000
"""More would run out of loopback ports when two runs follow each other."""


@dataclass(frozen=True, slots=True)
class Scenario:
    """One invocation of the load generator."""

    name: str
    title: str
    args: tuple[str, ...]
    tls: bool = False

    @property
    def idle(self) -> bool:
        """Whether connections are counted, not time."""
        return "idle" in self.args

    def command(self, seconds: float, conns: int) -> list[str]:
        """Return the load generator's arguments, without the relay's address."""
        out = ["-tls", "-sni", "localhost"] if self.tls else []
        out += self.args
        out += ["-conns", str(conns)] if self.idle else ["-t", f"{seconds:g}s"]
        return out


@dataclass(frozen=True, slots=True)
class Row:
    """A figure of a scenario, with the ratio pyderp/derper that it must not exceed."""

    number: int
    scenario: Scenario
    metric: str
    """Key in the load generator's output."""

    unit: str
    target: float | None = None
    """`None`: for information only."""


_BULK = ("-burst", "8", "-split=false")
_RECORDS = ("-burst", "8", "-split=true")
# A window of 16 instead of 24: with more in flight, chance fills single receivers'
# queues of 32 packets, and Go's relay drops more than the 1 % that a row may lose.
_FAN_OUT = ("-pairs", "16", "-dests", "16", "-window", "16")
_RATE = ("-mode", "rate", "-rate", "20000")

BULK = Scenario("bulk", "no TLS, 8 pairs, 1,200 B, 8 packets a write", _BULK)
SINGLE = Scenario(
    "single",
    "no TLS, 8 pairs, 1,200 B, a packet a write, window 4",
    ("-burst", "1", "-window", "4"),
)
FAN_OUT = Scenario(
    "fan-out",
    "no TLS, 16 senders to 16 random receivers, 1,200 B, 8 packets a write",
    (*_FAN_OUT, *_BULK),
)
TLS_PAIRS = Scenario(
    "tls-pairs",
    "TLS 1.3, 8 pairs, 1,200 B, one record a packet, bursts of 8",
    _RECORDS,
    tls=True,
)
TLS_FAN_OUT = Scenario(
    "tls-fan-out",
    "TLS 1.3, 16 senders to 16 random receivers, 1,200 B, one record a packet",
    (*_FAN_OUT, *_RECORDS),
    tls=True,
)
RATE = Scenario("rate", "no TLS, 20,000 packets/s, 8 pairs, 1,200 B", _RATE)
TLS_RATE = Scenario("tls-rate", "TLS 1.3, 20,000 packets/s, 8 pairs, 1,200 B", _RATE, tls=True)
IDLE = Scenario("idle", "no TLS, a connection", ("-mode", "idle"))
TLS_IDLE = Scenario("tls-idle", "TLS 1.3, a connection", ("-mode", "idle"), tls=True)
SMALL = Scenario(
    "small",
    "no TLS, 32 pairs, 100 B, 8 packets a write",
    ("-pairs", "32", "-size", "100", *_BULK),
)

CPU = ("server_us_per_pkt", "CPU µs a packet")
P99 = ("p99_us", "p99 latency µs")
MEMORY = ("KiB_per_conn", "idle memory KiB")
CONNECT = ("server_us_per_connect", "CPU µs a connect + login")

ROWS = (
    Row(1, BULK, *CPU, target=0.25),
    Row(2, SINGLE, *CPU, target=0.50),
    Row(3, FAN_OUT, *CPU, target=0.60),
    Row(4, TLS_PAIRS, *CPU, target=0.50),
    Row(5, TLS_FAN_OUT, *CPU, target=0.65),
    Row(6, RATE, *P99, target=1.0),
    Row(6, TLS_RATE, *P99, target=1.0),
    Row(7, IDLE, *MEMORY, target=0.15),
    Row(7, TLS_IDLE, *MEMORY, target=0.55),
    Row(8, IDLE, *CONNECT, target=0.5),
    Row(8, TLS_IDLE, *CONNECT, target=1.0),
    Row(9, SMALL, *CPU),
    Row(10, RATE, *CPU),
    Row(10, TLS_RATE, *CPU),
)

NUMBERS = frozenset(row.number for row in ROWS)


def select(numbers: frozenset[int]) -> tuple[Row, ...]:
    """Return the rows that bear one of the numbers."""
    return tuple(row for row in ROWS if row.number in numbers)


def scenarios(rows: tuple[Row, ...]) -> tuple[Scenario, ...]:
    """Return the scenarios that the rows need, each once: rows may share one."""
    return tuple(dict.fromkeys(row.scenario for row in rows))
