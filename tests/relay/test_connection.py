"""Connections: their PeerPresent frames, and their representation in logs."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv6Address
from typing import Any

import pytest

from pyderp.relay.connection import Connection
from pyderp.wire.frames import PeerPresentFlags
from pyderp.wire.messages import PeerPresent
from tests.relay.world import World, frames_of, key, message_of, public

REGULAR = PeerPresentFlags.REGULAR
MESH_PEER = PeerPresentFlags.MESH_PEER
PROBER = PeerPresentFlags.PROBER
NOT_IDEAL = PeerPresentFlags.NOT_IDEAL


@pytest.mark.parametrize(
    ("mesh", "prober", "not_ideal", "flags"),
    [
        (False, False, False, REGULAR),
        (True, False, False, MESH_PEER),
        (False, True, False, PROBER),
        (False, False, True, NOT_IDEAL),
        (True, True, True, MESH_PEER | PROBER | NOT_IDEAL),
    ],
)
def test_regular_is_set_only_without_other_flags(
    world: World, mesh: bool, prober: bool, not_ideal: bool, flags: PeerPresentFlags
) -> None:
    peer = world.join("a", mesh=mesh, prober=prober, not_ideal=not_ideal)
    assert peer.connection.flags == flags
    assert peer.connection.present_frame()[-2] == flags


@pytest.mark.parametrize(
    ("host", "port", "address"),
    [
        ("192.0.2.1", 41641, IPv4Address("192.0.2.1")),
        ("2001:db8::1", 65535, IPv6Address("2001:db8::1")),
        ("fe80::1%eth0", 1, IPv6Address("fe80::1")),
        ("", 0, IPv6Address("::")),
        ("/run/derp.sock", 0, IPv6Address("::")),
    ],
)
def test_present_frame_has_key_address_and_port(
    world: World, host: str, port: int, address: IPv4Address | IPv6Address
) -> None:
    frame = world.join("a", address=(host, port)).connection.present_frame()
    assert list(frames_of(frame)) == [frame]
    assert message_of(frame) == PeerPresent(public("a"), address, port, REGULAR)


def test_an_ipv4_address_is_mapped_into_ipv6(world: World) -> None:
    frame = world.join("a", address=("192.0.2.1", 0x1234)).connection.present_frame()
    mapped = bytes.fromhex("00000000000000000000ffffc0000201")
    assert frame == bytes.fromhex("09 00000034") + key("a") + mapped + b"\x12\x34\x01\x00"


def test_repr_has_number_short_key_and_address_and_not_the_whole_key(world: World) -> None:
    peer = world.join("a", address=("192.0.2.1", 5))
    assert repr(peer.connection) == f"<Connection 1 {public('a').short()} 192.0.2.1:5>"
    assert key("a").hex() not in repr(peer.connection)


def test_an_idle_connection_has_no_queues_no_sets_and_no_dict(world: World) -> None:
    connection = world.join("a").connection
    assert connection.backlog is None
    assert connection.sent_to is None
    assert connection.received_from is None
    assert not hasattr(connection, "__dict__")
    assert connection.public == public("a")


@pytest.mark.parametrize(
    ("flags", "name", "hex_"),
    [
        ({}, "", "01 00"),
        ({}, "app one", "01 07 617070206f6e65"),
        ({"can_mesh": True}, "w", "02 01 77"),
        ({"is_prober": True}, "y" * 32, f"04 20 {'79' * 32}"),
    ],
)
def test_present_frame_ends_in_the_name_as_go_writes_it(
    world: World, flags: dict[str, Any], name: str, hex_: str
) -> None:
    peer = world.join("a")
    connection = Connection(
        peer.key,
        peer,
        peer=("127.0.0.1", 0xDC1A),
        app_name=name,
        **flags,
    )
    head = key("a") + bytes.fromhex("00000000000000000000ffff7f000001 dc1a")
    assert connection.present_frame()[5:] == head + bytes.fromhex(hex_)


def test_present_frame_is_made_once_for_all_watchers(world: World) -> None:
    connection = world.join("a").connection
    assert connection.present_frame() is connection.present_frame()
