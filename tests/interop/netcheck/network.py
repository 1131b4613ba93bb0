"""A client, a router, and three relays behind it, each in a network namespace of its own.

::

    client                  router                       relays: one network each, N = 1, 2, 3
    10.81.9.2/24  ── veth ── 10.81.9.1 … 10.81.N.1 ── veth ── 10.81.N.2/24
    fd81:9::2/64             fd81:9::1   fd81:N::1             fd81:N::2/64

The first relay is near; to the second and the third, which one reaches through a forwarder, a
round trip takes longer. The client has routes to these networks and to no other, and no
interface leads to the machine's own network. The control server and tailscaled run at the client,
which they reach by loopback: whatever the router does to packets, they go on working.
"""

from __future__ import annotations

import itertools
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.interop.peers import need
from tests.interop.relays import NEWER, OLDER, Kind
from tests.interop.tailscaled.namespaces import Namespace
from tests.interop.tailscaled.peers import missing, need_namespaces
from tests.interop.tailscaled.processes import Daemon, daemon, quiet_environment
from tests.interop.tailscaled.tailnet import Node

KINDS: tuple[Kind, ...] = (OLDER, NEWER, "pyderp")
"""The relays of the three regions, 901 to 903."""
ROUND_TRIPS = (0, 40, 150)
"""Milliseconds to each of them, by UDP and by TCP."""
NEAR, MIDDLE, FAR = 901, 902, 903
NAT = "10.81.0.9"
"""An address of the router, for translated packets."""
TABLE = "inet test"
_serial = itertools.count(1)


@dataclass(frozen=True)
class Network:
    """The whole running network."""

    client: Namespace
    router: Namespace
    node: Node
    """The tailscaled at the client."""
    derp_map: Path

    def ours(self, *flags: str) -> dict[str, Any]:
        """The report of `pyderp netcheck`."""
        command = [sys.executable, "-m", "pyderp", "netcheck", str(self.derp_map), "--json", *flags]
        outcome = self._run(self.client.command(command))
        assert "Traceback" not in outcome.stderr, outcome.stderr
        assert outcome.stdout, outcome.stderr
        report: dict[str, Any] = json.loads(outcome.stdout)
        return report

    def text(self, *flags: str) -> subprocess.CompletedProcess[str]:
        """The output of `pyderp netcheck`."""
        command = [sys.executable, "-m", "pyderp", "netcheck", str(self.derp_map), *flags]
        return self._run(self.client.command(command))

    def their_text(self) -> str:
        """The output of `tailscale netcheck`."""
        return self._run(self.node.command("netcheck")).stdout

    def theirs(self) -> dict[str, Any]:
        """The report of `tailscale netcheck`."""
        outcome = self._run(self.node.command("netcheck", "--format=json"))
        assert outcome.stdout, outcome.stderr
        report: dict[str, Any] = json.loads(outcome.stdout)
        return report

    def _run(self, command: Sequence[str]) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            command,
            capture_output=True,
            text=True,
            timeout=60,
            env=quiet_environment(self.node.directory),
            cwd=self.node.directory,
        )

    @contextmanager
    def rules(self, *rules: str) -> Iterator[None]:
        """The router applies this to packets that it forwards (nftables), until the block ends.

        Args:
            rules: of the chain `forward`; those that begin with `nat ` of the chain
                `postrouting`, with `dnat ` of the chain `prerouting`.
        """
        lines = [
            f"add table {TABLE}",
            f"add chain {TABLE} forward {{ type filter hook forward priority 0; }}",
            f"add chain {TABLE} postrouting {{ type nat hook postrouting priority 100; }}",
            f"add chain {TABLE} prerouting {{ type nat hook prerouting priority -100; }}",
        ]
        chains = {"nat": "postrouting", "dnat": "prerouting"}
        for rule in rules:
            first, _, rest = rule.partition(" ")
            chain = chains.get(first, "forward")
            lines.append(f"add rule {TABLE} {chain} {rest if first in chains else rule}")
        command = ["ip", "netns", "exec", self.router.name, "nft", "-f", "-"]
        subprocess.run(command, input="\n".join(lines), text=True, check=True, timeout=10)
        try:
            yield
        finally:
            self.router.run("nft", "delete", "table", *TABLE.split())

    @contextmanager
    def without(self, version: int) -> Iterator[None]:
        """The client's link has no address of an IP version, until the block ends."""
        ip(self.client, f"-{version}", "address", "flush", "dev", "uplink")
        try:
            yield
        finally:
            _address_client(self.client, version)


