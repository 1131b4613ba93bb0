"""A stream over a websocket of the websockets library: nothing of the stream is left.

The library's own connection is a cycle as long as it lives, and belongs to the program.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from typing import Final, TypeAlias

import pytest
from websockets.frames import Opcode

from pyderp import DerpError
from pyderp.tasks import cancel_and_wait
from pyderp.wsconn import Scope, WebSocketStream
from tests.leftovers import none_left
from tests.wsconn.peers import Peer, Role
from tests.wsconn.peers import stream as streaming

from .test_client_ends import SHORT

Act: TypeAlias = Callable[[Peer], object]
Use: TypeAlias = Callable[[WebSocketStream], Awaitable[object]]

LIBRARIES: Final = ("websockets", "asyncio", "uvloop")


async def read_all(stream: WebSocketStream) -> None:
    with contextlib.suppress(DerpError, OSError, EOFError):
        while await stream.read(1000):
            pass
    with contextlib.suppress(DerpError, OSError, EOFError):
        await stream.readexactly(1)


async def write_on(stream: WebSocketStream) -> None:
    with contextlib.suppress(DerpError, OSError):
        while True:
            await stream.write(b"x" * 10_000)


async def both(stream: WebSocketStream) -> None:
    writing = asyncio.create_task(write_on(stream))
    await read_all(stream)
    await cancel_and_wait([writing])


async def cancelled_read(stream: WebSocketStream) -> None:
    task = asyncio.create_task(read_all(stream))
    await asyncio.sleep(0)
    await cancel_and_wait([task])


async def deadline(stream: WebSocketStream) -> None:
    stream.set_deadline(asyncio.get_running_loop().time() + SHORT)
    await both(stream)


async def close(stream: WebSocketStream) -> None:
    closing = asyncio.create_task(stream.aclose())
    await asyncio.sleep(0)
    await cancel_and_wait([closing])


async def end_of_the_scope(stream: WebSocketStream) -> None:
    assert stream._scope is not None
    stream._scope.end()
    await read_all(stream)


def closes(peer: Peer, code: int | None) -> None:
    peer.close(code)
    peer.hang_up()


def says_text(peer: Peer) -> None:
    peer.text(b"x")
    peer.hang_up()


def says_nonsense(peer: Peer) -> None:
    peer.writer.write(b"\xff" * 100)
    peer.hang_up()


def says_half(peer: Peer) -> None:
    peer.writer.write(peer.pack(Opcode.BINARY, b"x" * 9)[:5])
    peer.drop()


ACTS: Final[dict[str, Act]] = {
    "hangs up": Peer.hang_up,
    "drops": Peer.drop,
    "closes": lambda peer: closes(peer, 1000),
    "closes with an error": lambda peer: closes(peer, 1011),
    "closes without a code": lambda peer: closes(peer, None),
    "says text": says_text,
    "says nonsense": says_nonsense,
    "says half": says_half,
}
USES: Final[dict[str, Use]] = {f.__name__: f for f in (read_all, both)}
OURS: Final[dict[str, Use]] = {
    f.__name__: f for f in (cancelled_read, deadline, close, end_of_the_scope)
}


async def one_ending(role: Role, act: Act, use: Use) -> None:
    async with streaming(role, scope=Scope()) as (stream, peer):
        act(peer)
        await use(stream)
        peer.drop()
        await read_all(stream)
        with contextlib.suppress(TimeoutError):
            await stream.aclose()


@pytest.mark.parametrize("role", ["client", "server"])
async def test_a_stream_leaves_nothing(role: Role) -> None:
    await one_ending(role, ACTS["closes"], read_all)
    for act in ACTS.values():
        for use in USES.values():
            async with none_left(libraries=LIBRARIES):
                await one_ending(role, act, use)
    for use in OURS.values():
        async with none_left(libraries=LIBRARIES):
            await one_ending(role, lambda _: None, use)
