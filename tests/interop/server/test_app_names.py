"""The application names of clients: which ones a relay accepts, since v1.104 of Go's."""

from __future__ import annotations

import asyncio
import json
import os
from pathlib import Path

import pytest

from pyderp.keys import KEY_LEN, NONCE_LEN, NodePrivate, NodePublic
from pyderp.wire.frames import FRAME_HEADER_LEN, MAGIC, FrameType, pack_client_info
from pyderp.wire.upgrade import upgrade_request
from tests.interop.relays import MESH_KEY, NEWER, OLDER, Kind, Relay, running
from tests.server import dial

from .support import BOUND, GetRelay, both, metrics


async def is_admitted(relay: Relay, name: str, *, mesh: bool = False) -> bool:
    """Log in by hand, as pyderp's client sends no name that relays refuse."""
    info: dict[str, object] = {"version": 2, "AppName": name}
    if mesh:
        info["meshKey"] = MESH_KEY
    private = NodePrivate.generate()
    reader, writer = await dial.open_stream((relay.address, relay.port))
    try:
        async with asyncio.timeout(BOUND):
            writer.write(upgrade_request("relay.test", "/derp", user_agent="tests"))
            await reader.readuntil(b"\r\n\r\n")
            greeting = await reader.readexactly(FRAME_HEADER_LEN + len(MAGIC) + KEY_LEN)
            server = NodePublic(greeting[-KEY_LEN:])
            box = private.seal_to(server, json.dumps(info).encode(), nonce=os.urandom(NONCE_LEN))
            writer.write(pack_client_info(private.public, box))
            return (await reader.read(1)) == bytes([FrameType.SERVER_INFO])
    except ConnectionError:
        return False
    finally:
        await dial.hang_up(writer)


@both
def test_a_name_must_be_printable_and_short(kind: Kind, relays: GetRelay) -> None:
    """Also of mesh peers; v1.102.3 accepts any."""
    relay = relays(kind, "plain")

    async def main() -> None:
        for name in ("", "x" * 32, " a ~"):
            assert await is_admitted(relay, name), name
        for name in ("x" * 33, "a\n", "\x7f", "é"):
            for mesh in (False, True):
                assert await is_admitted(relay, name, mesh=mesh) is (kind == OLDER), name

    asyncio.run(main())


def test_disallowed_names_are_counted(tmp_path: Path) -> None:
    """Apart from clients that admission refuses."""
    series = 'pyderp_connections_ended_total{reason="%s"}'

    async def main() -> None:
        assert not await is_admitted(relay, "bad")
        assert await is_admitted(relay, "good")
        assert not await is_admitted(relay, "bad")
        now = await metrics(relay)
        assert now[series % "disallowed_app_name"] == 2
        assert now[series % "refused"] == 0

    with running("pyderp", "plain", tmp_path, options=["--disallow-app-names=bad"]) as relay:
        asyncio.run(main())


@pytest.mark.parametrize("kind", [NEWER, "pyderp"])
def test_disallowed_names_are_refused(kind: Kind, tmp_path: Path) -> None:
    """They are compared letter by letter, except those of mesh peers."""

    async def main() -> None:
        assert not await is_admitted(relay, "bad")
        assert not await is_admitted(relay, "b ad")
        for name in ("", "Bad", "bad ", "good"):
            assert await is_admitted(relay, name), name
        assert await is_admitted(relay, "bad", mesh=True)

    options = ["--disallow-app-names=bad,b ad"]
    with running(kind, "plain", tmp_path, options=options) as relay:
        asyncio.run(main())
