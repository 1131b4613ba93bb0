"""A TCP proxy that knows DERP, and that keeps its port while it refuses connections."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import socket
import ssl
import struct
from collections.abc import Callable
from http import HTTPStatus
from typing import Final, cast

from pyderp.keys import KEY_LEN, NONCE_LEN, NodePrivate, NodePublic
from pyderp.testing.pipe import Cutter, FaultPlan, Mode, Pipe, Way, read_request
from pyderp.wire.frames import FRAME_HEADER_LEN, FrameType
from pyderp.wire.http import Upgrade
from pyderp.wire.login import seal_server_info

__all__ = ["HOST", "ProxiedConnection", "Proxy"]


_RESET: Final = struct.pack("ii", 1, 0)
"""Value of SO_LINGER with which `close` sends RST and drops bytes that were not sent."""


class Leg(asyncio.Protocol):
    """One of the two TCP connections, to the client or to the relay.

    Args:
        source: gets the bytes that this leg receives.
        update: called when this leg's write buffer becomes full, and when it has room again.
    """

    def __init__(self, source: Pipe, update: Callable[[], None]) -> None:
        self.transport: asyncio.Transport | None = None
        self.full = False
        self.lost = asyncio.Event()
        self._source = source
        self._update = update
        self._reading = True

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Called by the event loop."""
        # A cast, because uvloop's transports are no subclasses of asyncio.Transport.
        self.transport = cast("asyncio.Transport", transport)
        self._update()

    def data_received(self, data: bytes) -> None:
        """Called by the event loop."""
        self._source.receive_data(data)

    def connection_lost(self, exc: Exception | None) -> None:
        """Called by the event loop."""
        self._source.receive_eof()
        self.lost.set()

    def pause_writing(self) -> None:
        """Called by the event loop: the write buffer is full."""
        self.full = True
        self._update()

    def resume_writing(self) -> None:
        """Called by the event loop: the write buffer has room again."""
        self.full = False
        self._update()

    def discard(self) -> None:
        """Drop all references, so that no cycle remains; it is not used again."""
        self.transport = None
        self._update = lambda: None

    def read(self, wanted: bool) -> None:
        """Read from the socket, or leave the bytes in the kernel's buffer."""
        if self.transport is None or self.transport.is_closing() or wanted is self._reading:
            return
        self._reading = wanted
        if wanted:
            self.transport.resume_reading()
        else:
            self.transport.pause_reading()

    def write(self, data: bytes) -> None:
        """Send bytes; does nothing after the end."""
        if self.transport is not None and not self.transport.is_closing():
            self.transport.write(data)

    def close(self) -> None:
        """End the connection after what was written."""
        if self.transport is not None:
            self.transport.close()

    def abort(self) -> None:
        """End the connection now."""
        # asyncio raises on an abort after a `close` that had bytes left to write.
        if self.transport is not None and not self.lost.is_set():
            self.transport.abort()

    def cut(self, *, reset: bool) -> None:
        """End the connection now: with RST, or with FIN after what was written."""
        if self.transport is None or self.lost.is_set():
            return
        if reset:
            sock = self.transport.get_extra_info("socket")
            with contextlib.suppress(OSError):  # the other side has closed it meanwhile
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
        elif self.transport.get_write_buffer_size():
            self.transport.close()
            return
        # Unlike `close`, this sends no close alert of TLS.
        self.transport.abort()


