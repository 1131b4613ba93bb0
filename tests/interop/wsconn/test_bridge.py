"""The guide's bridge leads from a web application in uvicorn to Go's `net/wsconn`."""

from __future__ import annotations

import asyncio
import hashlib
from pathlib import Path

from tests.wsconn.bridge import bridged

from .gowsconn import started

DATA = bytes(range(251)) * 800
BOUND = 30.0


async def test_a_browser_s_bytes_reach_a_go_program_and_back(tmp_path: Path) -> None:
    """Both directions at once, in messages above Go's read limit; the close ends Go's stream."""
    steps = ("-type=binary", f"pump:{len(DATA)}", f"read:{len(DATA)}", "pumped", "readall")

    async with asyncio.timeout(BOUND), started(*steps) as go:
        url = f"ws://127.0.0.1:{await go.port()}/"
        async with bridged(tmp_path, url) as websocket:
            sending = asyncio.create_task(websocket.send(DATA))
            found = b""
            while len(found) < len(DATA):
                message = await websocket.recv()
                assert isinstance(message, bytes)
                found += message
            await sending
            await websocket.close()
            _, read, pumped, end = await go.saw()
        assert read["sha256"] == hashlib.sha256(DATA).hexdigest()
        assert pumped["sha256"] == hashlib.sha256(found).hexdigest()
        assert end["eof"]
