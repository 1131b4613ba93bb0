"""Bytes that no client may send, in each place where bytes have a form."""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import struct
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from pyderp.wire.frames import MAX_PACKET_SIZE, FrameType

from .peer import BOUND, Peer
from .run import Run
from .stack import KINDS

__all__ = ["JUNK", "Junk", "garble"]

_WEBSOCKETS: Final = tuple(kind for kind in KINDS if kind.startswith("websocket"))
_TLS: Final = ("tls", "websocket over tls")


@dataclass(frozen=True)
class Junk:
    """One kind of junk from a client that is logged in.

    Attributes:
        data: makes it.
        kinds: the transports on which it can be sent.
        below: it is sent in place of websocket frames.
        on_socket: it is sent in place of TLS records.
        hangs_up: the relay waits for more; the client closes.
    """

    data: Callable[[random.Random], bytes]
    kinds: tuple[str, ...] = KINDS
    below: bool = False
    on_socket: bool = False
    hangs_up: bool = False

    def bytes_for(self, peer: Peer, rng: random.Random) -> bytes:
        """The bytes for a client's socket."""
        data = self.data(rng)
        if self.on_socket:
            return data
        return peer.stack.wrap_below(data) if self.below else peer.stack.wrap(data)


def _frame(kind: int, length: int, payload: bytes) -> bytes:
    return struct.pack(">BI", kind, length) + payload


JUNK: Final = (
    # SendPacket without room for a key, and one that is too large.
    Junk(lambda rng: _frame(FrameType.SEND_PACKET, 5, rng.randbytes(5))),
    Junk(lambda rng: _frame(FrameType.SEND_PACKET, MAX_PACKET_SIZE + 33, rng.randbytes(500))),
    Junk(lambda rng: _frame(FrameType.PING, 5, rng.randbytes(5))),
    # Frames that need the mesh key.
    Junk(lambda rng: _frame(FrameType.FORWARD_PACKET, 100, rng.randbytes(100))),
    Junk(lambda rng: _frame(FrameType.WATCH_CONNS, 0, b"")),
    # Half frames: of a packet, and of an unknown type.
    Junk(lambda rng: _frame(FrameType.SEND_PACKET, 30_000, rng.randbytes(9000)), hangs_up=True),
    Junk(lambda rng: _frame(0x7F, 30_000, rng.randbytes(9000)), hangs_up=True),
    Junk(lambda rng: b"\x04\0", hangs_up=True),
    # Websockets: not masked, a reserved opcode, text, a message that is too large, half of one.
    Junk(lambda rng: b"\x82\x05hello", _WEBSOCKETS, below=True),
    Junk(lambda rng: b"\x83\x80\0\0\0\0", _WEBSOCKETS, below=True),
    Junk(lambda rng: b"\x81\x82\0\0\0\0ab", _WEBSOCKETS, below=True),
    Junk(lambda rng: b"\x82\xff" + (1 << 20).to_bytes(8, "big"), _WEBSOCKETS, below=True),
    Junk(lambda rng: b"\x82\xfe\x10\0\0\0\0\0abc", _WEBSOCKETS, below=True, hangs_up=True),
    # TLS: a record that cannot be decrypted, half a record, and no record at all.
    Junk(lambda rng: b"\x17\x03\x03\0\x40" + rng.randbytes(64), _TLS, on_socket=True),
    Junk(lambda rng: b"\x17\x03\x03\x10\0abc", _TLS, on_socket=True, hangs_up=True),
    Junk(lambda rng: rng.randbytes(300), _TLS, on_socket=True),
)


async def garble(run: Run) -> None:
    """Connections that never log in: garbage, half a request, half a ClientHello."""
    for data in (
        run.rng.randbytes(500),
        b"GET /derp HTTP/1.1\r\nUpgrade: DE",
        b"\x16\x03\x01\x02\0\x01\0" + os.urandom(50),
        b"\x16\x03\x01\0\x40" + os.urandom(64),
        b"GET / HTTP/9.9\r\n\r\n",
        b"",
    ):
        reader, writer = await asyncio.open_connection(*run.relay.address)
        with contextlib.suppress(ConnectionError):
            writer.write(data)
            await writer.drain()
            writer.write_eof()
            async with asyncio.timeout(BOUND):
                await reader.read()
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()
