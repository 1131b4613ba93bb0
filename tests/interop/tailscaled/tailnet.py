"""A tailnet of two nodes: relay and control server in the hub, one tailscaled in each node."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tests.interop.relays import Kind

from .namespaces import HUB_ADDRESS, Namespace, Network, private_network
from .peers import need
from .processes import Daemon, daemon, eventually, quiet_environment

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

REGION_ID = 900
REGION_CODE = "lab"
RELAY_PORT = 8443
"""Any port will do: no other server is in the hub's namespace, made for one relay."""


@dataclass(frozen=True)
class Relay:
    """How to start one kind of relay; all kinds have the same options, pyderp's in GNU spelling."""

    kind: Kind
    tls: bool

    def __str__(self) -> str:
        """Return the name by which test identifiers call it."""
        return f"{self.kind}-{'tls' if self.tls else 'plain'}"

    def command(self, directory: Path) -> list[str]:
        """Return the command line; key and certificate live in ``directory``."""
        if self.kind == "pyderp":
            program, dashes = [sys.executable, "-m", "pyderp", "relay", "--no-stun"], "--"
        else:
            program, dashes = [str(need(self.kind)), "-stun=false"], "-"
        options = ["http-port=-1"]
        if self.tls:
            options += ["certmode=manual", f"hostname={HUB_ADDRESS}"]
            options += [f"certdir={directory / 'certs'}"]
        elif self.kind == "pyderp":
            options += ["no-tls"]
        # Without a certificate mode, and on a port other than 443, derper speaks plain HTTP.
        return [
            *program,
            *(["-a", f"{HUB_ADDRESS}:{RELAY_PORT}", "-c", str(directory / "relay.key")]),
            *(f"{dashes}{option}" for option in options),
        ]

    @contextmanager
    def run(self, hub: Namespace, directory: Path) -> Iterator[Daemon]:
        """Run the relay in ``hub`` until the block ends; it listens when the block begins."""
        args, env = self.command(directory), quiet_environment(directory)
        with daemon(hub, args, directory / "relay.log", env) as relay:
            relay.wait_for("a relay that listens", lambda: hub.listens_on(RELAY_PORT))
            yield relay
        crashes = re.findall("Traceback|panic", relay.log.read_text(errors="replace"))
        assert not crashes, relay.tail(60)

    def derp_map(self, relay: Daemon) -> dict[str, Any]:
        """Return a map of this relay alone, built from the node that it logged, if it uses TLS."""
        node: dict[str, Any] = {"Name": "custom", "RegionID": REGION_ID, "HostName": HUB_ADDRESS}
        if self.tls:
            node = json.loads(relay.wait_for_line(r'(\{"Name":"custom".*\})'))
        node |= {"IPv4": HUB_ADDRESS, "IPv6": "none", "DERPPort": RELAY_PORT, "STUNPort": -1}
        region = {"RegionID": REGION_ID, "RegionCode": REGION_CODE, "RegionName": "Laboratory"}
        return {
            "OmitDefaultRegions": True,
            "Regions": {str(REGION_ID): region | {"Nodes": [node]}},
        }


