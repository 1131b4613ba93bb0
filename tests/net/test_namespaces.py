"""Marks and devices as the kernel sees them, in network namespaces of their own.

::

    client                                    server
    one 10.78.1.2/30 ── veth ── 10.78.1.1     10.78.0.1/32 on lo: greets clients
    two 10.78.2.2/30 ── veth ── 10.78.2.1

The client's route to the server leads over `one`, and, with a higher metric, over `two`; its
default route leads over `two`. Nothing leads to the machine's own network.
"""

from __future__ import annotations

import itertools
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.interop.peers import REPOSITORY, need
from tests.interop.tailscaled.namespaces import Namespace
from tests.interop.tailscaled.peers import need_namespaces
from tests.interop.tailscaled.processes import daemon

from .ways_out import closed_port

MARK = 0x80000
SERVER = "10.78.0.1"
GREETER = Path(__file__).with_name("greeter.py")
_serial = itertools.count(1)
RULES = f"""
add table inet watch
add chain inet watch out {{ type filter hook output priority 0; }}
add rule inet watch out oifname "lo" meta mark {MARK} counter comment "marked on loopback"
add rule inet watch out oifname != "lo" meta mark {MARK} counter comment "marked"
add rule inet watch out oifname != "lo" meta mark 0 tcp flags syn counter comment "unmarked"
"""


@dataclass
class Network:
    """The two namespaces, and a greeter in each of them."""

    client: Namespace
    server: Namespace
    port: int
    loopback_port: int

    def dial(self, *targets: tuple[str, int], **task: Any) -> dict[str, Any]:
        """What `dial_inside` printed in the client's namespace."""
        argument = json.dumps({"dials": targets, **task})
        command = self.client.command([sys.executable, "-m", "tests.net.dial_inside", argument])
        outcome = subprocess.run(
            command, cwd=REPOSITORY, capture_output=True, text=True, timeout=60
        )
        assert outcome.returncode == 0, outcome.stderr
        seen: dict[str, Any] = json.loads(outcome.stdout)
        return seen

    def packets(self) -> dict[str, int]:
        """How many packets each rule has counted."""
        listed = json.loads(self.client.run("nft", "-j", "list", "ruleset").stdout)
        rules = [item["rule"] for item in listed["nftables"] if "rule" in item]
        return {
            rule["comment"]: next(e["counter"]["packets"] for e in rule["expr"] if "counter" in e)
            for rule in rules
        }


def tool(*command: str) -> None:
    subprocess.run(command, check=True, capture_output=True, timeout=10)


def connect(client: Namespace, server: Namespace, device: str, number: int) -> None:
    peer = ["type", "veth", "peer", "name", device, "netns", server.name]
    tool("ip", "-n", client.name, "link", "add", "name", device, *peer)
    for namespace, host in ((client, 2), (server, 1)):
        address = f"10.78.{number}.{host}/30"
        tool("ip", "-n", namespace.name, "address", "add", address, "dev", device)
        tool("ip", "-n", namespace.name, "link", "set", device, "up")
    route = ["via", f"10.78.{number}.1", "dev", device, "metric", str(number)]
    tool("ip", "-n", client.name, "route", "add", f"{SERVER}/32", *route)


@contextmanager
def network(directory: Path) -> Iterator[Network]:
    prefix = f"pyderp-{os.getpid()}-net{next(_serial)}"
    client, server = (Namespace(f"{prefix}-{end}", "") for end in ("client", "server"))
    with ExitStack() as stack:
        for namespace in (client, server):
            tool("ip", "netns", "add", namespace.name)
            stack.callback(tool, "ip", "netns", "del", namespace.name)
            tool("ip", "-n", namespace.name, "link", "set", "lo", "up")
        tool("ip", "-n", server.name, "address", "add", f"{SERVER}/32", "dev", "lo")
        connect(client, server, "one", 1)
        connect(client, server, "two", 2)
        tool("ip", "-n", client.name, "route", "add", "default", "via", "10.78.2.1", "dev", "two")
        subprocess.run(
            client.command(["nft", "-f", "-"]), input=RULES, text=True, check=True, timeout=10
        )
        ports = []
        for namespace, address in ((server, SERVER), (client, "127.0.0.1")):
            log = directory / f"{namespace.name}.log"
            args = [sys.executable, str(GREETER), address]
            greeter = stack.enter_context(daemon(namespace, args, log, dict(os.environ)))
            ports.append(int(greeter.wait_for_line(r"^port (\d+)$")))
        yield Network(client, server, *ports)


@pytest.fixture(scope="module")
def net(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Network]:
    need_namespaces()
    need("nft")
    with network(tmp_path_factory.mktemp("network")) as built:
        yield built


def test_without_settings_sockets_are_plain(net: Network) -> None:
    before = net.packets()
    seen = net.dial((SERVER, net.port))
    after = net.packets()
    assert seen == {"reached": ["10.78.1.2"], "sockets": [[0, ""]]}
    assert after["marked"] == before["marked"]
    assert after["unmarked"] > before["unmarked"]


def test_the_kernel_sees_the_mark(net: Network) -> None:
    before = net.packets()
    seen = net.dial((SERVER, net.port), settings={"socket_mark": MARK})
    after = net.packets()
    assert seen == {"reached": ["10.78.1.2"], "sockets": [[MARK, ""]]}
    assert after["marked"] > before["marked"]
    assert after["unmarked"] == before["unmarked"]


def test_a_bound_socket_takes_its_device(net: Network) -> None:
    for device, address in (("one", "10.78.1.2"), ("two", "10.78.2.2")):
        seen = net.dial((SERVER, net.port), settings={"bind_device": device})
        assert seen == {"reached": [address], "sockets": [[0, device]]}


def test_the_environment_binds_to_the_default_route(net: Network) -> None:
    seen = net.dial((SERVER, net.port), bind_to_default_route=True)
    assert seen == {"reached": ["10.78.2.2"], "sockets": [[0, "two"]]}


def test_loopback_is_exempt(net: Network) -> None:
    before = net.packets()
    settings = {"socket_mark": MARK, "bind_device": "two"}
    seen = net.dial(("127.0.0.1", net.loopback_port), settings=settings)
    assert seen == {"reached": ["127.0.0.1"], "sockets": [[0, ""]]}
    assert net.packets() == before


def test_the_hook_sees_every_socket_and_those_to_a_proxy_are_marked(net: Network) -> None:
    """Neither proxy nor destination answers: each dial made one socket."""
    refusing = closed_port()
    settings = {"socket_mark": MARK, "proxy": f"socks5://{SERVER}:{refusing}"}
    seen = net.dial(("derp.example.com", 443), (SERVER, net.port), settings=settings)
    assert seen["sockets"] == [[MARK, ""]] * 2
    for text in seen["reached"]:
        assert re.search(f"proxy socks5://{SERVER}:{refusing}: .*: Connection refused", text)


def test_a_device_that_does_not_exist_is_a_dial_error(net: Network) -> None:
    seen = net.dial((SERVER, net.port), settings={"bind_device": "three"})
    assert seen["sockets"] == []
    assert seen["reached"] == [f"DialError: dial of {SERVER}: bind_device 'three': No such device"]
