"""The scenarios that are measured, the figures that are compared, and the targets."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

MAX_LOSS = 0.01
"""Fraction of packets; a row with a relay that loses so many or more is void."""

MAX_OWN_LOSS = 0.001
"""Fraction of packets; a relay that loses so many or more gets a note."""

MAX_IDLE_CONNS = 15_000
"""With more connections, two runs in a row would need more ports than loopback has."""

CURVE_PEERS = (2, 20, 100, 500, 2000, 5000)
QUICK_PEERS = (2, 100, 500, 5000)


class Group(Enum):
    """A section of the page; the value is its heading."""

    SPEED = "Full speed, limited by a window"
    CURVE = "Single packets of many peers, 10,000 packets/s"
    STEADY = "20,000 packets/s, 8 pairs"
    WEBSOCKET = "Websockets"
    SIZE = "Small and large packets"
    THROUGHPUT = "Throughput until loss"
    CONNECT = "Connects and idle connections"
    STARTUP = "Start-up"


class Kind(Enum):
    """What ends a run of a scenario."""

    TIME = "time"
    CONNECTIONS = "connections"
    RATES = "rates"
    STARTS = "starts"


@dataclass(frozen=True, slots=True)
class Scenario:
    """One invocation of the load generator, or one series of starts."""

    name: str
    title: str
    group: Group
    args: tuple[str, ...] = ()
    tls: bool = False
    kind: Kind = Kind.TIME

    def command(self, seconds: float, conns: int) -> list[str]:
        """Return the load generator's arguments, without the relay's address."""
        out = ["-tls", "-sni", "localhost"] if self.tls else []
        out += self.args
        match self.kind:
            case Kind.TIME:
                out += ["-t", f"{seconds:g}s"]
            case Kind.CONNECTIONS:
                out += ["-conns", str(conns)]
            case Kind.RATES:
                out += ["-t", "1s", "-warmup", "200ms"]
            case Kind.STARTS:
                out.clear()
        return out


@dataclass(frozen=True, slots=True)
class Metric:
    """A figure in the load generator's output."""

    key: str
    unit: str
    more_is_better: bool = False


CPU = Metric("server_us_per_pkt", "CPU µs a packet")
P50 = Metric("p50_us", "p50 latency µs")
P99 = Metric("p99_us", "p99 latency µs")
P999 = Metric("p999_us", "p99.9 latency µs")
MEMORY = Metric("KiB_per_conn", "idle memory KiB")
CONNECT = Metric("server_us_per_connect", "CPU µs a connect + login")
CEILING = Metric("max_pkts_per_s", "packets/s", more_is_better=True)
START = Metric("start_ms", "ms until it serves")
RSS = Metric("rss_MiB", "RSS MiB after the start")


@dataclass(frozen=True, slots=True)
class Row:
    """A figure of a scenario; the README shows rows with `readme`, and rows with a bad ratio."""

    scenario: Scenario
    metric: Metric
    readme: bool = False


def _tls_word(tls: bool) -> str:
    return "TLS 1.3" if tls else "no TLS"


_BULK = ("-burst", "8", "-split=false")
_RECORDS = ("-burst", "8", "-split=true")
_SINGLES = ("-burst", "1", "-window", "4")
# A window of 16 instead of 24: with more in flight, the queues of single receivers (32
# packets) fill by chance, and Go's relay drops more than the 1 % that a row may lose.
_FAN_OUT = ("-pairs", "16", "-dests", "16", "-window", "16")
_RATE = ("-mode", "rate", "-rate", "20000")
# Bursts of 4 instead of 8 packets: 8 of 16 KiB would fill the kernel's buffers.
_LARGE = ("-size", "16384", "-burst", "4", "-window", "8")

SINGLE = Scenario(
    "single", "no TLS, 8 pairs, 1,200 B, a packet a write, window 4", Group.SPEED, _SINGLES
)
TLS_PAIRS = Scenario(
    "tls-pairs",
    "TLS 1.3, 8 pairs, 1,200 B, one record a packet, bursts of 8",
    Group.SPEED,
    _RECORDS,
    tls=True,
)
TLS_FAN_OUT = Scenario(
    "tls-fan-out",
    "TLS 1.3, 16 senders to 16 random receivers, 1,200 B, one record a packet",
    Group.SPEED,
    (*_FAN_OUT, *_RECORDS),
    tls=True,
)
_SPEED = (
    Scenario("bulk", "no TLS, 8 pairs, 1,200 B, 8 packets a write", Group.SPEED, _BULK),
    SINGLE,
    Scenario(
        "fan-out",
        "no TLS, 16 senders to 16 random receivers, 1,200 B, 8 packets a write",
        Group.SPEED,
        (*_FAN_OUT, *_BULK),
    ),
    TLS_PAIRS,
    TLS_FAN_OUT,
    Scenario(
        "small",
        "no TLS, 32 pairs, 100 B, 8 packets a write",
        Group.SPEED,
        ("-pairs", "32", "-size", "100", *_BULK),
    ),
)