class ProxiedConnection:
    """A client's connection to the proxy, and the proxy's connection to the relay for it.

    Args:
        plan: the faults.
        number: number of the connection, counted from 1 in the order of accepting.
    """

    def __init__(self, plan: FaultPlan, number: int) -> None:
        self.client_key: NodePublic | None = None
        self.over = False
        """Whether it was ended, perhaps before the connection to the relay was made."""
        self._plan = plan
        self._number = number
        self.up = Pipe(
            plan,
            "up",
            number,
            cutter=Cutter(self._on_request),
            change=self._change_up,
            deliver=lambda data: self._deliver("up", data),
            finish=lambda: self._finish(self.relay_leg),
        )
        self.down = Pipe(
            plan,
            "down",
            number,
            cutter=Cutter(self._on_answer),
            change=self._change_down,
            deliver=lambda data: self._deliver("down", data),
            finish=lambda: self._finish(self.client_leg),
        )
        self.client_leg = Leg(self.up, self.update)
        self.relay_leg = Leg(self.down, self.update)

    async def closed(self) -> None:
        """Wait until both TCP connections have ended."""
        for leg in (self.relay_leg, self.client_leg):
            if leg.transport is not None:
                await leg.lost.wait()

    def update(self) -> None:
        """Read from each leg whose bytes the other leg can take."""
        self.client_leg.read(not self._plan.frozen and not self.relay_leg.full)
        self.relay_leg.read(not self._plan.frozen and not self.client_leg.full)

    def thaw(self) -> None:
        """Deliver and read again after a freeze."""
        self.up.run()
        self.down.run()
        self.update()

    def inject(self, data: bytes) -> bool:
        """Send bytes to the client between two frames; `False`: no frames are under way yet."""
        if self.down.cutter.mode is not Mode.FRAMES:
            return False
        self._plan.counters.injected += 1
        self.down.put(data)
        return True

    def cut(self, *, reset: bool) -> None:
        """End both TCP connections, and count it; bytes that are under way are lost."""
        self.over = True
        self._plan.counters.cut += 1
        self.up.stop()
        self.down.stop()
        self.client_leg.cut(reset=reset)
        self.relay_leg.abort()

    def abort(self) -> None:
        """End both TCP connections, without counting it as a cut."""
        self.over = True
        self.up.stop()
        self.down.stop()
        self.client_leg.abort()
        self.relay_leg.abort()

    def discard(self) -> None:
        """Drop the references between its parts, which only the cyclic collector would free."""
        for each in (self.up, self.down, self.client_leg, self.relay_leg):
            each.discard()

    def _finish(self, leg: Leg) -> None:
        self.over = True
        leg.close()

    def _deliver(self, way: Way, data: bytes) -> None:
        leg = self.relay_leg if way == "up" else self.client_leg
        cut = self._plan.cut_after
        if cut is None or cut.way != way or len(data) < cut.left:
            if cut is not None and cut.way == way:
                cut.left -= len(data)
            leg.write(data)
            return
        leg.write(data[: cut.left])
        self._plan.cut_after = None
        self.cut(reset=cut.reset)

    # Callbacks of the pipes

    def _on_request(self, head: bytes) -> Mode:
        upgrade, fast_start = read_request(head)
        if upgrade is not Upgrade.NONE and self._plan.statuses:
            self._reject(self._plan.statuses.popleft())
            return Mode.OPAQUE
        if upgrade is not Upgrade.DERP:
            self.down.cutter.mode = Mode.OPAQUE
            return Mode.OPAQUE
        if fast_start:
            self.down.cutter.mode = Mode.FRAMES
        return Mode.FRAMES

    def _on_answer(self, head: bytes) -> Mode:
        return Mode.FRAMES if head.startswith(b"HTTP/1.1 101 ") else Mode.OPAQUE

    def _reject(self, status: int) -> None:
        self._plan.counters.rejected += 1
        line = f"{status} {HTTPStatus(status).phrase}"
        self.up.stop()
        self.down.put(
            f"HTTP/1.1 {line}\r\nContent-Type: text/plain\r\nConnection: close\r\n"
            f"Content-Length: {len(line)}\r\n\r\n{line}".encode("ascii")
        )
        self.down.receive_eof()
        self.relay_leg.abort()

    def _change_up(self, kind: int, frame: bytes) -> bytes:
        if kind == FrameType.CLIENT_INFO and self.client_key is None:
            key = frame[FRAME_HEADER_LEN : FRAME_HEADER_LEN + KEY_LEN]
            if len(key) == KEY_LEN:
                self.client_key = NodePublic(key)
        return frame

    def _change_down(self, kind: int, frame: bytes) -> bytes:
        if kind != FrameType.SERVER_INFO or not self._plan.wrong_keys or self.client_key is None:
            return frame
        self._plan.wrong_keys -= 1
        self._plan.counters.wrong_keys += 1
        rng = self._plan.random(self._number, "wrong key")
        other = NodePrivate.generate(rng.randbytes(KEY_LEN))
        return seal_server_info(other.shared_key(self.client_key), nonce=rng.randbytes(NONCE_LEN))


