"""Group `stun`: whether each address answers STUN, and from where the answer comes."""

from __future__ import annotations

import asyncio
import socket
from typing import Final

from pyderp.addresses import IPAddress, format_address
from pyderp.defaults import STUN_PORT
from pyderp.doctor.advice import no_such_family
from pyderp.doctor.finding import Check, Seen, failed, ok, skipped
from pyderp.doctor.visit import Visit
from pyderp.errors import ConfigError, DialError
from pyderp.net.stunclient import StunAnswer, StunClient

__all__ = ["CHECKS"]

_FAMILIES: Final = {4: socket.AF_INET, 6: socket.AF_INET6}
_RETRANSMIT: Final = 0.3
_SHARE: Final = 0.4
"""Of a check's limit; UDP that is not answered at once is not answered at all."""
_SILENT: Final = (
    "open UDP in the firewalls of relay and provider; on the relay's machine `ss -ulnp` shows "
    "whether it listens; if it is to answer no STUN, write STUNPort -1 into the map"
)


async def _ipv4(visit: Visit) -> Seen:
    return await _answers(visit, 4)


async def _ipv6(visit: Visit) -> Seen:
    return await _answers(visit, 6)


async def _answers(visit: Visit, version: int) -> Seen:
    port = visit.subject.node.stun_port or STUN_PORT
    if port < 0:
        return skipped("no STUN: STUNPort is -1")
    if port > 0xFFFF:
        return failed(f"STUNPort {port} is no port", "correct the map")
    addresses = visit.addresses.get(version)
    if not addresses:
        return skipped(f"no IPv{version} address")
    limit = visit.settings.timeout * _SHARE
    try:
        client = StunClient(_FAMILIES[version])
    except ConfigError as e:
        return skipped(f"this machine has no UDP over IPv{version}: {e}")
    async with client:
        found = await asyncio.gather(*(_ask(client, ip, port, limit) for ip in addresses))
    return _judge(list(zip(addresses, found, strict=True)), port, version)


def _judge(found: list[tuple[IPAddress, StunAnswer | DialError]], port: int, version: int) -> Seen:
    data: dict[str, object] = {}
    silent = [(ip, answer) for ip, answer in found if isinstance(answer, DialError)]
    strays: list[str] = []
    good: list[StunAnswer] = []
    for ip, answer in found:
        if isinstance(answer, DialError):
            continue
        asked, came = format_address(str(ip), port), format_address(*answer.source)
        if answer.from_asked_address:
            good.append(answer)
        else:
            strays.append(f"{asked} was asked, and {came} answered")
    data["seconds"] = {answer.asked[0]: answer.round_trip for answer in good}
    if silent and all(no_such_family(error) for _, error in silent):
        return skipped(f"this machine has no IPv{version}", **data)
    if strays:
        return failed(
            strays[0],
            "the relay answers from another address than the one that was asked, so NAT and "
            "firewalls drop the answer: let it listen on this very address, or send from it",
            **data,
        )
    if silent:
        address = format_address(str(silent[0][0]), port)
        several = f" ({len(silent)} of {len(found)} addresses)" if len(found) > 1 else ""
        return failed(f"no answer from {address} over UDP{several}", _SILENT, **data)
    first = good[0]
    mapped = format_address(str(first.address), first.port)
    shown = ", ".join(format_address(answer.asked[0], port) for answer in good)
    milliseconds = min(answer.round_trip for answer in good) * 1000
    return ok(f"{shown} in {milliseconds:.1f} ms, sees us as {mapped}", mapped=mapped, **data)


async def _ask(
    client: StunClient, address: IPAddress, port: int, limit: float
) -> StunAnswer | DialError:
    try:
        return await client.ask(str(address), port, within=limit, retransmit=_RETRANSMIT)
    except DialError as e:
        return e


CHECKS: Final[tuple[Check[Visit], ...]] = (
    Check(name="stun.ipv4", run=_ipv4, needs=("names.any",), after=("names.ipv4",)),
    Check(name="stun.ipv6", run=_ipv6, needs=("names.any",), after=("names.ipv6",)),
)
