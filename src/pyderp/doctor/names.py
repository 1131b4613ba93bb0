"""Group `names`: the addresses of the node's name, in each address family."""

from __future__ import annotations

import socket
from typing import Final

from pyderp.addresses import IPAddress, ip_literal
from pyderp.doctor.finding import Check, Seen, failed, ok, skipped, warned
from pyderp.doctor.visit import Visit
from pyderp.errors import DialError, NameNotFound
from pyderp.net.dns import lookup

__all__ = ["CHECKS", "MAX_ADDRESSES"]

MAX_ADDRESSES: Final = 8
"""The most addresses of one family that are checked; a name may have hundreds."""
_FAMILIES: Final = {4: socket.AF_INET, 6: socket.AF_INET6}
# Systems without EAI_ADDRFAMILY use EAI_NONAME also for a name without an address of the family.
_NO_ADDRESS: Final = getattr(socket, "EAI_ADDRFAMILY", socket.EAI_NONAME)


async def _ipv4(visit: Visit) -> Seen:
    return await _names(visit, 4)


async def _ipv6(visit: Visit) -> Seen:
    return await _names(visit, 6)


async def _either(visit: Visit) -> Seen:
    """Check that the node has an address of any family."""
    four, six = visit.addresses.get(4), visit.addresses.get(6)
    host = visit.subject.node.host_name
    if four and six:
        return ok("IPv4 and IPv6")
    if four:
        return ok("IPv4 only")
    if six:
        return warned(
            "IPv6 only",
            "clients without IPv6 cannot connect: give the relay an IPv4 address",
        )
    return failed(
        f"no address for {host or visit.subject.node.name}",
        "check the spelling of the name, its A and AAAA records, and IPv4 and IPv6 in the map",
    )


async def _names(visit: Visit, version: int) -> Seen:
    node = visit.subject.node
    written = node.ipv4 if version == 4 else node.ipv6
    field = f"IPv{version}"
    if written:
        return await _from_map(visit, version, written, field)
    literal = ip_literal(node.host_name)
    if literal is not None:
        if literal.version != version:
            return skipped(f"the host is an IPv{literal.version} address")
        visit.addresses[version] = [literal]
        return ok(str(literal), addresses=[str(literal)])
    try:
        found = await _look_up(visit, node.host_name, version)
    except DialError as e:
        return failed(
            str(e),
            "the name server does not answer, or answers with an error: query it yourself (`dig`), "
            "and check this machine's resolver",
        )
    if not found:
        return skipped(f"no IPv{version} address")
    visit.addresses[version] = found[:MAX_ADDRESSES]
    return ok(_listed(found), addresses=[str(ip) for ip in found])


async def _from_map(visit: Visit, version: int, written: str, field: str) -> Seen:
    literal = ip_literal(written)
    if literal is None or literal.version != version:
        if literal is None and written == "none":
            return skipped(f"switched off in the map: {field} is none")
        return warned(
            f"switched off in the map: {field} is {written!r}, which is not an {field} address",
            f'write an address, or "none" if no {field} is meant',
        )
    visit.addresses[version] = [literal]
    name = visit.subject.node.host_name
    if not name or ip_literal(name) is not None:
        return ok(f"{literal}, from the map", addresses=[str(literal)])
    try:
        found = await _look_up(visit, name, version)
    except DialError:
        found = []
    if found and literal not in found:
        return warned(
            f"{literal}, from the map, but DNS has {_listed(found)}",
            "correct the map or DNS: clients use the address in the map",
            addresses=[str(literal)],
            dns=[str(ip) for ip in found],
        )
    return ok(f"{literal}, from the map", addresses=[str(literal)])


async def _look_up(visit: Visit, name: str, version: int) -> list[IPAddress]:
    """Return the addresses of a name in one family; may be empty.

    Raises:
        DialError: the look-up failed.
    """
    try:
        found = await lookup(name, family=_FAMILIES[version], resolver=visit.settings.resolver)
    except NameNotFound:
        return []
    except DialError as e:
        cause = e.__cause__
        if isinstance(cause, socket.gaierror) and cause.errno == _NO_ADDRESS:
            return []
        raise
    return [ip for ip in dict.fromkeys(found) if ip.version == version]


def _listed(found: list[IPAddress]) -> str:
    more = f" and {len(found) - MAX_ADDRESSES} more" if len(found) > MAX_ADDRESSES else ""
    return ", ".join(map(str, found[:MAX_ADDRESSES])) + more


CHECKS: Final[tuple[Check[Visit], ...]] = (
    Check(name="names.ipv4", run=_ipv4),
    Check(name="names.ipv6", run=_ipv6),
    Check(name="names.any", run=_either, after=("names.ipv4", "names.ipv6")),
)