def ip(namespace: Namespace, *command: str) -> None:
    subprocess.run(["ip", "-n", namespace.name, *command], check=True, timeout=10)


def _address_client(client: Namespace, version: int) -> None:
    if version == 4:
        ip(client, "address", "add", "10.81.9.2/24", "dev", "uplink")
        ip(client, "route", "replace", "10.81.0.0/16", "via", "10.81.9.1")
    else:
        ip(client, "address", "add", "fd81:9::2/64", "dev", "uplink", "nodad")
        ip(client, "route", "replace", "fd81::/16", "via", "fd81:9::1")


def _connect(router: Namespace, namespace: Namespace, number: int) -> None:
    link = f"to{number}"
    peer = ["type", "veth", "peer", "name", "uplink", "netns", namespace.name]
    ip(router, "link", "add", "name", link, *peer)
    ip(router, "address", "add", f"10.81.{number}.1/24", "dev", link)
    ip(router, "address", "add", f"fd81:{number}::1/64", "dev", link, "nodad")
    ip(router, "link", "set", link, "up")
    ip(namespace, "link", "set", "uplink", "up")


def _address_relay(namespace: Namespace, number: int) -> None:
    ip(namespace, "address", "add", f"10.81.{number}.2/24", "dev", "uplink")
    ip(namespace, "address", "add", f"fd81:{number}::2/64", "dev", "uplink", "nodad")
    ip(namespace, "route", "add", "10.81.0.0/16", "via", f"10.81.{number}.1")
    ip(namespace, "route", "add", "fd81::/16", "via", f"fd81:{number}::1")


def _start_relay(
    stack: ExitStack, namespace: Namespace, number: int, kind: Kind, directory: Path
) -> Daemon:
    directory.mkdir()
    dashes, program = "-", [str(need(kind))] if kind != "pyderp" else []
    if kind == "pyderp":
        dashes, program = "--", [sys.executable, "-m", "pyderp", "relay"]
    options = ["http-port=80", "stun-port=3478", "certmode=manual"]
    options += [f"certdir={directory}", f"hostname=10.81.{number}.2"]
    args = [*program, "-a", ":443", "-c", str(directory / "relay.key")]
    args += [f"{dashes}{option}" for option in options]
    env = quiet_environment(directory)
    relay = stack.enter_context(daemon(namespace, args, directory / "relay.log", env))
    relay.wait_for("a relay that listens", lambda: namespace.listens_on(443))
    return relay


def _start_forwarder(
    stack: ExitStack, namespace: Namespace, round_trip: int, directory: Path
) -> None:
    script = str(Path(__file__).with_name("forwarder.py"))
    args = [sys.executable, script, str(round_trip), "udp:4478:3478", "tcp:4443:443"]
    env = quiet_environment(directory)
    forwarder = stack.enter_context(daemon(namespace, args, directory / "forwarder.log", env))
    forwarder.wait_for_line("^(ready)$")


def _node(number: int, relay: Daemon, *, forwarded: bool) -> dict[str, Any]:
    pin = relay.wait_for_line(r"(sha256-raw:[0-9a-f]{64})")
    node = {
        "Name": f"{900 + number}a",
        "RegionID": 900 + number,
        "HostName": f"10.81.{number}.2",
        "CertName": pin,
        "IPv4": f"10.81.{number}.2",
        "IPv6": f"fd81:{number}::2",
        "CanPort80": True,
    }
    return node | ({"DERPPort": 4443, "STUNPort": 4478} if forwarded else {})


