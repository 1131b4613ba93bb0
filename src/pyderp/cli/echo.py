"""Packets that commands send for themselves: pings between two nodes, and probes.

    ping   "pyderp\\0ping" ‖ id 8 ‖ time 8
    pong   "pyderp\\0pong" ‖ id 8 ‖ time 8, both as in the ping
    probe  "TS💬" ‖ "pyderp\\0probe" ‖ zeros, 62 bytes

The id is random. The time is the sender's wall clock, nanoseconds since 1970, big-endian; it
is for people who look at packets, and nothing is computed from it.

A relay tells that a peer is not there only in answer to packets that look like Tailscale's
path discovery. A probe does. `pyderp listen` ignores it, and so does Tailscale, for which it
is from nobody it knows.
"""

from __future__ import annotations

from typing import Final

from pyderp.wire.frames import DISCO_MAGIC, DISCO_MIN_LEN

__all__ = ["ID_LEN", "PROBE", "make_ping", "pong_for_untrusted", "pong_id_untrusted"]

ID_LEN: Final = 8
_TIME_LEN: Final = 8
_PING: Final = b"pyderp\0ping"
_PONG: Final = b"pyderp\0pong"
_LEN: Final = len(_PING) + ID_LEN + _TIME_LEN

PROBE: Final = (DISCO_MAGIC + b"pyderp\0probe").ljust(DISCO_MIN_LEN, b"\0")


def make_ping(ping_id: bytes, now_ns: int) -> bytes:
    """A ping's packet."""
    return _PING + ping_id + now_ns.to_bytes(_TIME_LEN, "big")


def pong_for_untrusted(packet: bytes) -> bytes | None:
    """The answer to a packet, of the same length, if the packet is a ping; else `None`."""
    if len(packet) != _LEN or not packet.startswith(_PING):
        return None
    return _PONG + packet[len(_PING) :]


def pong_id_untrusted(packet: bytes) -> bytes | None:
    """The id in a packet, if it is a pong; else `None`."""
    if len(packet) != _LEN or not packet.startswith(_PONG):
        return None
    return packet[len(_PONG) : len(_PONG) + ID_LEN]