@dataclass(frozen=True)
class Node:
    """One tailscaled, addressed through its command-line client."""

    name: str
    namespace: Namespace
    directory: Path

    @property
    def address(self) -> str:
        """The node's Tailscale IPv4 address."""
        address: str = self.status()["Self"]["TailscaleIPs"][0]
        return address

    @property
    def _socket(self) -> Path:
        return self.directory / "daemon.sock"

    def command(self, *args: str) -> list[str]:
        """Return the command line of ``tailscale args`` against this node's daemon."""
        client = [str(need("tailscale")), f"--socket={self._socket}", *args]
        return self.namespace.command(client)

    def cli(self, *args: str, timeout: float = 30) -> subprocess.CompletedProcess[str]:
        """Run ``tailscale args``; return its outcome, whatever it is."""
        env = quiet_environment(self.directory)
        return subprocess.run(
            self.command(*args), capture_output=True, text=True, env=env, timeout=timeout
        )

    def status(self) -> dict[str, Any]:
        """Return ``tailscale status --json``."""
        outcome = self.cli("status", "--json")
        assert outcome.stdout, outcome.stderr
        status: dict[str, Any] = json.loads(outcome.stdout)
        return status

    def peer(self) -> dict[str, Any]:
        """Return what this node has about the only other node, or nothing as yet."""
        peers: dict[str, dict[str, Any]] = self.status().get("Peer") or {}
        return next(iter(peers.values()), {})

    def traffic(self, direction: str) -> dict[str, int]:
        """Return the bytes carried ``inbound`` or ``outbound`` so far, by path, if not none."""
        exposition = self.cli("metrics", "print").stdout
        series = rf'^tailscaled_{direction}_bytes_total\{{path="(\w+)"\}} (\d+)$'
        found = re.findall(series, exposition, re.MULTILINE)
        return {path: int(count) for path, count in found if int(count)}

    @contextmanager
    def run(self, tls: bool) -> Iterator[Daemon]:
        """Run the daemon, not logged in, until the block ends."""
        etc = self.directory / "etc"
        etc.mkdir()
        args = [
            # A starting tailscaled tidies up the resolv.conf left by an earlier one, which may
            # be the user's own: show it an empty /etc, in the mount namespace `ip netns` made.
            *("sh", "-c", 'mount --bind "$0" /etc && exec "$@"', str(etc)),
            str(need("tailscaled")),
            "--tun=userspace-networking",
            "--port=0",
            f"--statedir={self.directory}",
            f"--socket={self._socket}",
            "--no-logs-no-support",
            "--encrypt-state=false",
            "--hardware-attestation=false",
            "--syspolicy-file=",
        ]
        env = quiet_environment(
            self.directory,
            TS_LOGS_DIR=str(self.directory),
            TS_NO_LOGS_NO_SUPPORT="true",
            TS_DISABLE_PORTMAPPER="true",
            TS_PANIC_IF_HIT_MAIN_CONTROL="true",
            TS_DEBUG_USE_DERP_HTTP=str(not tls).lower(),
        )
        with daemon(self.namespace, args, self.directory / f"{self.name}.log", env) as process:
            process.wait_for("the daemon's socket", self._socket.exists)
            yield process

    def log_in(self, control_url: str) -> None:
        """Join the tailnet; the control server asks for no credentials."""
        options = ["--accept-dns=false", f"--hostname={self.name}", "--timeout=20s"]
        outcome = self.cli("up", f"--login-server={control_url}", *options)
        assert outcome.returncode == 0, outcome.stderr


@dataclass(frozen=True)
class Tailnet:
    """Two nodes that know each other and have the relay as their home."""

    network: Network
    a: Node
    b: Node
    restart_relay: Callable[[], None]
    """Stop the relay, and start it again with the same key and certificate."""


def wait_until_acquainted(nodes: Sequence[Node]) -> None:
    """Wait until every node has its home region, and that of the other."""
    for node in nodes:

        def acquainted(node: Node = node) -> bool:
            homes = (node.status()["Self"]["Relay"], node.peer().get("Relay"))
            return homes == (REGION_CODE, REGION_CODE)

        eventually(f"{node.name} knowing both homes", acquainted, timeout=30)


@contextmanager
def tailnet(relay: Relay, directory: Path) -> Iterator[Tailnet]:
    """Run the whole of it, with logs and state in ``directory``, until the block ends."""
    for program in ("tailscaled", "tailscale", "controlserver"):
        need(program)
    with ExitStack() as stack:
        network = stack.enter_context(private_network())
        running = stack.enter_context(relay.run(network.hub, directory))

        def restart_relay() -> None:
            nonlocal running
            running.stop()
            running = stack.enter_context(relay.run(network.hub, directory))

        derp_map = directory / "derpmap.json"
        derp_map.write_text(json.dumps(relay.derp_map(running)))
        args = [str(need("controlserver")), "-listen", f"{HUB_ADDRESS}:0", "-derp-map"]
        env = quiet_environment(directory)
        control = stack.enter_context(
            daemon(network.hub, [*args, str(derp_map)], directory / "control.log", env)
        )
        control_url = control.wait_for_line(r"^ready (\S+)$")
        nodes = []
        for name, namespace in (("a", network.a), ("b", network.b)):
            node = Node(name, namespace, directory / name)
            node.directory.mkdir()
            stack.enter_context(node.run(relay.tls))
            nodes.append(node)
        try:
            with ThreadPoolExecutor() as pool:  # a login waits some seconds for a STUN answer
                list(pool.map(lambda node: node.log_in(control_url), nodes))
            wait_until_acquainted(nodes)
        except (AssertionError, TimeoutError) as error:
            error.add_note(running.tail())
            raise
        yield Tailnet(network, nodes[0], nodes[1], restart_relay)
