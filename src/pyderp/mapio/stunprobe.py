"""Asks whether an address answers STUN."""

from __future__ import annotations

import contextlib
import socket
from ipaddress import IPv4Address
from typing import Final

from pyderp.addresses import IPAddress
from pyderp.errors import ConfigError, DialError
from pyderp.net.stunclient import StunClient

__all__ = ["answers_stun"]

_RESEND: Final = 0.3
"""Seconds between two requests, of which the network may lose some."""


async def answers_stun(address: IPAddress, port: int, *, seconds: float) -> bool:
    """Send STUN binding requests until an answer comes.

    Args:
        port: UDP port.
        seconds: how long to wait at most.

    Returns:
        whether an answer came in time; False also if this machine has no route to the address.
    """
    family = socket.AF_INET if isinstance(address, IPv4Address) else socket.AF_INET6
    with contextlib.suppress(ConfigError, DialError):
        async with StunClient(family) as client:
            await client.ask(str(address), port, within=seconds, retransmit=_RESEND)
            return True
    return False
