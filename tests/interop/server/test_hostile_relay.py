"""Use of a client's login by a relay at another relay, and what pyderp refuses.

DERP's login has no challenge: a relay that presents another relay's key to a client gets a login
for that relay. And both boxes of a login are sealed under the same key, so that either passes
for the other.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

import pyderp
from pyderp.errors import ConnectionClosed, RemoteProtocolError
from pyderp.keys import KEY_LEN, NodePrivate, NodePublic
from pyderp.wire.frames import (
    FRAME_HEADER_LEN,
    HEADER,
    FrameType,
    pack_client_info,
    pack_frame,
    pack_server_info,
    pack_server_key,
)
from pyderp.wire.upgrade import switching_protocols, upgrade_request
from tests.interop.gopeer import GOPEER, NEWER_GOPEER
from tests.interop.peers import need
from tests.interop.relays import NEWER, Kind, Relay, running
from tests.server.dial import hang_up, open_stream

from .support import both

pytestmark = pytest.mark.timeout(60)


async def read_frame(reader: asyncio.StreamReader) -> tuple[int, bytes]:
    kind, length = HEADER.unpack(await reader.readexactly(FRAME_HEADER_LEN))
    return kind, await reader.readexactly(length)


async def log_in_with(relay: Relay, frame: bytes) -> bytes | None:
    """Send a relay this ClientInfo; returns its ServerInfo, or `None` if it closes."""
    reader, writer = await open_stream((relay.address, relay.port))
    try:
        writer.write(upgrade_request("relay.test", "/derp", user_agent="tests") + frame)
        await reader.readuntil(b"\r\n\r\n")
        assert (await read_frame(reader))[0] == FrameType.SERVER_KEY
        kind, payload = await read_frame(reader)
        assert kind == FrameType.SERVER_INFO
    except (asyncio.IncompleteReadError, ConnectionError):
        return None
    else:
        return payload
    finally:
        await hang_up(writer)


@contextlib.asynccontextmanager
async def hostile(shown: NodePublic) -> AsyncIterator[tuple[str, asyncio.Queue[bytes]]]:
    """A relay that presents another's key, and sends its clients their own box as ServerInfo.

    Yields its URL, and the ClientInfo frames that it gets.
    """
    caught: asyncio.Queue[bytes] = asyncio.Queue()
    serving: set[asyncio.Task[None]] = set()

    def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        serving.add(asyncio.ensure_future(serve(reader, writer)))

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
            await reader.readuntil(b"\r\n\r\n")
            writer.write(switching_protocols(shown) + pack_server_key(shown))
            kind, payload = await read_frame(reader)
            assert kind == FrameType.CLIENT_INFO
            caught.put_nowait(pack_frame(kind, payload))
            writer.write(pack_server_info(payload[KEY_LEN:]))
            while True:
                kind, payload = await read_frame(reader)
                if kind == FrameType.PING:
                    writer.write(pack_frame(FrameType.PONG, payload))
        await hang_up(writer)

    server = await asyncio.start_server(connected, "127.0.0.1", 0)
    async with server:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/derp", caught
    # All clients are gone, so these end by themselves.
    await asyncio.gather(*serving)


async def go_client(url: str, program: str = GOPEER) -> tuple[int, bytes]:
    """Let Go's client connect and ping; returns exit code and report."""
    process = await asyncio.create_subprocess_exec(
        need(program), "-scenario=ping", f"-url={url}", stdout=asyncio.subprocess.PIPE
    )
    output, _ = await process.communicate()
    assert process.returncode is not None
    return process.returncode, output


def private_key(directory: Path) -> NodePrivate:
    return NodePrivate.parse(json.loads((directory / "relay.json").read_text())["PrivateKey"])


@both
def test_a_login_that_another_relay_got(kind: Kind, tmp_path: Path) -> None:
    """Both relays accept it: it does not contain its destination.

    The answer to it is no login for pyderp. It is one for derper.
    """

    async def main() -> None:
        private = private_key(tmp_path)
        async with hostile(private.public) as (url, caught):
            going = asyncio.ensure_future(go_client(url, program))
            frame = await caught.get()
            client = NodePublic(frame[FRAME_HEADER_LEN:][:KEY_LEN])
            said = private.open_from(client, frame[FRAME_HEADER_LEN + KEY_LEN :])
            assert {"version", "CanAckPings"} <= json.loads(said).keys()
            answer = await log_in_with(relay, frame)
            assert answer is not None
            assert json.loads(private.open_from(client, answer)) == {"version": 2}
            again = await log_in_with(relay, pack_client_info(client, answer))
            assert (again is None) is (kind == "pyderp")
            await going

    program = NEWER_GOPEER if kind == NEWER else GOPEER
    need(program)
    with running(kind, "plain", tmp_path) as relay:
        asyncio.run(main())
        if kind == "pyderp":
            assert "is a box that this relay sealed" in relay.log_text()


@pytest.mark.parametrize("program", [GOPEER, NEWER_GOPEER])
def test_a_relay_without_the_private_key_it_presents(program: str) -> None:
    """Go's client accepts its own box as the answer; pyderp's does not."""

    async def main() -> None:
        shown = NodePrivate.generate().public
        async with hostile(shown) as (url, caught):
            code, output = await go_client(url, program)
            assert code == 0, output
            async with pyderp.Client.for_url(url) as client:
                with pytest.raises(ConnectionClosed) as ended:
                    await client.recv()
                cause = ended.value.__cause__
                assert isinstance(cause, RemoteProtocolError)
                assert "a box that this client sealed" in str(cause)
            assert caught.qsize() >= 2

    asyncio.run(main())
