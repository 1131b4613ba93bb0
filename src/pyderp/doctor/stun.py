"""Group `stun`: whether each address answers STUN, and whether it is the answer's source."""

from __future__ import annotations

import asyncio
import contextlib
import secrets
import socket
from typing import Final

from pyderp.addresses import IPAddress, format_address
from pyderp.defaults import STUN_PORT
from pyderp.doctor.advice import no_such_family
from pyderp.doctor.finding import Check, Seen, failed, ok, skipped
from pyderp.doctor.visit import Visit
from pyderp.errors import ConfigError, DialError, FailureReason, without_frames
from pyderp.net.stunclient import StunAnswer, StunClient
from pyderp.tasks import cancel_and_wait
from pyderp.wire.stun import TX_ID_LEN, pack_request

__all__ = ["CHECKS"]

_FAMILIES: Final = {4: socket.AF_INET, 6: socket.AF_INET6}
_RETRANSMIT: Final = 0.3
_SHARE: Final = 0.4
"""The share of a check's time limit: a STUN server that answers at all answers soon."""
_SILENT: Final = (
    "open the UDP port in the firewalls of the relay's machine and of its provider; on the machine "
    "`ss -ulnp` shows whether the relay listens; if it should not answer STUN, write STUNPort -1 "
    "into the map"
)
_CLOSED: Final = (
    "on the relay's machine `ss -ulnp` shows whether the relay listens, and on which port "
    "({stun_port}, STUNPort); if it should not answer STUN, write STUNPort -1 into the map"
)
_OTHER: Final = (
    "another program has this port, or a middlebox on the path changes the answers: check the port "
    "({stun_port}, STUNPort); `ss -ulnp` on the relay's machine names the program"
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
        return failed(f"STUNPort {port} is not a port number", "correct the map")
    addresses = visit.addresses.get(version)
    if not addresses:
        return skipped(f"no IPv{version} address")
    limit = visit.settings.timeout * _SHARE
    try:
        found = await asyncio.gather(*(_ask(ip, port, limit) for ip in addresses))
    except ConfigError as e:
        return skipped(f"this machine has no UDP over IPv{version}: {e}")
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
            "firewalls drop the answer: let it listen on the address that clients use",
            **data,
        )
    if silent:
        address = format_address(str(silent[0][0]), port)
        several = f" ({len(silent)} of {len(found)} addresses)" if len(found) > 1 else ""
        reason = silent[0][1].reason
        if reason is FailureReason.REFUSED:
            text = f"{address} refuses: nothing listens there over UDP{several}"
            return failed(text, _CLOSED, reason=reason.value, **data)
        if reason is FailureReason.CUT:
            text = f"{address} answers over UDP, and not with STUN{several}"
            return failed(text, _OTHER, **data)
        return failed(f"no answer from {address} over UDP{several}", _SILENT, **data)
    first = good[0]
    mapped = format_address(str(first.address), first.port)
    shown = ", ".join(format_address(answer.asked[0], port) for answer in good)
    milliseconds = min(answer.round_trip for answer in good) * 1000
    text = f"{shown} in {milliseconds:.1f} ms, sees this machine as {mapped}"
    return ok(text, mapped=mapped, **data)


async def _ask(address: IPAddress, port: int, limit: float) -> StunAnswer | DialError:
    """Send STUN requests to one address.

    Returns:
        the answer, or an error with the reason: `REFUSED` if the relay's kernel reported that
        nothing listens on the port, `CUT` if datagrams came that are not answers of STUN.

    Raises:
        ConfigError: this machine has no UDP of that family.
    """
    host = str(address)
    async with StunClient(_FAMILIES[address.version]) as client:
        asking = asyncio.create_task(
            client.ask(host, port, within=limit, retransmit=_RETRANSMIT), name="doctor asks"
        )
        refusal = asyncio.create_task(_refusal(host, port), name="doctor waits for a refusal")
        try:
            await asyncio.wait((asking, refusal), return_when=asyncio.FIRST_COMPLETED)
            if not asking.done():
                return DialError("refused", reason=FailureReason.REFUSED)
            return asking.result()
        except DialError as e:
            if e.reason is FailureReason.TIMEOUT and client.ignored:
                return DialError("no STUN", reason=FailureReason.CUT)
            return without_frames(e)
        finally:
            await cancel_and_wait((asking, refusal))
            del asking, refusal  # A task may hold an error, whose traceback holds this frame.


async def _refusal(host: str, port: int) -> None:
    """Return when the relay's kernel reports that the port is closed (ICMP); otherwise never.

    Such reports are delivered to connected sockets only, and the socket of `StunClient` is not.
    """
    refused: asyncio.Future[None] = asyncio.get_running_loop().create_future()
    with contextlib.suppress(OSError):
        transport, _ = await asyncio.get_running_loop().create_datagram_endpoint(
            lambda: _Refusal(refused), remote_addr=(host, port)
        )
        try:
            transport.sendto(pack_request(secrets.token_bytes(TX_ID_LEN)))
            await refused
            return
        finally:
            transport.close()
    await asyncio.get_running_loop().create_future()


class _Refusal(asyncio.DatagramProtocol):
    """Ends a future when the kernel reports a closed port."""

    def __init__(self, refused: asyncio.Future[None]) -> None:
        self._refused = refused

    def error_received(self, exc: Exception) -> None:
        """Take an error of the socket; called by the loop."""
        if isinstance(exc, ConnectionRefusedError) and not self._refused.done():
            self._refused.set_result(None)


CHECKS: Final[tuple[Check[Visit], ...]] = (
    Check(name="stun.ipv4", run=_ipv4, needs=("names.any",), after=("names.ipv4",)),
    Check(name="stun.ipv6", run=_ipv6, needs=("names.any",), after=("names.ipv6",)),
)
