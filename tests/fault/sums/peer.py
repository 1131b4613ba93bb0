"""A client on a raw socket that reads and ends as a test says."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
import socket
import ssl
import struct
from collections.abc import Callable
from typing import Final

from pyderp.errors import RemoteProtocolError
from pyderp.keys import MeshKey, NodePrivate, NodePublic
from pyderp.wire.frames import pack_send_packet
from pyderp.wire.messages import Message, Pong, ReceivedPacket, Restarting, ServerInfo

from .packets import Count, Ledger, Stamp
from .stack import Stack

__all__ = ["BOUND", "Peer"]

BOUND: Final = 30.0
"""Seconds that one step may take on a busy machine."""
_LINGER_RESET: Final = struct.pack("ii", 1, 0)
_numbers = itertools.count(1)


class Peer:
    """One connection of a client.

    Args:
        kind: the way to the relay.
        ledger: what is sent and received goes there.
        private: the client's key.
        receive_buffer: bytes of the kernel's receive buffer; 0: the system's.
        sock: what it connects, say in another network namespace; by default a new socket.

    Attributes:
        number: unique in the process; its packets have it.
        end: how the connection ended: `eof`, or the name of an error; empty: it goes on.
        may_lose: what the kernel held for it may be lost: it was reset, by either side.
        spoilt: it sends what no client may; whatever it is answered is right.
        held_at_most: bytes that this side's kernel held unread at most; known at the end.
        delivered: packets it got.
        sent: packets it began to write.
        on_packet: called with each packet's stamp.
    """

    def __init__(
        self,
        kind: str,
        ledger: Ledger,
        private: NodePrivate,
        *,
        receive_buffer: int = 0,
        mesh_key: MeshKey | None = None,
        sock: socket.socket | None = None,
    ) -> None:
        self.number = next(_numbers)
        self.kind = kind
        self.ledger = ledger
        self.private = private
        self.key: NodePublic = private.public
        self.stack = Stack(kind, private, mesh_key)
        self.end = ""
        self.may_lose = False
        self.delivered = Count()
        self.sent = Count()
        self.restarting: Restarting | None = None
        self.spoilt = False
        self.on_packet: Callable[[Stamp], None] = lambda _: None
        self.held_at_most = 0
        self._arrived = Count()
        self._receive_buffer = receive_buffer
        self._socket = sock or socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP)
        self._socket.setblocking(False)
        if receive_buffer:
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        self._may_read = asyncio.Event()
        self._may_read.set()
        self._read_size = 1 << 18
        self._read_pause = 0.0
        self._writing = asyncio.Lock()
        self._logged_in = asyncio.Event()
        self._ended = asyncio.Event()
        self._pongs: dict[bytes, asyncio.Future[None]] = {}
        self._reading: asyncio.Task[None] | None = None
        self._write_rest: asyncio.Future[None] | None = None
        self._was_reset = False

    # Life

    async def connect(self, address: tuple[str, int]) -> Peer:
        """Connect, log in, and read from now on."""
        try:
            async with asyncio.timeout(BOUND):
                loop = asyncio.get_running_loop()
                await loop.sock_connect(self._socket, address)
                await loop.sock_sendall(self._socket, self.stack.begin())
                self._reading = asyncio.create_task(self._read(), name=f"peer {self.number}")
                await self._either(self._logged_in)
        except BaseException:
            self.close()
            raise
        if not self._logged_in.is_set():
            raise ConnectionError(f"no login: {self.end}")
        return self

    async def _either(self, event: asyncio.Event) -> None:
        """Wait until an event, or until the connection has ended."""
        waits = [asyncio.ensure_future(each.wait()) for each in (event, self._ended)]
        try:
            await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for wait in waits:
                wait.cancel()

    def stop_reading(self) -> None:
        """Leave new bytes in the kernel."""
        self._may_read.clear()

    def read_slowly(self, rate: float, at_once: int) -> None:
        """Read this many bytes a second, some of them at once."""
        self._read_size = at_once
        self._read_pause = at_once / rate

    def read_on(self) -> None:
        """Read all that comes, at once."""
        self._read_size = 1 << 18
        self._read_pause = 0.0
        self._may_read.set()

    async def leave(self) -> None:
        """Send no more, close in order, and read to the end."""
        await self.say_goodbye()
        await self.until_end()
        if self.end == "eof":
            # Only this client ended it, so the relay read all bytes before the end.
            self._count_arrived(self.sent)

    async def say_goodbye(self) -> None:
        """Close in order, in the way of the transport."""
        async with self._writing:
            await self._write(self.stack.close())
        if self.kind == "plain":
            self.close_half()

    def close_half(self) -> None:
        """Close the sending half of the TCP connection."""
        if not self.end:
            with contextlib.suppress(OSError):
                self._socket.shutdown(socket.SHUT_WR)

    @property
    def port(self) -> int:
        """Its own port."""
        port: int = self._socket.getsockname()[1]
        return port

    async def until_end(self) -> None:
        """Read until the relay ends the connection, and close."""
        self.read_on()
        async with asyncio.timeout(BOUND):
            await self._ended.wait()
        self.close()

    def close(self) -> None:
        """Close the socket; unread bytes make the kernel reset the connection."""
        if self._socket.fileno() >= 0:
            self.held_at_most = self._socket.getsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF)
        if not self.end:
            self.may_lose = True
            self._finish("closed here")
        if self._reading is not None:
            self._reading.cancel()
        if self._write_rest is not None:
            self._write_rest.cancel()
        if self._socket.fileno() >= 0:
            # At once, as the next socket may get its number before both are cancelled.
            loop = asyncio.get_running_loop()
            loop.remove_reader(self._socket)
            loop.remove_writer(self._socket)
            self._socket.close()

    def reset(self) -> None:
        """Have the kernel reset the connection."""
        if self._socket.fileno() >= 0:
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _LINGER_RESET)
        self.close()

    # Out

    async def send(self, destination: NodePublic, size: int, *, disco: bool = False) -> bool:
        """Send one packet; returns whether the kernel took all of it."""
        return await self.send_run(destination, [size], disco=disco)

    async def send_run(
        self, destination: NodePublic, sizes: list[int], *, disco: bool = False
    ) -> bool:
        """Send packets in one write."""
        async with self._writing:
            if self.end:
                return False
            frames = []
            for size in sizes:
                stamp = self.ledger.stamp(self.number, self.key, destination, size, disco=disco)
                self.sent.add(size)
                frames.append(pack_send_packet(destination, stamp.packet()))
            return await self._write(self.stack.wrap(b"".join(frames)))

    async def write_raw(self, data: bytes) -> bool:
        """Write bytes into the socket as they are."""
        async with self._writing:
            return await self._write(data)

    async def close_peer(self, target: NodePublic) -> None:
        """As a mesh peer, have the relay close a key's connections."""
        async with self._writing:
            self.stack.session.close_peer(target)
            await self._write(self.stack.take())

    async def ping(self) -> bool:
        """Wait until the relay has acted on all that was sent before; returns whether it has."""
        data = os.urandom(8)
        answered = self._pongs[data] = asyncio.get_running_loop().create_future()
        async with self._writing:
            sent = self.sent + Count()
            self.stack.session.send_ping(data)
            await self._write(self.stack.take())
        async with asyncio.timeout(BOUND):
            while not answered.done() and not self.end:
                ended = asyncio.ensure_future(self._ended.wait())
                await asyncio.wait([answered, ended], return_when=asyncio.FIRST_COMPLETED)
                ended.cancel()
        if not answered.done():
            return False
        self._count_arrived(sent)
        return True

    def _count_arrived(self, sent: Count) -> None:
        self.ledger.arrived += sent - self._arrived
        self._arrived = sent

    async def _write(self, data: bytes) -> bool:
        """Write; returns whether the kernel took all. The reader finds out why not."""
        if not data or self.end:
            return False
        try:
            sent = self._socket.send(data)
        except BlockingIOError:
            sent = 0
        except OSError as e:
            self._note_reset(e)
            return False
        if sent == len(data):
            return True
        rest = asyncio.get_running_loop().sock_sendall(self._socket, memoryview(data)[sent:])
        self._write_rest = asyncio.ensure_future(rest)
        await asyncio.wait([self._write_rest])
        if self._write_rest.cancelled():
            return False
        self._note_reset(self._write_rest.exception())
        return self._write_rest.exception() is None

    def _note_reset(self, error: BaseException | None) -> None:
        # The kernel reports a reset once: the reader would only see an end then. A reset
        # after the relay's FIN is another error, and loses nothing.
        self._was_reset |= isinstance(error, ConnectionResetError)

    # In

    async def _read(self) -> None:
        loop = asyncio.get_running_loop()
        try:
            while True:
                await self._may_read.wait()
                data = await loop.sock_recv(self._socket, self._read_size)
                if not data:
                    self.may_lose |= self._was_reset
                    self._finish("ConnectionResetError" if self._was_reset else "eof")
                    return
                messages, answers = self.stack.receive(data)
                for message in messages:
                    self._take(message)
                if answers:
                    async with self._writing:
                        await self._write(answers)
                if self._read_pause:
                    await asyncio.sleep(self._read_pause)
        except OSError as e:
            # ssl.SSLError is one as well.
            self._fail(e, lost=self.spoilt or not isinstance(e, ssl.SSLError))
        except RemoteProtocolError as e:
            self._fail(e, lost=self.spoilt)

    def _fail(self, error: Exception, *, lost: bool) -> None:
        self.may_lose = lost
        if not lost:
            self.ledger.problem(f"connection {self.number}: {error!r}")
        self._finish(type(error).__name__)

    def _take(self, message: Message) -> None:
        if isinstance(message, ReceivedPacket):
            self.delivered.add(len(message.data))
            stamp = self.ledger.deliver(self.number, self.key, message.source, message.data)
            if stamp is not None:
                self.on_packet(stamp)
        elif isinstance(message, Pong):
            answered = self._pongs.pop(message.data, None)
            if answered is not None and not answered.done():
                answered.set_result(None)
        elif isinstance(message, ServerInfo):
            self._logged_in.set()
        elif isinstance(message, Restarting):
            self.restarting = message

    def _finish(self, end: str) -> None:
        self.end = self.end or end
        self._ended.set()

    def __repr__(self) -> str:
        return f"<Peer {self.number} {self.kind} {self.key.short()} {self.end or 'open'}>"