def curve(peers: int, *, tls: bool, websocket: bool = False) -> Scenario:
    """Return the scenario of a number of peers that send single packets to each other."""
    way = f"websocket, {_tls_word(tls)}" if websocket else _tls_word(tls)
    args: tuple[str, ...] = ("-mode", "rate", "-rate", "10000", "-peers", str(peers))
    # The warm-up lasts until the work that thousands of logins leave behind is done.
    args += ("-parallel", "64", "-warmup", "1500ms")
    return Scenario(
        ("ws-" if websocket else "") + ("tls-" if tls else "") + f"peers-{peers}",
        f"{way}, {peers:,} peers, 1,200 B, 10,000 packets/s to random peers, a packet a write",
        Group.WEBSOCKET if websocket else Group.CURVE,
        (*args, "-ws") if websocket else args,
        tls=tls,
    )


def _both(
    name: str, title: str, group: Group, args: tuple[str, ...], kind: Kind = Kind.TIME
) -> tuple[Scenario, Scenario]:
    """Return a scenario without TLS and with it."""
    return (
        Scenario(name, f"no TLS, {title}", group, args, kind=kind),
        Scenario(f"tls-{name}", f"TLS 1.3, {title}", group, args, tls=True, kind=kind),
    )


RATE, TLS_RATE = _both("rate", "8 pairs, 1,200 B, 20,000 packets/s", Group.STEADY, _RATE)
IDLE, TLS_IDLE = _both("idle", "a connection", Group.CONNECT, ("-mode", "idle"), Kind.CONNECTIONS)
CURVES = tuple(curve(peers, tls=tls) for tls in (False, True) for peers in CURVE_PEERS)
_WEBSOCKETS = (
    *_both(
        "ws-single",
        "websocket, 8 pairs, 1,200 B, a packet a message, window 4",
        Group.WEBSOCKET,
        (*_SINGLES, "-ws"),
    ),
    curve(100, tls=False, websocket=True),
    curve(100, tls=True, websocket=True),
)
_SIZES = (
    *_both("64", "8 pairs, 64 B, a packet a write, bursts of 8", Group.SIZE, ("-size", "64")),
    *_both("16k", "8 pairs, 16 KiB, a packet a write, bursts of 4", Group.SIZE, _LARGE),
)
_CEILINGS = _both(
    "ceiling",
    "16 peers, 1,200 B to random peers, a packet a write, highest rate with at most 0.1 % lost",
    Group.THROUGHPUT,
    ("-mode", "ceiling", "-rate", "20000"),
    Kind.RATES,
)
_STARTS = _both("start", "from the start of the process", Group.STARTUP, (), Kind.STARTS)

ROWS = (
    *(Row(s, CPU, readme=True) for s in _SPEED),
    *(
        Row(s, m, readme=m is CPU and s.name.endswith(("-100", "-5000")))
        for s in CURVES
        for m in (CPU, P50, P99, P999)
    ),
    *(Row(s, m, readme=m is P99) for s in (RATE, TLS_RATE) for m in (CPU, P50, P99)),
    *(Row(s, CPU, readme=s.tls) for s in _WEBSOCKETS),
    *(Row(s, P99) for s in _WEBSOCKETS[2:]),
    *(Row(s, CPU) for s in _SIZES),
    *(Row(s, CEILING) for s in _CEILINGS),
    *(Row(s, m, readme=True) for m in (MEMORY, CONNECT) for s in (IDLE, TLS_IDLE)),
    *(Row(s, m, readme=s is _STARTS[1]) for s in _STARTS for m in (START, RSS)),
)

SCENARIOS = tuple(dict.fromkeys(row.scenario for row in ROWS))
NAMES = tuple(s.name for s in SCENARIOS)
GROUPS = tuple(group.name.lower() for group in Group)
QUICK = tuple(
    s for s in SCENARIOS if s.group is not Group.CURVE or int(s.name.split("-")[-1]) in QUICK_PEERS
)
"""What a quick run measures."""


def select(words: tuple[str, ...]) -> tuple[Scenario, ...]:
    """Return the scenarios with one of the names, or in one of the groups."""
    return tuple(s for s in SCENARIOS if s.name in words or s.group.name.lower() in words)


@dataclass(frozen=True, slots=True)
class Target:
    """The highest ratio to derper that the worst of some scenarios may have."""

    title: str
    scenarios: tuple[Scenario, ...]
    metric: Metric
    pure: float
    fast: float


def _busy(tls: bool) -> tuple[Scenario, ...]:
    return tuple(curve(peers, tls=tls) for peers in CURVE_PEERS if peers >= 100)


_WORST = "single packets at 10,000/s, worst of 100 … 5,000 peers"
TARGETS = (
    Target("no TLS, a packet a write, window 4", (SINGLE,), CPU, 0.60, 0.50),
    Target(f"no TLS, {_WORST}", _busy(False), CPU, 0.70, 0.60),
    Target(f"TLS, {_WORST}", _busy(True), CPU, 1.15, 0.82),
    Target("TLS, 8 pairs, bursts of 8", (TLS_PAIRS,), CPU, 0.80, 0.45),
    Target("TLS, 16 senders to 16 random receivers", (TLS_FAN_OUT,), CPU, 0.85, 0.50),
    Target("TLS, 20,000 packets/s, 8 pairs", (TLS_RATE,), P99, 1.3, 0.9),
    Target("connect, no TLS", (IDLE,), CONNECT, 0.60, 0.60),
    Target("connect, TLS", (TLS_IDLE,), CONNECT, 0.90, 0.70),
)
