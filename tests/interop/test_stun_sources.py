"""A STUN server on a host with several addresses answers from the one that was asked.

::

    client                                   server
    10.79.0.1/24, fd79::1/64     ── veth ──  10.79.0.2/24, 10.79.0.3/24,
    fe80::1/64                               fd79::2/64, fd79::3/64, fe80::2/64, fe80::3/64
                                             10.79.8.8/32, fd79:8::8/128 on lo

The namespaces have no other links, so nothing can leave.
"""

from __future__ import annotations

import itertools
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from .peers import REPOSITORY, need
from .relays import NEWER, Kind
from .stunserver import our_stun_server
from .tailscaled.namespaces import Namespace
from .tailscaled.peers import need_namespaces
from .tailscaled.processes import daemon

CLIENT = ("10.79.0.1/24", "fd79::1/64", "fe80::1/64")
SERVER = (
    *("10.79.0.2/24", "10.79.0.3/24"),
    *("fd79::2/64", "fd79::3/64", "fe80::2/64", "fe80::3/64"),
)
ON_LO = ("10.79.8.8/32", "fd79:8::8/128")
ROUTES = (("10.79.8.8/32", "10.79.0.2"), ("fd79:8::8/128", "fd79::2"))

_serial = itertools.count(1)


@dataclass
class Network:
    client: Namespace
    server: Namespace

    def ask(self, *questions: tuple[str, int, str]) -> list[list[str]]:
        """The source of each answer, and the address in it."""
        argument = json.dumps(questions)
        command = [sys.executable, "-m", "tests.interop.stun_inside", argument]
        outcome = subprocess.run(
            self.client.command(command), cwd=REPOSITORY, capture_output=True, text=True, timeout=60
        )
        assert outcome.returncode == 0, outcome.stderr
        seen: list[list[str]] = json.loads(outcome.stdout)
        return seen

    def serving(self, host: str) -> AbstractContextManager[int]:
        """pyderp's server; yields its port."""
        return our_stun_server(host, self.server.command)


def ip(namespace: Namespace, *command: str) -> None:
    subprocess.run(["ip", "-n", namespace.name, *command], check=True, timeout=10)


def add_addresses(namespace: Namespace, device: str, addresses: tuple[str, ...]) -> None:
    for address in addresses:
        # An IPv6 address that is still being checked for duplicates cannot be used.
        nodad = ["nodad"] if ":" in address else []
        ip(namespace, "address", "add", address, "dev", device, *nodad)


@contextmanager
def derper_serving(net: Network, host: str, directory: Path) -> Iterator[int]:
    """Go's server, of the version that chooses the address; yields its port."""
    port = 3478  # no other process can have it in this namespace
    args = [str(need(NEWER)), "-c", str(directory / "derper.json"), "-http-port=-1"]
    args += [f"-a={host}:3340", f"-stun-port={port}"]
    with daemon(net.server, args, directory / "derper.log", os.environ) as process:
        listening = ("ss", "-HluN", net.server.name, f"sport = :{port}")
        process.wait_for("derper's STUN", lambda: subprocess.check_output(listening).strip())
        yield port


@pytest.fixture(scope="module")
def net() -> Iterator[Network]:
    need_namespaces()
    prefix = f"pyderp-{os.getpid()}-stun{next(_serial)}"
    client, server = (Namespace(f"{prefix}-{end}", "") for end in ("client", "server"))
    with ExitStack() as stack:
        for namespace in (client, server):
            subprocess.run(["ip", "netns", "add", namespace.name], check=True, timeout=10)
            stack.callback(
                subprocess.run, ["ip", "netns", "del", namespace.name], check=True, timeout=10
            )
            ip(namespace, "link", "set", "lo", "up")
        if not os.path.exists("/proc/sys/net/ipv6"):
            pytest.skip("this kernel has no IPv6")
        peer = ["type", "veth", "peer", "name", "veth", "netns", server.name]
        ip(client, "link", "add", "name", "veth", *peer)
        for namespace, addresses in ((client, CLIENT), (server, SERVER)):
            add_addresses(namespace, "veth", addresses)
            ip(namespace, "link", "set", "veth", "up")
        add_addresses(server, "lo", ON_LO)
        for destination, gateway in ROUTES:
            ip(client, "route", "add", destination, "via", gateway, "dev", "veth")
        yield Network(client, server)


def serving(kind: Kind, net: Network, host: str, directory: Path) -> AbstractContextManager[int]:
    return net.serving(host) if kind == "pyderp" else derper_serving(net, host, directory)


of_both = pytest.mark.parametrize("kind", [NEWER, "pyderp"])
V4 = ("10.79.0.3", "10.79.0.2", "10.79.8.8")
V6 = ("fd79::3", "fd79::2", "fd79:8::8")


@of_both
def test_each_address_answers_with_itself(kind: Kind, net: Network, tmp_path: Path) -> None:
    with serving(kind, net, "", tmp_path) as port:
        seen = net.ask(
            *((host, port, "") for host in V4), *((host, port, "fd79::1") for host in V6)
        )
    assert seen == [
        *([host, "10.79.0.1"] for host in V4),
        *([host, "fd79::1"] for host in V6),
    ]


@of_both
def test_each_address_answers_with_itself_on_an_ipv4_socket(
    kind: Kind, net: Network, tmp_path: Path
) -> None:
    with serving(kind, net, "0.0.0.0", tmp_path) as port:
        seen = net.ask(*((host, port, "") for host in V4))
    assert seen == [[host, "10.79.0.1"] for host in V4]


def test_a_broadcast_is_answered_from_an_address_of_the_host(net: Network) -> None:
    """No packet can be sent from a broadcast address."""
    script = (
        "import socket, sys; from tests.interop.stun_inside import pack_request, TX\n"
        "sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); sock.settimeout(20)\n"
        "sock.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, 1)\n"
        "sock.sendto(pack_request(TX), ('10.79.0.255', int(sys.argv[1])))\n"
        "print(sock.recvfrom(100)[1][0])"
    )
    with net.serving("") as port:
        command = net.client.command([sys.executable, "-c", script, str(port)])
        outcome = subprocess.run(
            command, cwd=REPOSITORY, capture_output=True, text=True, timeout=60
        )
    assert outcome.stdout.strip() in ("10.79.0.2", "10.79.0.3"), outcome.stderr


@pytest.mark.parametrize("source", ["fe80::1%veth", "fd79::1"])
def test_link_local_addresses_answer_with_themselves(net: Network, source: str) -> None:
    """A client with a global address gets an answer only if the answer keeps the interface."""
    hosts = ("fe80::3", "fe80::2")
    with net.serving("") as port:
        seen = net.ask(*((f"{host}%veth", port, source) for host in hosts))
    assert seen == [[host, source.partition("%")[0]] for host in hosts]


def test_stunc_gets_the_answer_from_the_address_it_asked(net: Network) -> None:
    stunc = str(need("stunc"))
    with net.serving("") as port:
        for host in (*V4, *V6):
            done = net.client.run(stunc, host, str(port))
            assert done.returncode == 0, done.stderr
            shown = re.search(r"from addr:\s*\[?([0-9a-f.:]+?)\]?:\d+$", done.stderr, re.MULTILINE)
            assert shown, done.stderr
            # Go shows IPv4 as its own socket does, mapped.
            assert shown[1].removeprefix("::ffff:") == host
