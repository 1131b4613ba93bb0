"""Watch the clients of a relay over all reconnects (`derphttp.RunWatchConnectionLoop`)."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable
from typing import Final

from pyderp.client.client import Client
from pyderp.errors import ClientClosed, ConnectError, ConnectionClosed
from pyderp.keys import NodePublic
from pyderp.text import counted
from pyderp.wire.frames import PeerGoneReason
from pyderp.wire.messages import Message, PeerGone, PeerPresent

__all__ = ["watch_mesh"]

log = logging.getLogger("pyderp.mesh")

RETRY: Final = 5.0
"""Seconds between a failure and the next attempt."""
STATUS: Final = 10.0
"""Seconds between two log lines with the number of peers."""
_FIRST_STATUS: Final = 2.0
"""Seconds after which the first such line is logged at the latest."""
_SETTLED: Final = 0.2
"""Seconds without a further PeerPresent after which the first report counts as complete."""


async def watch_mesh(
    client: Client,
    *,
    add: Callable[[PeerPresent], None],
    remove: Callable[[PeerGone], None],
    ignore_server_key: NodePublic | None = None,
    notify_error: Callable[[Exception], None] | None = None,
    retry: float = RETRY,
) -> None:
    """Call `add` and `remove` as clients come to a relay and leave it; reconnect by itself.

    `add` is called for every connection, also for a second one of the same key; `remove` for
    the last one of a key. The watcher itself is reported, too. When the connection breaks,
    another task has connected again, or the watch is stopped, `remove` is called for each key
    that was present, with `PeerGoneReason.MESH_CONN_BROKE`. Callbacks run between messages and
    must not block.

    Args:
        client: has the relay's mesh key; no other task may receive from it.
        ignore_server_key: return when the relay has this key; for a relay that is in the
            list of its own mesh. The connection stays open.
        notify_error: called with the error of each failed connect and each connection that broke.
        retry: seconds between a failure and the next attempt.

    Returns:
        when the relay has the key to ignore, or when the client was closed. To stop the watch
        otherwise, cancel it.
    """
    watch = _Watch(client, add, remove)
    notify = notify_error or (lambda _: None)
    try:
        while True:
            try:
                if await watch.connect(ignore_server_key):
                    return
                await watch.receive()
            except ClientClosed:
                return
            except ConnectError as e:
                log.warning("mesh connect: %s", e)
                notify(e)
            except ConnectionClosed as e:
                # Which clients come and go meanwhile is not known: the relay reports them all
                # again on the next connection.
                watch.clear()
                log.warning("Recv: %s", e)
                notify(e)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(retry):
                    await client.wait_closed()
    finally:
        watch.end()


class _Watch:
    """The peers that are present, and the log lines about them."""

    def __init__(
        self,
        client: Client,
        add: Callable[[PeerPresent], None],
        remove: Callable[[PeerGone], None],
    ) -> None:
        self._client = client
        self._add = add
        self._remove = remove
        self._present: set[NodePublic] = set()
        self._loop = asyncio.get_running_loop()
        self._first_line = self._loop.call_later(_FIRST_STATUS, self._log_connected)
        self._connected_logged = False
        self._logged_at = self._loop.time()

    async def connect(self, ignore: NodePublic | None) -> bool:
        """Connect and subscribe; return whether this is the relay to ignore."""
        await self._client.watch_connection_changes()
        if ignore is not None and self._client.server_public_key == ignore:
            log.info("detected self-connect; ignoring host")
            return True
        return False

    async def receive(self) -> None:
        """Handle messages until the connection ends.

        All messages are of one connection: a receiver gets the error of its connection first, also
        if another task has connected again meanwhile.
        """
        while True:
            self._handle(await self._client.recv())

    def _handle(self, message: Message) -> None:
        match message:
            case PeerPresent():
                self._present.add(message.peer)
                self._add(message)
                self._delay_first_line()
            case PeerGone():
                self._log_connected()
                if message.reason != PeerGoneReason.DISCONNECTED:
                    log.info("peer %s gone, reason %#x", message.peer.short(), message.reason)
                self._remove(message)
                self._present.discard(message.peer)
            case _:
                return
        now = self._loop.time()
        if now - self._logged_at > STATUS:
            self._logged_at = now
            log.info("%s", counted(len(self._present), "peer"))

    def _delay_first_line(self) -> None:
        # The relay reports its clients one by one: one line when the last has come is enough.
        if not self._connected_logged:
            self._first_line.cancel()
            self._first_line = self._loop.call_later(_SETTLED, self._log_connected)

    def _log_connected(self) -> None:
        if not self._connected_logged:
            self._connected_logged = True
            self._first_line.cancel()
            log.info("connected; %s", counted(len(self._present), "peer"))

    def clear(self) -> None:
        """Report all peers as gone: without a connection, the relay reports none of them."""
        if not self._present:
            return
        mappings = counted(len(self._present), "forwarding mapping")
        log.info("reconnected; clearing %s", mappings)
        gone, self._present = self._present, set()
        for peer in gone:
            self._remove(PeerGone(peer, PeerGoneReason.MESH_CONN_BROKE))

    def end(self) -> None:
        """Stop the timer, and report all peers as gone."""
        self._first_line.cancel()
        self.clear()
