"""Which files of the package a TLS login enters until ServerInfo is written."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import FrameType

import pyderp
from pyderp import ManualTLS, Relay
from pyderp.native import NativeUse
from tests.server import dial
from tests.server.certificates import write_pair
from tests.server.ways import NAME, way

ROOT = Path(pyderp.__file__).parent

WAY = [
    "server/conn/accept.py",  # its limits; the first layer and stage
    "server/conn/protocol.py",
    "server/conn/writing.py",
    "server/conn/reading.py",
    "addresses.py",
    "server/conn/context.py",  # the deadline of the login
    "server/conn/http.py",
    "server/conn/tls.py",
    "server/conn/engines.py",
    "certs/context.py",
    "server/conn/records.py",
    "certs/manual.py",  # which certificate
    "wire/http.py",
    "server/conn/login.py",
    "wire/login.py",
    "keys.py",
    "gojson.py",
    "wire/frames.py",
]


@contextmanager
def _traced(found: list[str]) -> Iterator[None]:
    """Record each file of the package that this thread enters until ServerInfo is written."""
    written = in_tick = False

    def on_event(frame: FrameType, event: str, _: object) -> None:
        nonlocal written, in_tick
        path = Path(frame.f_code.co_filename)
        if written or not path.is_relative_to(ROOT):
            return
        name, function = str(path.relative_to(ROOT)), frame.f_code.co_name
        if function == "_tick":
            in_tick = event == "call"  # the relay's timer belongs to no connection
        elif event == "call" and name not in found and not in_tick:
            found.append(name)
        elif event == "return" and function == "send":
            written = "wire/login.py" in found  # the first write after ClientInfo was read

    before = sys.getprofile()
    sys.setprofile(on_event)
    try:
        yield
    finally:
        sys.setprofile(before)


async def test_a_tls_login_enters_eighteen_files_until_server_info(tmp_path: Path) -> None:
    """The client runs in another thread, so only the relay's loop is traced."""
    write_pair(tmp_path, NAME)
    config, via = way("tls1.3", ManualTLS(hostname=NAME, certdir=tmp_path))
    config = replace(config, native=NativeUse.OFF)
    found: list[str] = []

    async with Relay(config) as relay:

        async def login() -> None:
            client = await dial.connect(relay.address, via=via)
            await client.aclose()

        def log_in() -> None:
            asyncio.run(login())

        await asyncio.to_thread(log_in)  # the first login loads modules, and is not counted
        while relay._running().protocols:  # noqa: ASYNC110 (no event to wait for)
            await asyncio.sleep(0.01)
        with _traced(found):
            await asyncio.to_thread(log_in)
    assert found == WAY
