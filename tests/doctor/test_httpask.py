"""The doctor's requests: what is sent, and how unusual answers are read."""

from __future__ import annotations

import asyncio

import pytest

from pyderp import NodePrivate
from pyderp.doctor.httpask import NotHttp, Reply, ask_upgrade, get
from pyderp.net.dial import dial_host
from pyderp.net.settings import NetworkSettings
from pyderp.wire.upgrade import switching_protocols, upgrade_request

from .support import head_of, run, serving

HEAD = b"HTTP/1.1 200 OK\r\nServer: edge\r\n"
SETTINGS = b"\0\0\0\x04\0\0\0\0\0"


async def exchange(answer: bytes, *, upgrade: bool = False) -> tuple[str, Reply]:
    """Send a request to a server that answers and closes; returns the request's head, too."""
    heads: list[str] = []

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        heads.append(await head_of(reader))
        writer.write(answer)

    async with serving(handle) as port:
        link = await dial_host("127.0.0.1", port, settings=NetworkSettings())
        try:
            if upgrade:
                reply = await ask_upgrade(link, "h:1", "/derp?a")
            else:
                reply = await get(link, "h:1", "/x", headers=[("X-A", "b")])
        finally:
            link.abort()
    return heads[0], reply


def test_the_upgrade_request_is_that_of_a_client() -> None:
    async def main() -> None:
        switched = switching_protocols(NodePrivate.generate().public)
        head, reply = await exchange(switched + b"greeting", upgrade=True)
        assert head.encode() == upgrade_request("h:1", "/derp?a", user_agent="pyderp")
        assert (reply.status, reply.body, reply.rest) == (101, b"", b"greeting")

    run(main())


@pytest.mark.parametrize(
    ("rest", "body"),
    [
        pytest.param(b"Content-Length: 2\r\n\r\nok", b"ok", id="whole"),
        pytest.param(b"Content-Length: 9\r\n\r\ncut", b"cut", id="cut"),
        pytest.param(b"Transfer-Encoding: chunked\r\n\r\n1\r\nxyz", b"x", id="odd_chunks"),
        pytest.param(b"\r\n" + b"x" * 100_000, b"x" * 4096, id="long"),
    ],
)
def test_a_head_is_read_with_any_body(rest: bytes, body: bytes) -> None:
    async def main() -> None:
        head, reply = await exchange(HEAD + rest)
        assert head == (
            "GET /x HTTP/1.1\r\nHost: h:1\r\nUser-Agent: pyderp\r\nX-A: b\r\n"
            "Connection: close\r\n\r\n"
        )
        assert (reply.status, reply.front, reply.body) == (200, "edge", body)

    run(main())


@pytest.mark.parametrize(
    ("answer", "text", "http2"),
    [
        pytest.param(SETTINGS, "the answer is HTTP/2", True, id="http2"),
        pytest.param(b"\0\0\0\1" + bytes(5), "the answer is not HTTP: ", False, id="other_frame"),
        pytest.param(b"SSH-2.0-x\r\n\r\n", "the answer is not HTTP: ", False, id="ssh"),
        pytest.param(HEAD, "unexpectedly closed connection", False, id="half_a_head"),
    ],
)
def test_an_answer_that_is_not_http_1_is_named(answer: bytes, text: str, http2: bool) -> None:
    async def main() -> None:
        with pytest.raises(NotHttp, match=text) as caught:
            await exchange(answer)
        assert caught.value.http2 is http2

    run(main())


def test_an_end_without_an_answer_is_an_error() -> None:
    async def main() -> None:
        with pytest.raises(ConnectionError, match="closed without an answer"):
            await exchange(b"")

    run(main())
