"""Tries whether the nodes of a map answer by each address family: TCP, TLS, STUN and port 80."""

from __future__ import annotations

import asyncio
import dataclasses
import socket
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Final

from pyderp.addresses import IPAddress, ip_literal
from pyderp.defaults import HTTPS_PORT, STUN_PORT
from pyderp.errors import CertificateError, DerpError, NameNotFound, TLSError
from pyderp.mapio.onlinefindings import NO_ADDRESS, Tried, judge, of_all
from pyderp.mapio.port80 import HTTP_PORT, ask_port_80
from pyderp.mapio.sources import MapWays
from pyderp.mapio.stunprobe import answers_stun
from pyderp.maps.derpmap import DERPMap
from pyderp.maps.lint import Finding, families, node_path
from pyderp.maps.region import DERPNode
from pyderp.net.dns import lookup
from pyderp.net.link import link_over_socket
from pyderp.net.settings import NetworkSettings
from pyderp.net.tcp import connect_socket
from pyderp.net.tls import start_tls

__all__ = ["lint_online"]

_AT_ONCE: Final = 32
"""How many nodes are tried at the same time."""
_HTTP: Final = HTTP_PORT
"""A name of its own, so that tests can replace it by a port they may bind."""
_FAMILIES: Final = ((4, socket.AF_INET), (6, socket.AF_INET6))


@dataclass
class _Machine:
    """The address families that this machine has a route for; each is found out once."""

    has: dict[int, bool] = field(default_factory=dict)

    def has_route(self, address: IPAddress) -> bool:
        """Return whether the machine has a route for the family of an address; sends nothing."""
        version = address.version
        if address.is_loopback:
            return True
        if version not in self.has:
            self.has[version] = _has_route(address)
        return self.has[version]


def _has_route(address: IPAddress) -> bool:
    family = socket.AF_INET if address.version == 4 else socket.AF_INET6
    try:
        with socket.socket(family, socket.SOCK_DGRAM) as sock:
            sock.connect((str(address), 9))
    except OSError:
        return False
    return True


async def lint_online(
    derp_map: DERPMap,
    *,
    ways: MapWays | None = None,
    on_progress: Callable[[int, int, Sequence[Finding]], None] | None = None,
) -> list[Finding]:
    """Try each address family of each node as a client would, and return what does not work.

    Connections are direct, and closed after the TLS handshake without logging in. If a name has
    several addresses of a family, the first one is tried. Each step may take `ways.timeout`.

    Args:
        ways: certificates to trust, seconds for each step, look-ups. Proxies are not used.
        on_progress: called after each node with the number of nodes that are done, the number of
            all nodes, and the findings about this node.
    """
    ways = ways or MapWays()
    settings = ways.settings or NetworkSettings.from_environment()
    ways = dataclasses.replace(ways, settings=settings)
    nodes = [
        (node_path(number, index), node)
        for number, region in derp_map.regions.items()
        for index, node in enumerate(region.nodes)
    ]
    machine = _Machine()
    gate = asyncio.Semaphore(_AT_ONCE)
    done = 0

    everything: list[Tried] = []

    async def one(path: str, node: DERPNode) -> list[Finding]:
        nonlocal done
        async with gate:
            tried = await _try_node(node, ways, machine)
        everything.extend(tried)
        found = list(judge(path, node, tried))
        done += 1
        if on_progress is not None:
            on_progress(done, len(nodes), found)
        return found

    results = await asyncio.gather(*(one(path, node) for path, node in nodes))
    return [*of_all(everything), *(finding for result in results for finding in result)]


async def _try_node(node: DERPNode, ways: MapWays, machine: _Machine) -> list[Tried]:
    wanted = families(node)
    tries = [
        _try_family(node, version, family, ways, machine)
        for (version, family), has in zip(_FAMILIES, wanted, strict=True)
        if has
    ]
    return list(await asyncio.gather(*tries))


async def _try_family(
    node: DERPNode,
    version: int,
    family: socket.AddressFamily,
    ways: MapWays,
    machine: _Machine,
) -> Tried:
    tried = Tried(name=f"IPv{version}")
    literal = node.ipv4 if version == 4 else node.ipv6
    try:
        async with asyncio.timeout(ways.timeout):
            found = await lookup(literal or node.host_name, family=family, resolver=ways.resolver)
    except NameNotFound:
        tried.skipped = NO_ADDRESS
        return tried
    except TimeoutError:
        tried.fault = f"look-up of {node.host_name!r}: no answer within {ways.timeout:g} s"
        return tried
    except (DerpError, OSError) as e:
        tried.fault = str(e)
        return tried
    address = next((ip for ip in found if ip.version == version), None)
    if address is None:
        tried.skipped = NO_ADDRESS
    elif not machine.has_route(address):
        tried.skipped = f"this machine has no {tried.name}"
    else:
        await asyncio.gather(
            _try_derp(tried, node, address, ways),
            _try_stun(tried, node, address, ways),
            _try_http(tried, node, address, ways),
        )
    return tried


async def _try_derp(tried: Tried, node: DERPNode, address: IPAddress, ways: MapWays) -> None:
    if node.stun_only:
        return
    assert ways.settings is not None
    port = node.derp_port_or(HTTPS_PORT)
    where = f"{address} port {port}"
    try:
        async with asyncio.timeout(ways.timeout):
            sock = await connect_socket(str(address), port, settings=ways.settings)
            link = await start_tls(
                await link_over_socket(sock),
                server_name=node.host_name,
                cert_name=node.cert_name,
                insecure=node.insecure_for_tests,
                config=ways.tls,
                settings=ways.settings,
            )
            link.abort()
    except TimeoutError:
        tried.fault = f"{where}: no answer within {ways.timeout:g} s"
    except CertificateError as e:
        tried.fault, tried.refusal = f"{where}: {e}", e.reason
    except TLSError as e:
        tried.fault = f"{where}: {e}"
    except (DerpError, OSError) as e:
        tried.fault = f"{where}: {getattr(e, 'strerror', None) or e}"


async def _try_stun(tried: Tried, node: DERPNode, address: IPAddress, ways: MapWays) -> None:
    if not 0 <= node.stun_port <= 65535:
        return
    # Clients send STUN to STUNTestIP instead of the node's address, if the map has it.
    asked = address if not node.stun_test_ip else ip_literal(node.stun_test_ip)
    if asked is None or asked.version != address.version:
        return
    port = node.stun_port or STUN_PORT
    tried.stun = await answers_stun(asked, port, seconds=ways.timeout)


async def _try_http(tried: Tried, node: DERPNode, address: IPAddress, ways: MapWays) -> None:
    # Clients send this request to the IPv4 address in the map only, never to a name or by IPv6.
    literal = ip_literal(node.ipv4)
    if not node.can_port_80 or literal != address or address.version != 4:
        return
    assert ways.settings is not None
    tried.port_80 = await ask_port_80(
        str(address), _HTTP, seconds=ways.timeout, settings=ways.settings
    )
