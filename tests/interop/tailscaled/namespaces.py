"""A private network of three namespaces: two nodes that share a hub and nothing else.

::

    node a                          hub                           node b
    10.77.1.2/30 ── veth ── 10.77.1.1    10.77.2.1 ── veth ── 10.77.2.2/30
                            10.77.0.1/32 on lo
                            (relay, control server)

The hub does not forward, and a node's only route beyond its link is the one to 10.77.0.1. No
interface leads to the machine's own network, so nothing can leave, and every port is free.
"""

from __future__ import annotations

import itertools
import os
import subprocess
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

HUB_ADDRESS = "10.77.0.1"
_serial = itertools.count(1)


@dataclass(frozen=True)
class Namespace:
    """One network namespace, by its name under ``ip netns``."""

    name: str
    address: str
    """The IPv4 address it is reached by (a node: only from the hub)."""

    def command(self, args: Sequence[str]) -> list[str]:
        """Wrap ``args`` to run inside, and to die with the thread that starts it."""
        return ["ip", "netns", "exec", self.name, "setpriv", "--pdeathsig", "KILL", "--", *args]

    def run(self, *args: str) -> subprocess.CompletedProcess[str]:
        """Run a short command inside and return its outcome, whatever it is."""
        return subprocess.run(self.command(args), capture_output=True, text=True, timeout=10)

    def listens_on(self, port: int) -> bool:
        """Tell whether some process inside listens on the TCP ``port``."""
        return bool(_ip_tool("ss", "-HltnN", self.name, f"sport = :{port}").strip())

    def reaches(self, address: str) -> bool:
        """Tell whether the routing table inside knows any way to ``address``."""
        return self.run("ip", "route", "get", address).returncode == 0

    def forwarded_packets(self) -> int:
        """Return how many IPv4 packets the kernel passed on from one link to another."""
        lines = self.run("cat", "/proc/net/snmp").stdout.splitlines()
        names, values = (line.split() for line in lines if line.startswith("Ip:"))
        return int(dict(zip(names, values, strict=True))["ForwDatagrams"])

    def write_sysctl(self, path: str, value: str) -> None:
        """Set a network parameter inside, by its path below ``/proc/sys/net``."""
        if os.path.exists(f"/proc/sys/net/{path}"):  # a kernel may lack IPv6
            script = f"echo {value} > /proc/sys/net/{path}"
            subprocess.run(self.command(["sh", "-c", script]), check=True)


@dataclass(frozen=True)
class Network:
    """The hub and the two nodes."""

    hub: Namespace
    a: Namespace
    b: Namespace

    def open_direct_path(self) -> None:
        """Let the hub forward, and give each node a route to the other."""
        self.hub.write_sysctl("ipv4/ip_forward", "1")
        for node, gateway, other in (
            (self.a, "10.77.1.1", self.b),
            (self.b, "10.77.2.1", self.a),
        ):
            _ip_tool("ip", "-n", node.name, "route", "add", other.address, "via", gateway)


@contextmanager
def private_network() -> Iterator[Network]:
    """Build the three namespaces, and remove them, with all links, at the end."""
    prefix = f"pyderp-{os.getpid()}-{next(_serial)}"
    hub = Namespace(f"{prefix}-hub", HUB_ADDRESS)
    a = Namespace(f"{prefix}-a", "10.77.1.2")
    b = Namespace(f"{prefix}-b", "10.77.2.2")
    added: list[Namespace] = []
    try:
        for namespace in (hub, a, b):
            _ip_tool("ip", "netns", "add", namespace.name)
            added.append(namespace)
            # A new namespace may inherit "on" from a machine that routes.
            namespace.write_sysctl("ipv4/ip_forward", "0")
            namespace.write_sysctl("ipv6/conf/all/disable_ipv6", "1")
            namespace.write_sysctl("ipv6/conf/default/disable_ipv6", "1")
            _ip_tool("ip", "-n", namespace.name, "link", "set", "lo", "up")
        _ip_tool("ip", "-n", hub.name, "address", "add", f"{HUB_ADDRESS}/32", "dev", "lo")
        _connect(hub, a, "to-a", "10.77.1.1")
        _connect(hub, b, "to-b", "10.77.2.1")
        yield Network(hub, a, b)
    finally:
        # The last reference to a namespace takes its veth ends, and so both ends, away.
        for namespace in added:
            _ip_tool("ip", "netns", "del", namespace.name)


def _connect(hub: Namespace, node: Namespace, link: str, gateway: str) -> None:
    """Lay a veth pair from hub to node, made inside: the machine's own network never sees it."""
    pair = ["type", "veth", "peer", "name", "uplink", "netns", node.name]
    _ip_tool("ip", "-n", hub.name, "link", "add", "name", link, *pair)
    for name, device, address in (
        (hub.name, link, gateway),
        (node.name, "uplink", node.address),
    ):
        _ip_tool("ip", "-n", name, "address", "add", f"{address}/30", "dev", device)
        _ip_tool("ip", "-n", name, "link", "set", device, "up")
    _ip_tool("ip", "-n", node.name, "route", "add", f"{HUB_ADDRESS}/32", "via", gateway)


def _ip_tool(*command: str) -> str:
    outcome = subprocess.run(command, capture_output=True, text=True, timeout=10)
    if outcome.returncode != 0:
        raise RuntimeError(f"{' '.join(command)}: {outcome.stderr.strip()}")
    return outcome.stdout
