"""A client that reads nothing ends, and its peers get PeerGone at once.

The relay holds a backlog for it and a write to it is stuck. Every timeout that could end the
connection later is an hour, so PeerGone can only come from the client's end itself.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import Final

import pytest

import pyderp
from pyderp import ManualTLS
from pyderp.keys import MeshKey, NodePrivate
from pyderp.relay.connection import EndReason
from pyderp.relay.counters import DropReason
from pyderp.server.conn.protocol import RelayProtocol
from pyderp.wire.frames import PeerGoneReason
from pyderp.wire.messages import PeerGone, PeerPresent
from tests.server.dial import Client, clients
from tests.server.ways import way

from .sums.packets import Ledger
from .sums.peer import Peer
from .sums.stack import KINDS

_HOUR: Final = 3600.0
_PACKET: Final = 60_000
_SMALL_BUFFER: Final = 4096
_MESH_KEY: Final = MeshKey(b"m" * 32)


async def say_goodbye(stuck: Peer) -> None:
    """End in order: with TLS's close alert, a websocket's close frame, or TCP's FIN."""
    await stuck.say_goodbye()


async def half_close(stuck: Peer) -> None:
    """Close one half of the TCP connection, without a message in the layers above."""
    stuck.close_half()


async def close(stuck: Peer) -> None:
    """Close the socket: as it holds unread bytes, the kernel resets the connection."""
    stuck.close()


async def reset(stuck: Peer) -> None:
    """Have the kernel reset the connection."""
    stuck.reset()


ENDS: Final[dict[Callable[[Peer], Awaitable[None]], EndReason]] = {
    say_goodbye: EndReason.CLIENT_CLOSED,
    half_close: EndReason.CLIENT_CLOSED,
    close: EndReason.RESET,
    reset: EndReason.RESET,
}


async def fill(relay: pyderp.Relay, sender: Client, stuck: Peer) -> None:
    """Send until the kernel takes no more for a client, and the relay's queue is full."""
    while not relay.counters.dropped(DropReason.QUEUE_HEAD):
        sender.send(stuck.key, bytes(_PACKET))
        await sender.ping()


def protocol_of(relay: pyderp.Relay, key: pyderp.NodePublic) -> RelayProtocol:
    (connection,) = relay._running().router.registry.connections_of(key.raw)
    assert isinstance(connection.sink, RelayProtocol)
    return connection.sink


async def until_gone(client: Client, key: pyderp.NodePublic) -> None:
    """Wait until a client gets PeerGone for another one."""
    gone = await client.wait_for(PeerGone)
    assert (gone.peer, gone.reason) == (key, PeerGoneReason.DISCONNECTED)


@pytest.mark.parametrize("end", ENDS, ids=lambda end: end.__name__)
@pytest.mark.parametrize("kind", KINDS)
async def test_the_end_of_a_stuck_client_is_announced_at_once(
    kind: str,
    end: Callable[[Peer], Awaitable[None]],
    tls: ManualTLS,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """To clients that got packets from it and to watchers, while its last bytes still wait."""
    for name in ("CLOSE_TIMEOUT", "LINGER_TIMEOUT"):
        monkeypatch.setattr(f"pyderp.server.conn.protocol.{name}", _HOUR)
    config, via = way("tls1.3" if kind == "tls" else kind, tls)
    config = replace(config, write_timeout=_HOUR, tcp_user_timeout=0, mesh_key=_MESH_KEY)

    stuck = Peer(kind, Ledger(), NodePrivate.generate(), receive_buffer=_SMALL_BUFFER)
    async with (
        pyderp.Relay(config) as relay,
        clients(relay, 1, via=via) as (other,),
        clients(relay, 1, via=via, mesh_key=_MESH_KEY) as (watcher,),
        contextlib.AsyncExitStack() as stack,
    ):
        stack.callback(stuck.close)
        await stuck.connect(relay.address)
        watcher.session.watch_conns()
        watcher.write()
        while (await watcher.wait_for(PeerPresent)).peer != stuck.key:
            pass
        await stuck.send(other.key, 100)
        await other.packet()
        stuck.stop_reading()
        await fill(relay, other, stuck)
        protocol = protocol_of(relay, stuck.key)
        assert protocol.full is not None
        assert not protocol.ended

        begin = time.monotonic()
        await end(stuck)
        await until_gone(other, stuck.key)
        milliseconds = 1000 * (time.monotonic() - begin)
        await until_gone(watcher, stuck.key)
        print(f"{kind}, {end.__name__}: told after {milliseconds:.1f} ms")  # noqa: T201
        assert protocol.ended
        reason = ENDS[end]
        assert relay.counters.ends[reason] == 1
        # After an end in order, its socket stays open for what the client may yet read.
        lingers = protocol in relay._running().protocols
        assert lingers == (reason is EndReason.CLIENT_CLOSED)