HOST: Final = "127.0.0.1"
_BACKLOG: Final = 128


class Proxy:
    """Accepts connections, and makes a connection to the relay for each.

    Args:
        plan: the faults.
        target: returns the relay's address; called for each connection.
        tls: returns the TLS context to serve, or `None` for plain TCP; called for each connection.
    """

    connections: dict[int, ProxiedConnection]
    """The open connections, by number."""

    def __init__(
        self,
        plan: FaultPlan,
        *,
        target: Callable[[], tuple[str, int]],
        tls: Callable[[], ssl.SSLContext | None],
    ) -> None:
        self.connections = {}
        self._plan = plan
        self._target = target
        self._tls = tls
        # This socket never listens. It keeps the port reserved while the proxy does not listen.
        self._holder = _bind(0)
        self._listener: socket.socket | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self.port: int = self._holder.getsockname()[1]

    @property
    def listening(self) -> bool:
        """Whether new connections are accepted."""
        return self._listener is not None

    def refuse(self) -> None:
        """Refuse new connections."""
        if self._listener is not None:
            asyncio.get_running_loop().remove_reader(self._listener.fileno())
            self._listener.close()
            self._listener = None

    def accept(self) -> None:
        """Accept new connections."""
        if self._listener is None:
            self._listener = _bind(self.port)
            self._listener.listen(_BACKLOG)
            asyncio.get_running_loop().add_reader(self._listener.fileno(), self._accept_all)

    async def aclose(self) -> None:
        """End all connections, and release the port."""
        self.refuse()
        self._holder.close()
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _accept_all(self) -> None:
        while self._listener is not None:
            try:
                sock, _ = self._listener.accept()
            except OSError:  # no further connection waits
                return
            self._plan.counters.connections += 1
            number = self._plan.counters.connections
            connection = self.connections[number] = ProxiedConnection(self._plan, number)
            task = asyncio.get_running_loop().create_task(
                self._serve(sock, connection), name=f"pyderp.testing connection {number}"
            )
            self._tasks.add(task)
            # Not in the task itself: a task that is cancelled before its first step never runs.
            task.add_done_callback(functools.partial(self._forget, number, sock))

    async def _serve(self, sock: socket.socket, connection: ProxiedConnection) -> None:
        loop = asyncio.get_running_loop()
        try:
            sock.setblocking(False)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            await loop.create_connection(lambda: connection.relay_leg, *self._target())
            await loop.connect_accepted_socket(lambda: connection.client_leg, sock, ssl=self._tls())
            if not connection.over:
                await connection.closed()
        except OSError:
            pass  # the relay cannot be reached, or the client left or failed its TLS handshake
        finally:
            connection.abort()
            await connection.closed()

    def _forget(self, number: int, sock: socket.socket, task: asyncio.Task[None]) -> None:
        connection = self.connections.pop(number)
        if connection.client_leg.transport is None:
            sock.close()
        connection.discard()
        self._tasks.discard(task)


def _bind(port: int) -> socket.socket:
    sock = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind((HOST, port))
        sock.setblocking(False)
    except BaseException:
        sock.close()
        raise
    return sock
