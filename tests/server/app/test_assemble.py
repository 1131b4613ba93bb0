"""Which clients are checked again while connected, and which connections a refusal closes."""

from __future__ import annotations

import os
from collections import Counter

import pytest

import pyderp
from pyderp import RelayConfig
from pyderp.admission import ClientIdentity
from pyderp.config import AdmissionConfig
from pyderp.keys import MeshKey, NodePrivate, NodePublic
from pyderp.server.app.assemble import live_clients, revoke
from pyderp.server.conn.context import ConnectionContext
from pyderp.wire.client import ClientSession
from pyderp.wire.login import ClientInfo
from tests.server.dial import connect
from tests.server.fakes import FakeLoop, Wire, make_context

MESH_KEY = MeshKey.parse("0123456789abcdef" * 4)


async def test_a_recheck_neither_checks_mesh_peers_nor_closes_them() -> None:
    private, other = NodePrivate.generate(), NodePrivate.generate()
    asked: set[NodePublic] = set()
    banned: set[NodePublic] = set()

    def decide(key: NodePublic, address: str) -> bool:
        asked.add(key)
        return key not in banned

    admission = AdmissionConfig(decide=decide, remember=0, recheck=0.01)
    async with pyderp.Relay(RelayConfig(mesh_key=MESH_KEY, admission=admission)) as relay:
        client = await connect(relay.address, private=private)
        twin = await connect(relay.address, private=private, mesh_key=MESH_KEY)
        peer = await connect(relay.address, private=other, mesh_key=MESH_KEY)
        banned.update((private.public, other.public))
        await client.closed()
        # A mesh peer with the same key stays, as do all other mesh peers.
        await twin.ping()
        await peer.ping()
        assert asked == {private.public}
        for each in (client, twin, peer):
            await each.aclose()


@pytest.fixture
def core() -> ConnectionContext:
    return make_context(FakeLoop(), mesh_key=MESH_KEY)


def join(
    core: ConnectionContext, private: NodePrivate, address: str, *, mesh_key: MeshKey | None = None
) -> Wire:
    wire = Wire(core, peername=(address, 4711))
    wire.private = private
    wire.session = ClientSession(private, random=os.urandom, info=ClientInfo(mesh_key=mesh_key))
    wire.login()
    return wire


def test_revoking_a_key_closes_it_at_one_address_or_all_but_never_as_a_mesh_peer(
    core: ConnectionContext,
) -> None:
    router = core.router
    private, unrelated = NodePrivate.generate(), NodePrivate.generate()
    here, here_too = (join(core, private, "192.0.2.1") for _ in range(2))
    there = join(core, private, "::ffff:192.0.2.2")
    peer = join(core, private, "192.0.2.1", mesh_key=MESH_KEY)
    other = join(core, unrelated, "192.0.2.1")
    assert Counter(live_clients(router)) == {
        ClientIdentity(private.public, "192.0.2.1"): 2,
        ClientIdentity(private.public, "192.0.2.2"): 1,
        ClientIdentity(unrelated.public, "192.0.2.1"): 1,
    }

    def gone() -> list[Wire]:
        here.loop.turn()
        return [wire for wire in (here, here_too, there, peer, other) if wire.gone]

    revoke(router, private.public, "192.0.2.1", "not here")
    assert gone() == [here, here_too]
    revoke(router, private.public, None, "nowhere")
    assert gone() == [here, here_too, there]
