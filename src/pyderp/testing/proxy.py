"""A TCP proxy whose port stays the same while nobody listens."""

from __future__ import annotations

import asyncio
import functools
import socket
import ssl
from collections.abc import Callable
from typing import Final

from pyderp.testing.connection import Connection
from pyderp.testing.plan import Plan

__all__ = ["HOST", "Proxy"]

HOST: Final = "127.0.0.1"
_BACKLOG: Final = 128


class Proxy:
    """Accepts connections and joins each to one of its own to the relay.

    Args:
        plan: the faults.
        target: the relay's address, asked for each connection.
        tls: the TLS context to serve, asked for each connection; `None`: plain TCP.
    """

    connections: dict[int, Connection]
    """Those that are open, by number."""

    def __init__(
        self,
        plan: Plan,
        *,
        target: Callable[[], tuple[str, int]],
        tls: Callable[[], ssl.SSLContext | None],
    ) -> None:
        self.connections = {}
        self._plan = plan
        self._target = target
        self._tls = tls
        # Never listens: it keeps the port ours while nobody does.
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
        """End all connections and give the port away."""
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
            except OSError:  # nobody is there any more
                return
            self._plan.counters.connections += 1
            number = self._plan.counters.connections
            connection = self.connections[number] = Connection(self._plan, number)
            task = asyncio.get_running_loop().create_task(
                self._serve(sock, connection), name=f"pyderp.testing connection {number}"
            )
            self._tasks.add(task)
            # Not in the task itself: a task that is cancelled at once never runs.
            task.add_done_callback(functools.partial(self._forget, number, sock))

    async def _serve(self, sock: socket.socket, connection: Connection) -> None:
        loop = asyncio.get_running_loop()
        try:
            sock.setblocking(False)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            await loop.create_connection(lambda: connection.relay_leg, *self._target())
            await loop.connect_accepted_socket(lambda: connection.client_leg, sock, ssl=self._tls())
            if not connection.over:
                await connection.closed()
        except OSError:
            pass  # the relay is not there, or the client left, or wants another kind of TLS
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