@contextmanager
def network(directory: Path) -> Iterator[Network]:
    """Build it, with logs and state in a directory, until the block ends."""
    need_namespaces()
    if shutil.which("nft") is None:
        missing("program nft", "install the package nftables")
    if not os.path.exists("/proc/sys/net/ipv6"):
        missing("IPv6", "use a kernel that has it")
    for program in ("tailscale", "tailscaled", "controlserver", OLDER, NEWER):
        need(program)
    prefix = f"pyderp-{os.getpid()}-nc{next(_serial)}"
    with ExitStack() as stack:
        spaces = []
        for name in ("client", "router", "r1", "r2", "r3"):
            space = Namespace(f"{prefix}-{name}", "")
            subprocess.run(["ip", "netns", "add", space.name], check=True, timeout=10)
            stack.callback(
                subprocess.run, ["ip", "netns", "del", space.name], check=True, timeout=10
            )
            ip(space, "link", "set", "lo", "up")
            spaces.append(space)
        client, router, *relays = spaces
        router.write_sysctl("ipv4/ip_forward", "1")
        router.write_sysctl("ipv6/conf/all/forwarding", "1")
        ip(router, "address", "add", f"{NAT}/32", "dev", "lo")
        client.write_sysctl("ipv4/ping_group_range", "0 2147483647")
        _connect(router, client, 9)
        for version in (4, 6):
            _address_client(client, version)
        regions = {}
        for number, (space, kind, delay) in enumerate(
            zip(relays, KINDS, ROUND_TRIPS, strict=True), 1
        ):
            _connect(router, space, number)
            _address_relay(space, number)
            relay = _start_relay(stack, space, number, kind, directory / f"r{number}")
            if delay:
                _start_forwarder(stack, space, delay, directory)
            regions[str(900 + number)] = {
                "RegionID": 900 + number,
                "RegionCode": f"r{number}",
                "RegionName": f"Region {number}",
                "Nodes": [_node(number, relay, forwarded=bool(delay))],
            }
        derp_map = directory / "derpmap.json"
        derp_map.write_text(json.dumps({"Regions": regions, "omitDefaultRegions": True}))
        node = _start_tailscaled(stack, client, derp_map, directory)
        yield Network(client, router, node, derp_map)


def _start_tailscaled(stack: ExitStack, client: Namespace, derp_map: Path, directory: Path) -> Node:
    args = [str(need("controlserver")), "-listen", "127.0.0.1:0", "-derp-map", str(derp_map)]
    env = quiet_environment(directory)
    control = stack.enter_context(daemon(client, args, directory / "control.log", env))
    url = control.wait_for_line(r"^ready (\S+)$")
    node = Node("a", client, directory / "a")
    node.directory.mkdir()
    stack.enter_context(node.run(tls=True))
    node.log_in(url)
    return node


def latencies(report: dict[str, Any], key: str = "RegionLatency") -> dict[int, float]:
    """Milliseconds by region."""
    return {int(region): ns / 1e6 for region, ns in (report[key] or {}).items()}


def facts(report: dict[str, Any]) -> dict[str, Any]:
    """What two reports of the same network have in common: all but times and addresses.

    A captive portal may or may not be tested, if STUN takes 200 ms.
    """
    same = (
        *("UDP", "IPv4", "IPv6", "IPv4CanSend", "IPv6CanSend", "OSHasIPv6", "ICMPv4"),
        *("MappingVariesByDestIP", "PreferredDERP"),
    )
    found = {name: report[name] for name in same}
    found["CaptivePortal"] = bool(report["CaptivePortal"])
    for name in ("RegionLatency", "RegionV4Latency", "RegionV6Latency"):
        found[name] = sorted(latencies(report, name))
    for name in ("GlobalV4", "GlobalV6"):
        found[name] = re.sub(r":\d+$", "", report[name])
    return found
