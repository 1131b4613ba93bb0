"""Group `tcp`: whether each address of the node accepts connections."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass
from typing import Final

from pyderp.addresses import IPAddress, format_address
from pyderp.doctor.advice import explain, no_such_family, words_of
from pyderp.doctor.finding import Check, Seen, failed, ok, skipped
from pyderp.doctor.visit import Visit
from pyderp.errors import DerpError, without_frames
from pyderp.text import counted

__all__ = ["CHECKS"]


@dataclass(frozen=True)
class _Attempt:
    address: IPAddress
    seconds: float
    error: Exception | None


async def _ipv4(visit: Visit) -> Seen:
    return await _connects(visit, 4)


async def _ipv6(visit: Visit) -> Seen:
    return await _connects(visit, 6)


async def _any(visit: Visit) -> Seen:
    """Check that at least one address answers: the later checks use it."""
    count = sum(map(len, visit.addresses.values()))
    if visit.answering:
        answer = "answers" if count == 1 else "answer"
        return ok(f"{len(visit.answering)} of {counted(count, 'address', 'addresses')} {answer}")
    if visit.tcp_failed:
        return skipped("no address answers")
    return failed(
        "this machine has no route to any address of the relay",
        "check this machine's addresses (`ip address`), routes (`ip route`), and firewall",
    )


async def _connects(visit: Visit, version: int) -> Seen:
    """Connect to every address at the same time: a client may use any of them."""
    addresses = visit.addresses.get(version)
    if not addresses:
        return skipped(f"no IPv{version} address")
    port = visit.subject.target.port
    if not 0 < port <= 0xFFFF:
        visit.tcp_failed = True
        return failed(f"DERPPort {port} is not a port number", "correct the map")
    # Less than the check's own limit, so that it can still report the addresses that answered.
    limit = visit.settings.timeout * 0.6
    attempts = await asyncio.gather(*(_attempt(visit, ip, limit) for ip in addresses))
    good = sorted((a for a in attempts if a.error is None), key=lambda a: a.seconds)
    bad = [a for a in attempts if a.error is not None]
    visit.answering = _merged(visit, [a.address for a in good], version)
    data: dict[str, object] = {
        "connect_seconds": {str(a.address): a.seconds for a in good},
        "failed": {str(a.address): words_of(a.error) for a in bad if a.error},
    }
    if bad and not good and all(a.error and no_such_family(a.error) for a in bad):
        count = "1 address was" if len(bad) == 1 else f"{len(bad)} addresses were"
        text = f"this machine has no IPv{version}, so {count} not tried"
        return skipped(text, f"run it from a machine with IPv{version}, too", **data)
    if bad:
        worst = bad[0]
        assert worst.error is not None
        seen = explain(worst.error)
        text = f"{len(bad)} of {len(attempts)} addresses: {seen.text}"
        if len(attempts) == 1:
            text = seen.text
        visit.tcp_failed = True
        return failed(text, seen.advice, **data, **seen.data)
    shown = ", ".join(format_address(str(a.address), port) for a in good)
    return ok(f"{shown} in {good[0].seconds * 1000:.1f} ms", **data)


async def _attempt(visit: Visit, address: IPAddress, limit: float) -> _Attempt:
    began = time.perf_counter()
    error: Exception | None = None
    try:
        async with asyncio.timeout(limit):
            (await visit.tcp(address)).abort()
    except TimeoutError as e:
        where = format_address(str(address), visit.subject.target.port)
        error = e if str(e) else TimeoutError(f"connect to {where}: no answer within {limit:g} s")
    except (DerpError, OSError) as e:
        error = without_frames(e)
    return _Attempt(address, time.perf_counter() - began, error)


def _merged(visit: Visit, good: list[IPAddress], version: int) -> list[IPAddress]:
    """Return all addresses that answer, those of IPv4 first, as most clients have IPv4."""
    others = [ip for ip in visit.answering if ip.version != version]
    return good + others if version == 4 else others + good


CHECKS: Final[tuple[Check[Visit], ...]] = (
    Check(name="tcp.ipv4", run=_ipv4, needs=("names.any",), after=("names.ipv4",)),
    Check(name="tcp.ipv6", run=_ipv6, needs=("names.any",), after=("names.ipv6",)),
    Check(name="tcp.any", run=_any, needs=("names.any",), after=("tcp.ipv4", "tcp.ipv6")),
)
