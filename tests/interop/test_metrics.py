"""pyderp's metrics beside those of a real ``derper``: same names, types, labels, and numbers."""

from __future__ import annotations

import asyncio
import json
import re
import ssl
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import pytest

import pyderp
from pyderp import ManualTLS
from pyderp.config import RelayConfig
from pyderp.keys import MeshKey, NodePrivate
from tests.server import dial

from .certificates import write_localhost
from .relays import DERPERS, MESH_KEY, OLDER, Kind, running

if TYPE_CHECKING:
    from pathlib import Path

RATES = '{"PerClientRateLimitBytesPerSec": 1000000, "PerClientRateBurstBytes": 2000000}'

# Left out: Go's runtime.
GO = re.compile(r"(go_|goamd64_|memstats_|goroutines$)")
GO_JSON = {"cmdline", "gauge_goroutines", "go_sync_mutex_wait_seconds", "go_version", "memstats"}
GO_JSON |= {"gauge_goamd64_capable", "gauge_goamd64_compiled"}  # since v1.104
# Metrics that pyderp and derper have since v1.104, by derper's name for Prometheus and in JSON.
NEW = {"stun_no_local_addr"}
NEW_JSON = {"counter_no_local_addr"}
# Labels that appear after the first event, after ten seconds.
LATER = {"derp_tcp_rtt"}
LINE = re.compile(r"(\w+)(?:\{(.*)\})? (\S+)")


@dataclass
class Scrape:
    """One relay's `/debug/varz` and `/debug/vars`."""

    types: dict[str, str] = field(default_factory=dict)
    series: dict[tuple[str, frozenset[tuple[str, str]]], float] = field(default_factory=dict)
    variables: dict[str, Any] = field(default_factory=dict)
    kind: Kind = "pyderp"

    @classmethod
    def parse(cls, text: str, variables: str) -> Scrape:
        scrape = cls(variables=json.loads(variables))
        for line in text.splitlines():
            if match := re.match(r"# TYPE (\S+) (\S+)", line):
                scrape.types[match[1]] = match[2]
            elif line and not line.startswith("#"):
                match = LINE.fullmatch(line)
                assert match, line
                labels = frozenset(re.findall(r'(\w+)="([^"]*)"', match[2] or ""))
                scrape.series[match[1], labels] = float(match[3])
                if not re.search("_(bucket|sum|count)$", match[1]):
                    # Without a type it is untyped; derper omits that.
                    scrape.types.setdefault(match[1], "untyped")
        return scrape

    def value(self, name: str, **labels: str) -> float:
        return self.series[name, frozenset(labels.items())]

    def labels(self, *, values: bool) -> set[tuple[str, frozenset[Any]]]:
        return {
            (name, labels if values else frozenset(k for k, _ in labels))
            for name, labels in self.series
            if name not in LATER and name != "version"
        }


async def fetch(address: tuple[str, int], via: dial.Via, path: str) -> str:
    reader, writer = await dial.open_stream(address, via)
    writer.write(f"GET {path} HTTP/1.0\r\nHost: localhost\r\n\r\n".encode())
    answer = await dial.drained(reader)
    await dial.hang_up(writer)
    head, _, body = answer.partition(b"\r\n\r\n")
    assert head.split()[1] == b"200", answer[:300]
    return body.decode()


async def measure(address: tuple[str, int], tls: ssl.SSLContext) -> Scrape:
    """The metrics of a relay after the same little traffic."""
    via = dial.Via(tls=tls, server_name="localhost")
    socket = dial.Via(tls=tls, server_name="localhost", websocket=True)
    shared = NodePrivate.generate()
    clients = [
        await dial.connect(address, via=via),
        await dial.connect(address, via=via, private=shared),
        await dial.connect(address, via=via, private=shared),
        await dial.connect(address, via=socket),
        await dial.connect(address, via=via, mesh_key=MeshKey(bytes.fromhex(MESH_KEY))),
    ]
    try:
        a, _, b, c, watcher = clients
        watcher.session.watch_conns()
        watcher.write()
        await watcher.ping()
        for size in (1, 100, 1000):
            a.send(b, bytes(size))
            assert len(await b.packet()) == size
        c.send(a, b"over a websocket")
        assert await a.packet() == b"over a websocket"
        a.send(NodePrivate.generate().public, bytes(50))
        a.session.note_preferred(True)
        a.write()
        await a.ping()
        varz = await fetch(address, via, "/debug/varz")
        return Scrape.parse(varz, await fetch(address, via, "/debug/vars"))
    finally:
        for client in clients:
            await client.aclose()


def context(directory: Path) -> ssl.SSLContext:
    return ssl.create_default_context(cafile=str(directory / "localhost.crt"))


