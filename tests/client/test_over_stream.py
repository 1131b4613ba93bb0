"""A DERP session over a stream that is open already."""

from __future__ import annotations

import asyncio
import socket
from typing import Any

import anyio
import pytest

from pyderp import (
    Client,
    ConnectError,
    LocalProtocolError,
    is_transient,
)
from pyderp.net.streams import as_link
from pyderp.wire.frames import FrameType
from tests.owntime import own_time

from .fakes import (
    PEER,
    bounded,
    fake_relay,
    until_closed,
)

pytestmark = pytest.mark.both_loops


class TestOverStream:
    @pytest.mark.parametrize("kind", ["socket", "streams", "link", "anyio"])
    async def test_any_kind_of_stream_can_be_used(self, kind: str) -> None:
        """A stream is used once; there is no HTTP."""
        async with fake_relay() as relay:
            address = ("127.0.0.1", relay.port)
            stream: Any = socket.create_connection(address)
            if kind == "streams":
                stream = await asyncio.open_connection(sock=stream)
            elif kind == "link":
                stream = await as_link(stream)
            elif kind == "anyio":
                stream.close()
                await (await relay.accept()).gone()
                stream = await anyio.connect_tcp(*address)
            async with Client.over_stream(stream) as client, bounded():
                connecting = asyncio.create_task(client.connect())
                peer = await relay.accept()
                await peer.login()
                await connecting
                assert "the given stream" in str(client)
                assert (client.local_address is None) is (kind in ("streams", "anyio"))
                await client.send(PEER, b"x")
                assert (await peer.expect(FrameType.SEND_PACKET))[32:] == b"x"
                peer.hang_up()
                await until_closed(client)
                with pytest.raises(ConnectError, match="pass a function that") as caught:
                    await client.connect()
                assert isinstance(caught.value.attempts[0], LocalProtocolError)
                assert not is_transient(caught.value)
            await peer.gone()

    async def test_close_waits_for_no_peer(self) -> None:
        async with fake_relay() as relay:
            streams = await asyncio.open_connection("127.0.0.1", relay.port)
            client = Client.over_stream(streams)
            connecting = asyncio.create_task(client.connect())
            peer = await relay.accept()
            await peer.login()
            await connecting
            await client.send(PEER, b"last")
            began = own_time()
            await client.aclose()
            assert own_time() - began < 0.5
            assert (await peer.expect(FrameType.SEND_PACKET))[32:] == b"last"
            await peer.gone()

    async def test_a_function_is_called_at_every_connect(self) -> None:
        async with fake_relay() as relay:

            async def opens() -> socket.socket:
                return socket.create_connection(("127.0.0.1", relay.port))

            async with Client.over_stream(opens) as client, bounded():
                for generation in (1, 2):
                    connecting = asyncio.create_task(client.connect())
                    peer = await relay.accept()
                    await peer.login()
                    await connecting
                    assert client.generation == generation
                    peer.cut()
                    await until_closed(client)


async def test_a_stream_that_was_never_used_is_closed() -> None:
    """The client owns the stream from the start."""
    ours, theirs = socket.socketpair()
    with theirs:
        await Client.over_stream(ours).aclose()
        theirs.setblocking(False)
        assert await asyncio.get_running_loop().sock_recv(theirs, 1) == b""
    assert ours.fileno() == -1
