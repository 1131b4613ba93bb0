"""Checks that relays forward packets: one packet between two clients with new keys, per node.

A relay may answer STUN and HTTPS, so that every latency measurement succeeds, and yet forward no
packets, or not admit clients with keys that it does not know.
"""

from __future__ import annotations

import asyncio
import dataclasses
import secrets
import time
from collections.abc import Callable
from typing import Final

from pyderp.client.client import Client
from pyderp.client.config import ClientConfig
from pyderp.errors import ConnectError, DerpError, LoginRefused
from pyderp.maps.derpmap import DERPMap
from pyderp.maps.region import DERPNode, DERPRegion
from pyderp.netcheck.report import RelayResult
from pyderp.wire.messages import ReceivedPacket, ServerInfo

__all__ = ["check_relaying", "relay_once"]

TIMEOUT: Final = 10.0
"""Seconds for one node: two logins and a packet."""
_CONNECTING: Final = 0.8
"""The part of that time that TCP, TLS and the HTTP upgrade of both clients may take."""
_AT_ONCE: Final = 16
"""How many nodes are checked at the same time."""
_PACKET: Final = 64
"""Bytes of the packet."""


async def check_relaying(
    derp_map: DERPMap,
    config: ClientConfig,
    *,
    on_result: Callable[[int, RelayResult], None],
) -> None:
    """Check every node of a map that is a relay, and not for STUN only.

    Args:
        on_result: called with region id and result of each node when its check ends.
    """
    limit = asyncio.Semaphore(_AT_ONCE)

    async def check(region: DERPRegion, node: DERPNode) -> None:
        async with limit:
            alone = dataclasses.replace(region, nodes=(node,))
            on_result(region.region_id, await _result(alone, config))

    await asyncio.gather(
        *(
            check(region, node)
            for region in derp_map.regions.values()
            for node in region.nodes
            if not node.stun_only
        )
    )


async def _result(region: DERPRegion, config: ClientConfig) -> RelayResult:
    name = region.nodes[0].name
    try:
        async with asyncio.timeout(TIMEOUT):
            latency = await relay_once(region, _in_time(config))
    except TimeoutError as e:
        error = str(e) or f"no packet came through within {TIMEOUT:g} s"
    except ConnectError as e:
        # The error of the only attempt: the error around it repeats the name of the node.
        error = str(e.attempts[0] if e.attempts else e)
    except LoginRefused as e:
        error = f"it does not admit a new key: {e}"
    except (DerpError, OSError) as e:
        error = str(e) or type(e).__name__
    else:
        return RelayResult(name, relays=True, latency=latency)
    return RelayResult(name, relays=False, error=error)


def _in_time(config: ClientConfig) -> ClientConfig:
    """Return a config whose connecting times out before the whole check does.

    The error then names the step that did not finish.
    """
    seconds = min(config.connect_timeout, TIMEOUT * _CONNECTING)
    return dataclasses.replace(config, connect_timeout=seconds)


async def relay_once(region: DERPRegion, config: ClientConfig) -> int:
    """Send a packet from one new client to another through a region. There is no time limit here.

    Returns:
        the nanoseconds that the packet took.

    Raises:
        DerpError, OSError: a login failed, or the relay closed a connection.
    """
    async with (
        Client.for_region(region, config=config) as sender,
        Client.for_region(region, config=config) as receiver,
    ):
        await asyncio.gather(_logged_in(sender), _logged_in(receiver))
        packet = secrets.token_bytes(_PACKET)
        began = time.perf_counter_ns()
        await sender.send(receiver.self_public_key, packet)
        while True:
            match await receiver.recv():
                case ReceivedPacket(source, data):
                    if source == sender.self_public_key and data == packet:
                        return time.perf_counter_ns() - began


async def _logged_in(client: Client) -> None:
    """Connect, and wait for the relay's answer to the login.

    Before that answer the relay may not yet route packets to the client.
    """
    await client.connect()
    while not isinstance(await client.recv(), ServerInfo):
        pass
