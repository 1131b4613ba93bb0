"""Pings between nodes: what counts as one, and what a stranger's packet cannot do."""

from __future__ import annotations

import pytest

from pyderp.cli.echo import ID_LEN, PROBE, make_ping, pong_for_untrusted, pong_id_untrusted
from pyderp.wire.frames import looks_like_disco

ID = b"12345678"
PING = make_ping(ID, 0x0102030405060708)


def test_the_layout() -> None:
    assert bytes.fromhex("7079646572700070696e67 3132333435363738 0102030405060708") == PING
    assert pong_for_untrusted(PING) == PING.replace(b"ping", b"pong")


def test_a_pong_has_the_id_of_its_ping() -> None:
    pong = pong_for_untrusted(PING)
    assert pong is not None
    assert pong_id_untrusted(pong) == ID
    assert len(ID) == ID_LEN


@pytest.mark.parametrize("packet", [b"", PING[:-1], PING + b"x", b"x" + PING[1:], PROBE])
def test_only_a_ping_is_answered(packet: bytes) -> None:
    assert pong_for_untrusted(packet) is None
    assert pong_id_untrusted(packet) is None


def test_a_pong_is_not_answered_so_that_two_listeners_fall_silent() -> None:
    pong = pong_for_untrusted(PING)
    assert pong is not None
    assert pong_for_untrusted(pong) is None
    assert pong_id_untrusted(PING) is None


def test_a_probe_is_what_relays_answer() -> None:
    assert looks_like_disco(PROBE)
    assert not looks_like_disco(PROBE[:-1])