@pytest.fixture(scope="module", params=DERPERS)
def derper(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Scrape:
    kind: Kind = request.param
    directory = tmp_path_factory.mktemp("derper-metrics")
    rates = directory / "rates.json"
    rates.write_text(RATES)
    with running(kind, "named", directory, options=[f"--rate-config={rates}"]) as relay:
        scrape = asyncio.run(measure(("127.0.0.1", relay.port), context(directory)))
    scrape.kind = kind
    return scrape


@pytest.fixture(scope="module")
def ours(tmp_path_factory: pytest.TempPathFactory) -> Scrape:
    directory = tmp_path_factory.mktemp("pyderp-metrics")
    rates = directory / "rates.json"
    rates.write_text(RATES)
    write_localhost(directory)
    config = RelayConfig(
        tls=ManualTLS(certdir=directory, hostname="localhost"),
        rate_config=rates,
        mesh_key=MeshKey(bytes.fromhex(MESH_KEY)),
    )

    async def main() -> Scrape:
        async with pyderp.Relay(config) as relay:
            return await measure(relay.address, context(directory))

    return asyncio.run(main())


def test_metrics_have_the_same_names_and_types(derper: Scrape, ours: Scrape) -> None:
    theirs = {name: kind for name, kind in derper.types.items() if not GO.match(name)}
    mine = {name: kind for name, kind in ours.types.items() if not name.startswith("pyderp_")}
    assert mine.keys() - theirs.keys() == (NEW if derper.kind == OLDER else set())
    assert {name: kind for name, kind in mine.items() if name in theirs} == theirs


def test_metrics_have_the_same_labels(derper: Scrape, ours: Scrape) -> None:
    theirs = {each for each in derper.labels(values=True) if not GO.match(each[0])}
    mine = {each for each in ours.labels(values=True) if not each[0].startswith("pyderp_")}
    assert theirs <= mine
    # pyderp also counts the queues to other relays, which derper does not have, and packets lost to
    # clients that do not read.
    assert {dict(labels)["reason"] for name, labels in mine - theirs if name not in NEW} == {
        "mesh_link_full",
        "mesh_link_down",
        "write_timeout",
    }
    assert ours.labels(values=False) >= {
        each for each in derper.labels(values=False) if not GO.match(each[0])
    }


def test_json_has_the_same_names(derper: Scrape, ours: Scrape) -> None:
    def names(variables: dict[str, Any]) -> set[str]:
        return {name for name in variables if "pyderp_" not in name}

    assert names(ours.variables) == names(derper.variables) - GO_JSON
    assert set(ours.variables["derp"]) == set(derper.variables["derp"])
    for group in ("stun", "tls_listener"):
        missing = NEW_JSON if derper.kind == OLDER and group == "stun" else set()
        assert set(ours.variables[group]) - missing == set(derper.variables[group])
    for histogram in ("buffered_write_frames", "mesh_update_batch_size", "mesh_update_loop_count"):
        name = f"counter_{histogram}"
        assert list(ours.variables["derp"][name]) == list(derper.variables["derp"][name])


@pytest.mark.parametrize(
    "name",
    [
        "derp_bytes_received",
        "derp_bytes_sent",
        "derp_packets_received",
        "derp_packets_sent",
        "derp_got_ping",
        "derp_sent_pong",
        "derp_home_moves_in",
        "derp_clients_local",
        "derp_accepts",
        "derp_clients_remote",
        "derp_clients_total",
        "derp_current_connections",
        "derp_current_home_connections",
        "derp_current_dup_client_keys",
        "derp_current_dup_client_conns",
        "derp_total_dup_client_conns",
        "derp_watchers",
        "derp_websocket_accepts",
        "derp_unknown_frames",
        "derp_peer_gone_not_here_frames",
        "derp_rate_limit_per_client_bytes_per_second",
        "derp_rate_limit_per_client_burst_bytes",
        "tls_listener_rejected_connections",
    ],
)
def test_the_same_traffic_makes_the_same_numbers(derper: Scrape, ours: Scrape, name: str) -> None:
    assert ours.value(name) == derper.value(name)


def test_the_same_traffic_makes_the_same_numbers_by_label(derper: Scrape, ours: Scrape) -> None:
    for kind in ("disco", "other"):
        for name in ("derp_packets_received_kind",):
            assert ours.value(name, kind=kind) == derper.value(name, kind=kind)
        for name in ("derp_packets_dropped", "derp_bytes_dropped"):
            for reason in ("unknown_dest", "queue_head", "gone_disconnected"):
                labels = {"reason": reason, "kind": kind}
                assert ours.value(name, **labels) == derper.value(name, **labels)
    name = "derper_tls_active_version"
    assert ours.value(name, version="1.3") == derper.value(name, version="1.3")
