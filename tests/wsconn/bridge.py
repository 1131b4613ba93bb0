"""The guide's bridge between a web application and a stream, in a real uvicorn."""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import sys
from asyncio.subprocess import PIPE
from collections.abc import AsyncIterator
from pathlib import Path

from scripts import check_docs
from websockets.asyncio.client import ClientConnection, connect

PAGE = check_docs.ROOT / "docs" / "howto" / "websocket-as-stream.md"
(PROGRAM,) = (block.text for block in check_docs.blocks(PAGE) if block.mark == "bridge")


@contextlib.asynccontextmanager
async def bridged(folder: Path, url: str) -> AsyncIterator[ClientConnection]:
    """A connection to the guide's application, which uvicorn serves in its own process."""
    (folder / "bridge.py").write_text(PROGRAM)
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "uvicorn", "bridge:app", "--port", "0", "--ws", "websockets-sansio",
        "--no-access-log", cwd=folder, env=os.environ | {"UPSTREAM": url}, stderr=PIPE,
    )  # fmt: skip
    assert process.stderr is not None
    try:
        address = f"ws://127.0.0.1:{await port_of(process.stderr)}/bridge"
        async with connect(address, proxy=None, compression=None, max_size=None) as websocket:
            yield websocket
        process.terminate()
        errors = await process.stderr.read()
        assert b"Traceback" not in errors, errors.decode()
    finally:
        if process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
        await process.communicate()


async def port_of(errors: asyncio.StreamReader) -> int:
    """The port that uvicorn says it listens on."""
    while line := await errors.readline():
        if found := re.search(rb"running on http://127\.0\.0\.1:(\d+)", line):
            return int(found[1])
    raise AssertionError("uvicorn has ended")
