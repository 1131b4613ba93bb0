"""The client waits for the body of a refusal, within a limit."""

from __future__ import annotations

import asyncio

import pytest

from pyderp.errors import TLSError, UpgradeRejected
from pyderp.net import websocket
from pyderp.net.websocket import read_refusal
from pyderp.wire.upgrade import UpgradeReply

from .test_websocket import FakeLink

HEAD = b"HTTP/1.1 403 Forbidden\r\nContent-Length: 100\r\n\r\n"


class Trickle(FakeLink):
    """A peer that sends its bytes one at a time."""

    async def read(self) -> bytes:
        await asyncio.sleep(0.005)
        return b"."


def refused(data: bytes = HEAD) -> UpgradeReply:
    reply = UpgradeReply()
    assert reply.receive_data(data) is None
    assert reply.refused
    return reply


async def error_of(link: FakeLink, reply: UpgradeReply) -> UpgradeRejected:
    """The error that is raised."""
    async with asyncio.timeout(10):
        with pytest.raises(UpgradeRejected) as caught:
            await read_refusal(link, reply.receive_data, reply.refusal)
    return caught.value


@pytest.mark.parametrize(
    ("incoming", "body"),
    [
        ([b"go ", b"away".ljust(97)], "go away"),
        ([b"go away", b""], "go away"),
        ([b"go", ConnectionResetError()], "go"),
        ([b"go", TLSError("tampered with")], "go"),
        ([b"x" * 5000], "x" * 100),
    ],
)
async def test_the_part_of_the_body_that_came_is_reported(
    incoming: list[bytes | Exception], body: str
) -> None:
    link = FakeLink()
    for chunk in incoming:
        link.incoming.put_nowait(chunk)
    error = await error_of(link, refused())
    assert (error.status, error.body) == (403, body)


@pytest.mark.parametrize("link", [FakeLink, Trickle])
async def test_a_slow_body_is_cut_off(
    monkeypatch: pytest.MonkeyPatch, link: type[FakeLink]
) -> None:
    """No byte comes, or one at a time."""
    monkeypatch.setattr(websocket, "BODY_WAIT", 0.05)

    error = await error_of(link(), refused(HEAD.replace(b"100", b"4000")))
    assert error.status == 403
    assert set(error.body) <= {"."}


async def test_a_time_limit_of_the_caller_raises_timeouterror() -> None:
    reply = refused()
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.02):
            await read_refusal(FakeLink(), reply.receive_data, reply.refusal)
