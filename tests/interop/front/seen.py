"""Clients that connect from a chosen address, and the address that the relay saw."""

from __future__ import annotations

import asyncio
import json
import socket
import ssl
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from pyderp import Client, ClientConfig, NodePublic, PeerPresent
from tests.interop.client.support import BOUND, DIRECT, MESH, NO_ROOTS, next_of

FROM = "127.0.0.2"
"""Where clients come from; proxies come from 127.0.0.1."""


def come_from(address: str) -> Callable[[socket.socket], None]:
    return lambda sock: sock.bind((address, 0))


def settings(ca: Path | None, address: str = FROM, **changes: Any) -> ClientConfig:
    """A client's settings: it connects from an address, and trusts one certificate."""
    roots = () if ca is None else (ca,)
    return ClientConfig(
        network=replace(DIRECT, before_connect=come_from(address)),
        tls=replace(NO_ROOTS, extra_roots=roots),
        **changes,
    )


def watcher(url: str, ca: Path | None) -> Client:
    """A mesh peer that gets all presence updates."""
    config = settings(ca, mesh_key=MESH, watch_connection_changes=True)
    return Client.for_url(url, config=config)


async def present(watching: Client, key: NodePublic) -> tuple[str, int]:
    """The PeerPresent of a client, as mesh peers get it."""
    while True:
        message = await next_of(watching, PeerPresent)
        if message.peer == key:
            return str(message.address), message.port or 0


async def connections(
    port: int, ca: Path | None, *, before: bytes = b"", host: str = "127.0.0.1"
) -> dict[str, dict[str, Any]]:
    """`/debug/connections` by key, requested from this machine.

    Args:
        before: what the connection begins with: a PROXY header.
    """
    async with asyncio.timeout(BOUND):
        reader, writer = await asyncio.open_connection(host, port)
        try:
            writer.write(before)
            if ca is not None:
                context = ssl.create_default_context(cafile=ca)
                await writer.start_tls(context, server_hostname="localhost")
            head = b"GET /debug/connections?format=json HTTP/1.1\r\nHost: localhost\r\n"
            writer.write(head + b"Connection: close\r\n\r\n")
            answer = await reader.read()
        finally:
            writer.close()
    status, _, rest = answer.partition(b"\r\n")
    assert status == b"HTTP/1.1 200 OK", answer
    body = rest.partition(b"\r\n\r\n")[2]
    rows = json.loads(_unchunked(body) if b"chunked" in rest.lower() else body)
    return {row["key"]: row for row in rows}


def _unchunked(data: bytes) -> bytes:
    body = b""
    while True:
        size, _, data = data.partition(b"\r\n")
        count = int(size, 16)
        if not count:
            return body
        body, data = body + data[:count], data[count + 2 :]
