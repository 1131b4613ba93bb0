"""Whether an address answers STUN."""

from __future__ import annotations

import asyncio
import os
from typing import Final

from pyderp.addresses import IPAddress
from pyderp.errors import RemoteProtocolError
from pyderp.wire.stun import TX_ID_LEN, pack_request, parse_response_untrusted

__all__ = ["answers_stun"]

_RESEND: Final = 0.3
"""Seconds between two requests; a datagram may be lost."""


class _Asker(asyncio.DatagramProtocol):
    def __init__(self, tx_id: bytes, answered: asyncio.Future[None]) -> None:
        self._tx_id = tx_id
        self._answered = answered

    def datagram_received(self, data: bytes, addr: object) -> None:
        try:
            response = parse_response_untrusted(data)
        except RemoteProtocolError:
            return
        if response.tx_id == self._tx_id and not self._answered.done():
            self._answered.set_result(None)

    def error_received(self, exc: Exception) -> None:
        # Refused: nothing listens. A later request may fare better, and there is the deadline.
        pass


async def answers_stun(address: IPAddress, port: int, *, seconds: float) -> bool:
    """Ask for a binding until there is an answer.

    Args:
        port: UDP.
        seconds: how long at most.

    Returns:
        whether one came in time; False also where this machine has no way to the address.
    """
    loop = asyncio.get_running_loop()
    tx_id = os.urandom(TX_ID_LEN)
    answered: asyncio.Future[None] = loop.create_future()
    try:
        transport, _ = await loop.create_datagram_endpoint(
            lambda: _Asker(tx_id, answered), remote_addr=(str(address), port)
        )
    except OSError:
        return False
    try:
        async with asyncio.timeout(seconds):
            while not answered.done():
                transport.sendto(pack_request(tx_id))
                await asyncio.wait([answered], timeout=_RESEND)
    except (TimeoutError, OSError):
        return False
    finally:
        transport.close()
    return True
