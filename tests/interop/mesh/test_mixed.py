"""A full mesh of two Go derpers, one of each version, and two of pyderp's relays."""

from __future__ import annotations

import asyncio
import itertools
from collections import Counter
from contextlib import AsyncExitStack, suppress
from typing import TYPE_CHECKING

import pytest

from pyderp import (
    Client,
    ClientConfig,
    ConnectError,
    ConnectionClosed,
    NetworkSettings,
    PeerGone,
    ReceivedPacket,
    TLSConfig,
)
from tests.interop.relays import DERPERS, MESH_KEY, Kind, each_derper

from .nodes import BOUND, OTHER_MESH_KEY, mesh

if TYPE_CHECKING:
    from pathlib import Path

    from .nodes import Node

_AGAIN = 0.05
"""Seconds between two packets of a client that sends until one arrives."""


class User:
    """A client that keeps all messages."""

    def __init__(self, node: Node, config: ClientConfig) -> None:
        self.client = Client.for_url(node.url, config=config)
        self.got: Counter[tuple[object, bytes]] = Counter()
        self.gone: Counter[object] = Counter()
        self.task = asyncio.create_task(self._receive())
        self._numbers = itertools.count()

    @property
    def key(self) -> object:
        return self.client.self_public_key

    async def _receive(self) -> None:
        async for message in self.client:
            if isinstance(message, ReceivedPacket):
                self.got[message.source, message.data] += 1
            elif isinstance(message, PeerGone):
                self.gone[message.peer] += 1

    async def reaches(self, other: User) -> None:
        """Send until something arrives."""
        sent = set()
        while not any(source == self.key and data in sent for source, data in other.got):
            data = next(self._numbers).to_bytes(4, "big")
            sent.add(data)
            with suppress(ConnectError, ConnectionClosed):  # its relay may be starting again
                await self.client.send(other.client.self_public_key, data)
            await asyncio.sleep(_AGAIN)

    async def hears_gone(self, *others: User) -> None:
        """Wait until it got PeerGone for others."""
        while not {other.key for other in others} <= self.gone.keys():  # noqa: ASYNC110 (polled)
            await asyncio.sleep(_AGAIN)

    async def aclose(self) -> None:
        await self.client.aclose()
        await self.task


async def all_reach_all(users: list[User]) -> None:
    """In every direction; no packet comes twice."""
    async with asyncio.timeout(BOUND), asyncio.TaskGroup() as tasks:
        for one, other in itertools.permutations(users, 2):
            tasks.create_task(one.reaches(other))
    for user in users:
        assert set(user.got.values()) == {1}, "a packet came twice"


@pytest.mark.parametrize("derpers", [DERPERS, DERPERS[::-1]], ids=["older dies", "newer dies"])
def test_clients_of_four_nodes_reach_each_other(derpers: tuple[Kind, ...], tmp_path: Path) -> None:
    """In all directions. Two nodes crash, which does not disturb the others; they return, and all
    clients reach each other again."""

    async def main(nodes: list[Node]) -> None:
        root = tmp_path / "localhost.crt"
        config = ClientConfig(network=NetworkSettings(), tls=TLSConfig(extra_roots=[root]))
        async with AsyncExitStack() as stack:
            users = [User(node, config) for node in nodes]
            for user in users:
                stack.push_async_callback(user.aclose)
            await all_reach_all(users)

            go, ours = users[1], users[3]
            for dead in (nodes[0], nodes[2]):
                dead.kill()
            async with asyncio.timeout(BOUND):
                for user in (go, ours):
                    await user.hears_gone(users[0], users[2])
            for user in users:
                user.got.clear()
            await all_reach_all([go, ours])

            for dead in (nodes[0], nodes[2]):
                await asyncio.to_thread(dead.start)
            for user in users:
                user.got.clear()
            await all_reach_all(users)

    with mesh([*derpers, "pyderp", "pyderp"], tmp_path) as nodes:
        asyncio.run(main(nodes))
        # pyderp's node that stayed logs each event once.
        text = nodes[3].text()
        assert "that is this relay itself" in text
        assert text.count("connected again") >= 2
        assert text.count(" WARNING mesh with ") <= 6


@each_derper
def test_a_derper_with_another_mesh_key(derper: Kind, tmp_path: Path) -> None:
    """It closes without a message; pyderp's log has one that helps."""
    with mesh([derper, "pyderp"], tmp_path, keys=[OTHER_MESH_KEY, MESH_KEY]) as nodes:
        nodes[1].logs("its mesh key probably differs from ours")
