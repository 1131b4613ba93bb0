"""A real ``tailscaled`` decides about admission; no client is admitted without it."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from pyderp import NodePrivate, NodePublic
from pyderp.admission import ClientIdentity, Verdict
from pyderp.admission.gate import Gate
from pyderp.config import AdmissionConfig
from tests.interop.tailscaled.namespaces import HUB_ADDRESS, private_network
from tests.interop.tailscaled.peers import need, need_namespaces
from tests.interop.tailscaled.processes import Daemon, daemon, eventually, quiet_environment
from tests.interop.tailscaled.tailnet import Node

pytestmark = pytest.mark.timeout(120)

DERP_MAP = {
    "OmitDefaultRegions": True,
    "Regions": {
        "900": {
            "RegionID": 900,
            "RegionCode": "none",
            "Nodes": [
                {
                    "Name": "nobody",
                    "RegionID": 900,
                    "HostName": HUB_ADDRESS,
                    "IPv4": HUB_ADDRESS,
                    "IPv6": "none",
                    "DERPPort": 9,
                    "STUNPort": -1,
                }
            ],
        }
    },
}
"""The control server requires a region; no relay runs there."""


@dataclass
class Machine:
    """The machine of a relay, with its own daemon."""

    node: Node
    running: Daemon
    control_url: str
    other: Node

    @property
    def socket(self) -> Path:
        return self.node.directory / "daemon.sock"


@pytest.fixture
def machine(tmp_path: Path) -> Iterator[Machine]:
    """Two daemons, not logged in; one of them is that of the relay's machine."""
    need_namespaces()
    control_server = need("controlserver")
    with ExitStack() as stack:
        network = stack.enter_context(private_network())
        derp_map = tmp_path / "derpmap.json"
        derp_map.write_text(json.dumps(DERP_MAP))
        args = [str(control_server), "-listen", f"{HUB_ADDRESS}:0", "-derp-map", str(derp_map)]
        log, env = tmp_path / "control.log", quiet_environment(tmp_path)
        control = stack.enter_context(daemon(network.hub, args, log, env))
        control_url = control.wait_for_line(r"^ready (\S+)$")
        nodes, daemons = [], []
        for name, namespace in (("a", network.a), ("b", network.b)):
            node = Node(name, namespace, tmp_path / name)
            node.directory.mkdir()
            daemons.append(stack.enter_context(node.run(tls=False)))
            nodes.append(node)
        yield Machine(nodes[0], daemons[0], control_url, nodes[1])


@contextlib.asynccontextmanager
async def gate_of(machine: Machine, **settings: Any) -> AsyncIterator[Gate]:
    config = AdmissionConfig(
        tailscaled=True, tailscaled_socket=machine.socket, remember=0, **settings
    )
    gate = Gate(config, live=list, revoke=lambda *_: None)
    try:
        await gate.start()
        yield gate
    finally:
        await gate.aclose()


def key_of(status: dict[str, Any]) -> NodePublic:
    return NodePublic.parse(status["PublicKey"])


def test_the_daemon_decides(machine: Machine) -> None:
    """Nodes of its network map are admitted, others are not, and none is once it has stopped."""

    async def before_login() -> None:
        async with gate_of(machine) as gate:
            unknown = NodePrivate.generate().public
            verdict = await gate.ask(ClientIdentity(unknown, "192.0.2.7"))
            assert not verdict.allowed
            assert await gate.check_self() == "localClient.Status: tailscaled is not logged in"

    async def logged_in(own: NodePublic, peer: NodePublic) -> None:
        async with gate_of(machine) as gate:
            for key in (peer, own):
                assert await gate.ask(ClientIdentity(key, "192.0.2.7")) == Verdict(True)
            unknown = NodePrivate.generate().public
            assert await gate.ask(ClientIdentity(unknown, "192.0.2.7")) == Verdict(
                False, f"peer {unknown} not authorized (not found in local tailscaled)"
            )
            assert await gate.check_self() is None
            # The same gate, with a connection that it has kept open.
            await asyncio.to_thread(machine.running.stop)
            verdict = await gate.ask(ClientIdentity(peer, "192.0.2.7"))
            assert (verdict.allowed, verdict.definitive) == (False, False)
            assert "failed to query local tailscaled status" in verdict.reason
            wrong = await gate.check_self()
            assert wrong is not None
            assert wrong.startswith("localClient.Status: cannot connect to ")

    asyncio.run(before_login())
    for node in (machine.node, machine.other):
        node.log_in(machine.control_url)
    eventually("a netmap with the peer", machine.node.peer)
    own, peer = key_of(machine.node.status()["Self"]), key_of(machine.node.peer())
    asyncio.run(logged_in(own, peer))
