"""A mesh peer that floods a relay: the relay's memory is bounded, and other clients go on."""

from __future__ import annotations

import pytest

from pyderp.keys import NodePrivate, NodePublic
from pyderp.relay import registry as registry_module
from pyderp.relay.registry import Registry
from pyderp.server.mesh import links as mesh_module
from pyderp.wire.frames import (
    FrameType,
    pack_forward_packet,
    pack_peer_present,
    pack_watch_conns,
)
from tests.client.fakes import fake_relay
from tests.server.dial import connect
from tests.server.meshed import MESH, client_of, messages_so_far, node
from tests.waiting import until

BOUND, FLOOD = 50, 2_000


async def test_a_flood_of_a_mesh_peer_delays_no_client(monkeypatch: pytest.MonkeyPatch) -> None:
    """New sources, PeerPresent and WatchConns; a client's pings are answered between them."""
    monkeypatch.setattr(mesh_module, "MAX_MESH_KEYS", BOUND)
    monkeypatch.setattr(registry_module, "MAX_FORWARDED_SOURCES", BOUND)
    monkeypatch.setattr(registry_module, "_FORGET_A_TURN", BOUND // 10)
    turns: list[None] = []
    forget = Registry.forget_departed

    def forget_departed(registry: Registry) -> None:
        turns.append(None)
        forget(registry)

    monkeypatch.setattr(Registry, "forget_departed", forget_departed)
    sources = [NodePublic(i.to_bytes(32, "big")) for i in range(1, FLOOD + 1)]

    def fresh() -> list[NodePublic]:
        return [NodePrivate.generate().public for _ in range(100)]

    async with fake_relay() as fake, node(hosts=[fake.url], retry=100) as ours:
        peer = await fake.serve()
        await peer.expect(FrameType.WATCH_CONNS)
        async with client_of(ours) as victim, client_of(ours) as other:
            hostile = await connect(ours.relay.address, mesh_key=MESH)
            for at in range(0, FLOOD, 500):
                for source in sources[at : at + 500]:
                    hostile.writer.write(pack_forward_packet(source, victim.key, b"x"))
                hostile.writer.write(pack_watch_conns() * 500)
                peer.say(*(pack_peer_present(key, bytes(16), 0, 1) for key in fresh()))
                await messages_so_far(other)
            counters, router = ours.counters, ours.router
            await until(lambda: counters.packets_forwarded_in == FLOOD)
            await until(lambda: counters.mesh_keys_not_noted == 400 - BOUND)
            await messages_so_far(other)
            assert len(router.forwarders) == BOUND
            assert counters.sources_not_noted == FLOOD - BOUND
            assert len(router.registry.sent_to) == BOUND
            assert counters.watch_repeats_ignored > 0
            # The client that got packets from all of them leaves: they are removed a slice in each
            # turn.
            await victim.aclose()
            await until(lambda: not router.registry.sent_to)
            assert len(turns) >= 10
            await messages_so_far(other)
            await hostile.aclose()
        await ours.mesh.aclose()
