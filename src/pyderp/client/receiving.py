"""Waits for messages of a client's connections; connects first if there is none."""

from __future__ import annotations

from pyderp.client.connection import ClientConnection
from pyderp.client.lifecycle import Lifecycle
from pyderp.errors import ClientClosed, ConnectionClosed

__all__ = ["MessageReceiver"]


class MessageReceiver:
    """Stays with a connection until all its messages and its error were taken, then takes the next.

    Also if a sender has connected again meanwhile: otherwise messages would be lost, and a watcher
    of a mesh would not notice that its list of clients is out of date.
    """

    def __init__(self, life: Lifecycle) -> None:
        self._life = life
        self._connection: ClientConnection | None = None

    async def wait(self) -> ClientConnection:
        """Wait until messages have come, connecting first if need be; return their connection.

        Raises:
            ConnectionClosed: the connection ended, and all its messages were taken.
            ConnectError: there was no connection and none could be made.
        """
        while True:
            connection = self._connection
            if connection is None:
                connection = self._connection = await self._life.for_receive("Recv")
            if connection.messages:
                return connection
            self._life.check_loop()
            try:
                await connection.wait()
            except ConnectionClosed as e:
                self._connection = None
                closed = isinstance(e, ClientClosed)
                if not self._life.forget_or_retry(connection, "Recv", sending=False, closed=closed):
                    raise
