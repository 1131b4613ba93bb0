"""Real tailscaled daemons, joined only by a DERP relay, work as with Tailscale's own.

Each test runs against Go's ``derper`` too, so that what it expects of pyderp's relay is known to
be what the daemons get from Tailscale's.
"""

from __future__ import annotations

import os
import re
import sys
from functools import partial
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.interop.relays import KINDS

from .namespaces import HUB_ADDRESS
from .peers import need_namespaces
from .processes import daemon, eventually, quiet_environment, round_trip
from .tailnet import REGION_CODE, Node, Relay, Tailnet, tailnet

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.timeout(120)

TLS = [Relay(kind, tls=True) for kind in KINDS]
PLAIN = [Relay(kind, tls=False) for kind in KINDS]
BULK = 5_000_000
"""Bytes sent each way in the bulk transfer."""


@pytest.fixture(scope="module", params=TLS, ids=str)
def relayed(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Tailnet]:
    """Two nodes with no path to each other, both at home on the relay."""
    need_namespaces()
    with tailnet(request.param, tmp_path_factory.mktemp("tailnet")) as net:
        yield net


def test_nodes_have_no_way_to_each_other_or_out(relayed: Tailnet) -> None:
    """A node's routes lead to the hub's one address, not to its peer and not to the internet."""
    for node, other in (
        (relayed.network.a, relayed.network.b),
        (relayed.network.b, relayed.network.a),
    ):
        assert node.reaches(HUB_ADDRESS)
        assert not node.reaches(other.address)
        assert not node.reaches("192.0.2.1")  # documentation address: stands for any other
    assert not relayed.network.hub.reaches("192.0.2.1")


def test_ping_is_answered_through_the_relay(relayed: Tailnet) -> None:
    """Pings are answered over DERP, and the search for a direct path ends without one."""
    outcome = relayed.a.cli("ping", "--c=2", relayed.b.address)
    pongs = outcome.stdout.splitlines()
    assert len(pongs) == 2, outcome
    assert all(f" via DERP({REGION_CODE}) in " in line for line in pongs), outcome
    assert "direct connection not established" in outcome.stderr
    assert_all_traffic_was_relayed(relayed)


def test_bulk_data_arrives_intact(relayed: Tailnet, tmp_path: Path) -> None:
    """Five megabytes through ``tailscale nc`` come back from the other node unchanged."""
    check_bulk_transfer(relayed, tmp_path)


def test_nodes_return_to_a_restarted_relay(relayed: Tailnet) -> None:
    """When the relay comes back with its old key, the nodes reach each other again."""
    relayed.restart_relay()
    for node, other in ((relayed.a, relayed.b), (relayed.b, relayed.a)):
        eventually(f"{node.name} back on the relay", partial(pong, node, other))
    assert_all_traffic_was_relayed(relayed)


@pytest.mark.parametrize("relay", TLS, ids=str)
def test_nodes_leave_the_relay_when_a_direct_path_opens(relay: Relay, tmp_path: Path) -> None:
    """With a direct path the nodes find it; so the tests above would notice one."""
    need_namespaces()
    with tailnet(relay, tmp_path) as net:
        assert pong(net.a, net.b) == f"DERP({REGION_CODE})"
        net.network.open_direct_path()
        direct = rf"{re.escape(net.network.b.address)}:\d+"
        eventually(
            "a direct path",
            lambda: (
                re.fullmatch(direct, pong(net.a, net.b))
                and re.fullmatch(direct, net.a.peer()["CurAddr"])
            ),
        )
        assert net.network.hub.forwarded_packets() > 0


@pytest.mark.parametrize("relay", PLAIN, ids=str)
def test_bulk_data_passes_a_relay_without_tls(relay: Relay, tmp_path: Path) -> None:
    """Daemons told to use plain HTTP are served as well."""
    need_namespaces()
    with tailnet(relay, tmp_path) as net:
        check_bulk_transfer(net, tmp_path)


def check_bulk_transfer(net: Tailnet, directory: Path) -> None:
    """Send random bytes to an echo server on the other node, and compare what returns."""
    sent = os.urandom(BULK)
    echo_server = [sys.executable, str(Path(__file__).with_name("echo_server.py"))]
    env = quiet_environment(directory)
    with daemon(net.network.b, echo_server, directory / "echo.log", env) as echo:
        port = echo.wait_for_line(r"^port (\d+)$")
        command = net.a.command("nc", net.b.address, port)
        received = round_trip(command, env, sent, timeout=30)
    assert len(received) == len(sent)
    assert sha256(received).digest() == sha256(sent).digest()
    for node in (net.a, net.b):
        assert node.traffic("inbound")["derp"] > BULK
        assert node.traffic("outbound")["derp"] > BULK
    assert_all_traffic_was_relayed(net)


def pong(node: Node, other: Node) -> str:
    """Ping once; return the path of the answer, or nothing."""
    outcome = node.cli("ping", "--c=1", "--timeout=2s", "--until-direct=false", other.address)
    match = re.search(r" via (\S+) in ", outcome.stdout)
    return match[1] if match else ""


def assert_all_traffic_was_relayed(net: Tailnet) -> None:
    """Check, by status, counters and kernel, that no packet ever took another way."""
    for node in (net.a, net.b):
        peer = node.peer()
        assert peer["Relay"] == REGION_CODE
        assert peer["CurAddr"] == ""
        assert peer["PeerRelay"] == ""
        assert node.traffic("inbound").keys() <= {"derp"}
        assert node.traffic("outbound").keys() <= {"derp"}
    assert net.network.hub.forwarded_packets() == 0
