"""Every state of a connection × every frame × legal and illegal lengths."""

from __future__ import annotations

from itertools import product

import pytest

from pyderp.errors import RemoteProtocolError
from pyderp.wire.frames import FrameType, pack_frame, pack_send_packet
from tests.relay.world import Peer, World, disco, key, public

STATES = ["idle", "mesh", "watching", "duplicate", "mesh duplicate", "stalled", "with backlog"]
KINDS = [*FrameType, 0x00, 0x16, 0x77, 0xFF]
LENGTHS = [0, 1, 2, 7, 8, 9, 31, 32, 33, 63, 64, 65, 1000, 1001, 65568, 65569, 65600, 65601]
UNKNOWN = range(65569)
LEGAL: dict[int, range] = {
    FrameType.SEND_PACKET: range(32, 65569),
    FrameType.FORWARD_PACKET: range(64, 65601),
    FrameType.NOTE_PREFERRED: range(1, 2),
    FrameType.WATCH_CONNS: range(1),
    FrameType.CLOSE_PEER: range(32, 33),
    FrameType.PING: range(8, 1001),
}
NEED_MESH = {FrameType.FORWARD_PACKET, FrameType.WATCH_CONNS, FrameType.CLOSE_PEER}


def in_state(world: World, state: str) -> Peer:
    """Return a connection in the given state."""
    peer = world.join("a", mesh=state in ("mesh", "watching", "mesh duplicate"))
    if "duplicate" in state:
        world.join("a")
    elif state == "watching":
        world.watch(peer)
    elif state == "stalled":
        peer.stall()
    elif state == "with backlog":
        peer.block()
        world.send(peer, peer, b"x", disco())
    return peer


@pytest.mark.parametrize("payload", ["zeros", "own key"])
@pytest.mark.parametrize(("state", "kind"), [*product(STATES, KINDS)])
def test_any_frame_in_any_state_is_accepted_or_a_protocol_error(
    state: str, kind: int, payload: str
) -> None:
    start = key("a") if payload == "own key" else b""
    for length in LENGTHS:
        world = World()
        peer = in_state(world, state)
        legal = length in LEGAL.get(kind, UNKNOWN)
        allowed = kind not in NEED_MESH or peer.connection.can_mesh
        frame = pack_frame(kind, start.ljust(length, b"\0")[:length])
        data = frame + pack_send_packet(public("a"), b"behind it")
        if legal and allowed:
            world.feed(peer, data)
            assert peer.tail == b""
        else:
            with pytest.raises(RemoteProtocolError) as caught:
                world.feed(peer, data)
            assert caught.value.frame_type == kind
        world.flush()
        world.check()
        if not peer.left:
            peer.read()
        world.check()
