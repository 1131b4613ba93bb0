"""HTTP answers that are not ready at once, and streams without an end."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager

import pytest

import pyderp
from pyderp import RelayConfig
from pyderp.relay.connection import EndReason, How
from pyderp.server.conn.accept import protocol_factory
from pyderp.server.conn.sockets import listen
from pyderp.server.site.routes import relay_routes
from pyderp.wire.http import Request, Response, Routes, StreamedResponse, text_response
from tests.server.dial import drained, hang_up, open_stream, until_gone
from tests.waiting import until


class Stage:
    """Routes that wait until the test sets `go`."""

    def __init__(self) -> None:
        self.go = asyncio.Event()
        self.begun = asyncio.Event()
        self.ended = asyncio.Event()

    async def later(self, request: Request) -> Response:
        self.begun.set()
        try:
            await self.go.wait()
        finally:
            self.ended.set()
        return text_response(200, f"{request.target} from {request.remote}")

    async def broken(self, request: Request) -> Response:
        raise ZeroDivisionError(request.target)

    def stream(self, _: Request) -> StreamedResponse:
        return StreamedResponse(200, [("Content-Type", "text/plain")], self._chunks())

    async def _chunks(self) -> AsyncGenerator[bytes, None]:
        try:
            yield b"first\n"
            self.begun.set()
            await self.go.wait()
            yield b"second\n"
        finally:
            self.ended.set()

    def flood(self, _: Request) -> StreamedResponse:
        async def chunks() -> AsyncGenerator[bytes, None]:
            while True:
                yield bytes(100_000)
                self.begun.set()

        return StreamedResponse(200, [], chunks())

    @property
    def routes(self) -> Routes:
        return relay_routes(
            {
                "/later": self.later,
                "/broken": self.broken,
                "/stream": self.stream,
                "/flood": self.flood,
                "/now": lambda _: text_response(200, "now"),
            }
        )


@asynccontextmanager
async def serving(stage: Stage) -> AsyncIterator[pyderp.Relay]:
    """Start a relay, which at its address serves the routes of a test."""
    sock = listen("127.0.0.1", 0)
    async with pyderp.Relay(RelayConfig()) as relay:
        core = relay._running()
        server = await core.loop.create_server(
            protocol_factory(core, stage.routes, None), sock=sock
        )
        relay._addresses = [sock.getsockname()]
        try:
            yield relay
        finally:
            server.close()


def get(path: str, *, close: bool = True, method: str = "GET") -> bytes:
    connection = "close" if close else "keep-alive"
    return f"{method} {path} HTTP/1.1\r\nHost: h\r\nConnection: {connection}\r\n\r\n".encode()


async def test_requests_behind_a_slow_answer_wait() -> None:
    stage = Stage()
    async with serving(stage) as relay:
        reader, writer = await open_stream(relay.address)
        writer.write(get("/later", close=False) + get("/now"))
        await stage.begun.wait()
        stage.go.set()
        answer = await drained(reader)
        assert answer.count(b"HTTP/1.1 200 OK") == 2
        assert answer.index(b"/later from 127.0.0.1") < answer.index(b"now\n")
        await hang_up(writer)


async def test_derp_may_start_behind_a_slow_answer() -> None:
    stage = Stage()
    stage.go.set()
    async with serving(stage) as relay:
        reader, writer = await open_stream(relay.address)
        upgrade = b"GET /derp HTTP/1.1\r\nHost: h\r\nUpgrade: DERP\r\nConnection: Upgrade\r\n\r\n"
        writer.write(get("/later", close=False) + upgrade + b"\2\0\0\0\1")
        answer = await drained(reader)
        assert b"101 Switching Protocols" in answer
        await hang_up(writer)
        await until_gone(relay)
        assert relay.counters.protocol_errors == 1  # the ClientInfo of one byte was seen


async def test_an_answer_whose_client_has_gone_is_given_up() -> None:
    stage = Stage()
    async with serving(stage) as relay:
        _, writer = await open_stream(relay.address)
        writer.write(get("/later"))
        await stage.begun.wait()
        for protocol in list(relay._running().protocols):
            protocol.end(EndReason.STOPPED, How.NOW)
        await stage.ended.wait()
        assert not stage.go.is_set()
        await until_gone(relay)
        await hang_up(writer)


@pytest.mark.parametrize("path", ["/later", "/stream"])
async def test_a_relay_that_stops_cancels_answers(path: str) -> None:
    stage = Stage()
    async with serving(stage) as relay:
        reader, writer = await open_stream(relay.address)
        writer.write(get(path))
        await stage.begun.wait()
        await relay.aclose(drain=0)
        assert stage.ended.is_set()
        assert b"second" not in await drained(reader)
        await hang_up(writer)


async def test_an_answer_that_fails_closes_the_connection_and_is_logged(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with serving(Stage()) as relay:
        reader, writer = await open_stream(relay.address)
        writer.write(get("/broken"))
        assert await drained(reader) == b""
        await hang_up(writer)
        errors = [each for each in caplog.records if each.levelno == logging.ERROR]
        assert [str(each.exc_info[1]) for each in errors if each.exc_info] == ["/broken"]


async def test_a_stream_is_sent_in_chunks_and_the_connection_continues() -> None:
    stage = Stage()
    async with serving(stage) as relay:
        reader, writer = await open_stream(relay.address)
        writer.write(get("/stream", close=False))
        head = await reader.readuntil(b"\r\n\r\n")
        assert b"transfer-encoding: chunked" in head.lower()
        assert await reader.readexactly(len(b"6\r\nfirst\n\r\n")) == b"6\r\nfirst\n\r\n"
        stage.go.set()
        rest = await reader.readuntil(b"0\r\n\r\n")
        assert rest == b"7\r\nsecond\n\r\n0\r\n\r\n"
        writer.write(get("/now"))
        assert (await drained(reader)).endswith(b"now\n")
        await hang_up(writer)


async def test_head_of_a_stream_is_answered_without_running_it() -> None:
    stage = Stage()
    async with serving(stage) as relay:
        reader, writer = await open_stream(relay.address)
        writer.write(get("/stream", method="HEAD"))
        answer = await drained(reader)
        assert answer.startswith(b"HTTP/1.1 200 OK")
        assert answer.endswith(b"\r\n\r\n")
        assert not stage.begun.is_set()
        await hang_up(writer)


async def test_a_stream_waits_for_its_reader() -> None:
    stage = Stage()
    async with serving(stage) as relay:
        reader, writer = await open_stream(relay.address)
        writer.write(get("/flood"))
        await stage.begun.wait()
        core = relay._running()
        await until(lambda: core.stalled)
        transport = next(iter(core.protocols)).transport
        assert transport is not None
        assert transport.get_write_buffer_size() < 300_000
        before = len(await reader.read(1 << 20))
        assert before
        assert await reader.readexactly(3_000_000)
        await hang_up(writer)
        await until_gone(relay)


async def test_too_many_requests_behind_a_slow_answer_end_the_connection() -> None:
    stage = Stage()
    async with serving(stage) as relay:
        reader, writer = await open_stream(relay.address)
        writer.write(get("/later", close=False) + 20 * get("/now", close=False))
        await stage.begun.wait()
        stage.go.set()
        answer = await drained(reader)
        assert answer.startswith(b"HTTP/1.1 200 OK")
        await hang_up(writer)
        await until_gone(relay)
        assert relay.counters.protocol_errors == 1


async def test_too_many_bytes_behind_a_stream_end_the_connection() -> None:
    stage = Stage()
    async with serving(stage) as relay:
        reader, writer = await open_stream(relay.address)
        writer.write(get("/stream", close=False))
        await stage.begun.wait()
        writer.write(b"x" * 100_000)
        await drained(reader)
        await stage.ended.wait()
        await hang_up(writer)
        await until_gone(relay)
        assert relay.counters.protocol_errors == 1
