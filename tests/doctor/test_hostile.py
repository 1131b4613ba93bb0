"""Servers that are slow, endless or send junk are reported, in time, without a traceback."""

from __future__ import annotations

import asyncio
import os
import random

import pytest

from pyderp import NodePrivate
from pyderp.wire.frames import FrameType, pack_server_key
from pyderp.wire.upgrade import switching_protocols

from .support import FAIL, OK, SKIP, SOON, Handler, head_of, look_at, no_network, run, serving

KEY = NodePrivate.generate()
GREETING = switching_protocols(KEY.public) + pack_server_key(KEY.public)


def after(first: bytes, then: bytes, *, forever: bool = True, pause: float = 0.0) -> Handler:
    """Answer a request's head with `first`, then send `then` repeatedly."""

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await head_of(reader)
        writer.write(first)
        while then and forever:
            writer.write(then)
            await writer.drain()
            await asyncio.sleep(pause)
        await writer.drain()
        await reader.read()

    return handle


HOSTILE = {
    "silent": after(b"", b""),
    "a byte at a time": after(b"HTTP/1.1 101", b" ", pause=0.05),
    "endless head": after(b"HTTP/1.1 200 OK\r\n", b"X-A: " + b"a" * 1000 + b"\r\n"),
    "endless body": after(b"HTTP/1.1 200 OK\r\n\r\n", b"a" * 65536),
    "endless 100s": after(b"", b"HTTP/1.1 100 Continue\r\n\r\n"),
    "endless line": after(b"", b"a" * 65536),
    "junk": after(b"\x16\x03\x01\xff\xff" + bytes(range(256)), b""),
    "lies about length": after(b"HTTP/1.1 200 OK\r\nContent-Length: 99999999999\r\n\r\nx", b""),
    "two lengths": after(b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n", b""),
    "101 and silence": after(switching_protocols(KEY.public), b""),
    "101 and junk": after(switching_protocols(KEY.public) + b"\xff" * 64, b""),
    "greeting and silence": after(GREETING, b""),
    "greeting and junk": after(GREETING + b"\xff" * 64, b""),
    "greeting and endless keep-alives": after(GREETING, b"\x06\0\0\0\0" * 1000),
    "greeting and endless frames": after(GREETING, b"\x63\0\0\x10\0" + bytes(4096)),
    "greeting and a health": after(GREETING + b"\x14\0\0\0\x04\x1b[2J", b""),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_each_is_reported_in_time(name: str) -> None:
    async def main() -> None:
        began = asyncio.get_running_loop().time()
        async with serving(HOSTILE[name]) as port:
            found = await look_at(f"http://127.0.0.1:{port}", no_network(timeout=SOON))
        assert found["tcp.ipv4"].result is OK
        assert FAIL in (found["http.upgrade"].result, found["relay.admission"].result)
        assert found["relay.packet"].result is SKIP
        assert not [f for f in found.values() if "mistake" in f.seen.text]
        # Each check has half a second, their longest chain a few.
        assert asyncio.get_running_loop().time() - began < 20

    run(main())


@pytest.mark.parametrize("seed", range(8))
def test_changed_bits_in_answers_break_no_check(seed: int) -> None:
    """The findings may differ."""
    chance = random.Random(seed)
    good = [
        GREETING,
        b"HTTP/1.1 200 OK\r\nDate: Mon, 30 Nov 2026 15:00:00 GMT\r\nContent-Length: 0\r\n\r\n",
        b"HTTP/1.1 204 No Content\r\nX-Tailscale-Response: response x\r\n\r\n",
    ]

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await head_of(reader)
        data = bytearray(chance.choice(good))
        for _ in range(chance.randrange(1, 6)):
            data[chance.randrange(len(data))] ^= 1 << chance.randrange(8)
        writer.write(bytes(data))
        await writer.drain()

    async def main() -> None:
        async with serving(handle) as port:
            found = await look_at(
                f"http://127.0.0.1:{port}", no_network(timeout=SOON), http_port=port
            )
        assert not [f.seen for f in found.values() if "mistake" in f.seen.text]

    run(main())


def test_an_error_in_a_check_is_a_finding(monkeypatch: pytest.MonkeyPatch) -> None:
    """It does not leave the runner."""
    from pyderp.doctor import relay

    def broken(*_: object) -> None:
        raise ZeroDivisionError(os.devnull)

    monkeypatch.setattr(relay, "_rate", broken)

    async def main() -> None:
        from pyderp import Relay

        async with Relay() as served:
            found = await look_at(served.url)
        assert found["relay.speed"].result is FAIL
        assert found["relay.speed"].seen.text.startswith("a bug in pyderp: ZeroDivisionError")

    run(main())


__all__ = ["FrameType"]
