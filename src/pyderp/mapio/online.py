"""Whether the nodes of a map answer, by each address family: TCP, TLS and pin, STUN, port 80."""

from __future__ import annotations

import asyncio
import dataclasses
import socket
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Final

from pyderp.addresses import IPAddress, ip_literal
from pyderp.defaults import HTTPS_PORT, STUN_PORT
from pyderp.errors import CertificateError, DerpError, NameNotFound, TLSError
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
"""Nodes that are tried at the same time."""
_HTTP: Final = 80
_FAMILIES: Final = ((4, socket.AF_INET), (6, socket.AF_INET6))


@dataclass
class _Tried:
    """One family of a node."""

    name: str
    """`IPv4` or `IPv6`."""
    fault: str = ""
    """Why there is no TLS connection; empty: there is one."""
    certificate: bool = False
    """It is the certificate that is at fault."""
    skipped: str = ""
    """Why it was not tried; empty: it was."""
    stun: bool | None = None
    """`None`: the node has none."""
    port_80: bool | None = None
    """`None`: the map does not say that it is open."""


@dataclass
class _Machine:
    """What this machine can reach at all, by family."""

    has: dict[int, bool] = field(default_factory=dict)

    def has_way(self, address: IPAddress) -> bool:
        """Whether there is a route to an address; nothing is sent."""
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
    """Try each family of each node as a client would, and report what does not answer.

    Connections are direct, and end after the TLS handshake; no login. Of a name the first address
    of the family is tried. Each step has the seconds of `ways.timeout`.

    Args:
        ways: certificates to trust, time for each node, look-ups. Proxies are not used.
        on_progress: called for each node that is done, with the number of those, the number of all
            nodes, and what was found about this one.
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

    async def one(path: str, node: DERPNode) -> list[Finding]:
        nonlocal done
        async with gate:
            found = list(_judge(path, node, await _try_node(node, ways, machine)))
        done += 1
        if on_progress is not None:
            on_progress(done, len(nodes), found)
        return found

    results = await asyncio.gather(*(one(path, node) for path, node in nodes))
    return [finding for result in results for finding in result]


async def _try_node(node: DERPNode, ways: MapWays, machine: _Machine) -> list[_Tried]:
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
) -> _Tried:
    tried = _Tried(name=f"IPv{version}")
    literal = node.ipv4 if version == 4 else node.ipv6
    try:
        async with asyncio.timeout(ways.timeout):
            found = await lookup(literal or node.host_name, family=family, resolver=ways.resolver)
    except NameNotFound:
        tried.skipped = "none"
        return tried
    except TimeoutError:
        tried.fault = f"look-up of {node.host_name!r}: no answer within {ways.timeout:g} s"
        return tried
    except (DerpError, OSError) as e:
        tried.fault = str(e)
        return tried
    address = next((ip for ip in found if ip.version == version), None)
    if address is None:
        tried.skipped = "none"
    elif not machine.has_way(address):
        tried.skipped = f"this machine has no {tried.name}"
    else:
        await asyncio.gather(
            _try_derp(tried, node, address, ways),
            _try_stun(tried, node, address, ways),
            _try_http(tried, node, address, ways),
        )
    return tried


async def _try_derp(tried: _Tried, node: DERPNode, address: IPAddress, ways: MapWays) -> None:
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
        tried.fault, tried.certificate = f"{where}: {e}", True
    except TLSError as e:
        tried.fault = f"{where}: {e}"
    except (DerpError, OSError) as e:
        tried.fault = f"{where}: {getattr(e, 'strerror', None) or e}"


async def _try_stun(tried: _Tried, node: DERPNode, address: IPAddress, ways: MapWays) -> None:
    if not 0 <= node.stun_port <= 65535:
        return
    asked = address if not node.stun_test_ip else ip_literal(node.stun_test_ip)
    if asked is None or asked.version != address.version:
        return
    port = node.stun_port or STUN_PORT
    tried.stun = await answers_stun(asked, port, seconds=ways.timeout)


async def _try_http(tried: _Tried, node: DERPNode, address: IPAddress, ways: MapWays) -> None:
    if not node.can_port_80:
        return
    assert ways.settings is not None
    tried.port_80 = False
    try:
        async with asyncio.timeout(ways.timeout):
            sock = await connect_socket(str(address), _HTTP, settings=ways.settings)
            sock.close()
            tried.port_80 = True
    except (DerpError, OSError):
        pass


def _judge(path: str, node: DERPNode, tried: Sequence[_Tried]) -> Iterator[Finding]:
    """What the answers of a node's families come to."""
    real = [each for each in tried if not each.skipped]
    yield from _about_skipped(path, node, tried)
    faults = [each for each in real if each.fault]
    for each in faults:
        others = [other.name for other in real if not other.fault]
        rule = "certificate" if each.certificate else "family-silent" if others else "node-silent"
        yield Finding(
            rule=rule,
            path=_member(path, node, each),
            text=f"{each.name} does not work: {each.fault}",
            advice=_advice(node, each, others),
        )
    for each in real:
        if each.stun is False:
            yield Finding(
                rule="stun-silent",
                path=f"{path}.STUNPort",
                text=f"no answer to STUN by {each.name}: clients do not measure the node by it",
                advice=f"open UDP port {node.stun_port or STUN_PORT} to the relay, or write -1",
            )
        if each.port_80 is False:
            yield Finding(
                rule="port-80-silent",
                path=f"{path}.CanPort80",
                text=f"port 80 does not answer by {each.name}: clients may take that for a "
                "captive portal",
                advice="open TCP port 80 to the relay, or remove CanPort80",
            )


def _about_skipped(path: str, node: DERPNode, tried: Sequence[_Tried]) -> Iterator[Finding]:
    if tried and all(each.skipped == "none" for each in tried):
        yield Finding(
            rule="node-silent",
            path=f"{path}.HostName",
            text=f"the name {node.host_name!r} has no address",
            advice="correct the name, or write IPv4 or IPv6",
        )
    for each in tried:
        if each.skipped not in ("", "none"):
            yield Finding(
                rule="not-tried",
                path=f"{path}.{each.name}",
                text=f"not tried: {each.skipped}",
                advice="lint the map from a machine that has it",
            )


def _member(path: str, node: DERPNode, tried: _Tried) -> str:
    if tried.certificate:
        return f"{path}.CertName" if node.cert_name else f"{path}.HostName"
    literal = node.ipv4 if tried.name == "IPv4" else node.ipv6
    return f"{path}.{tried.name if literal else 'HostName'}"


def _advice(node: DERPNode, tried: _Tried, others: Sequence[str]) -> str:
    if tried.certificate:
        if node.cert_name:
            return "correct CertName: `pyderp map show https://HOST:PORT` shows the pin of now"
        return "correct HostName, or give the relay a certificate for it that clients trust"
    if others:
        return f"let the relay answer by {tried.name}, or write 'none' in {tried.name}"
    return "start the relay, open its port, or correct HostName, DERPPort, IPv4 and IPv6"
