"""Passes UDP and TCP on to other ports of this host with a delay, as a long path would.

Its arguments are the milliseconds of a round trip, and pairs of ports, `udp:4478:3478` or
`tcp:4443:443`. It listens on all addresses and prints `ready`.

UDP is STUN. An answer gets the address that the forwarder sees, as without a forwarder.
"""

from __future__ import annotations

import asyncio
import sys
from functools import partial
from ipaddress import ip_address
from typing import Any

from pyderp.wire.stun import pack_response, parse_response_untrusted

HOST = "127.0.0.1"


class Upstream(asyncio.DatagramProtocol):
    """Brings the server's answers back to one client."""

    def __init__(self, front: Front, client: Any) -> None:
        self.front = front
        self.client = client

    def datagram_received(self, data: bytes, _: Any) -> None:
        assert self.front.transport is not None
        tx_id = parse_response_untrusted(data).tx_id
        host, port, *_ = self.client
        answer = pack_response(tx_id, ip_address(host).packed, port)
        self.front.later(self.front.transport.sendto, answer, self.client)


class Front(asyncio.DatagramProtocol):
    """Takes datagrams of clients; each client has its own socket to the server."""

    def __init__(self, delay: float, port: int) -> None:
        self.delay = delay
        self.port = port
        self.transport: asyncio.DatagramTransport | None = None
        self.clients: dict[Any, asyncio.Task[asyncio.DatagramTransport]] = {}
        self.tasks: set[asyncio.Task[None]] = set()

    def connection_made(self, transport: Any) -> None:
        self.transport = transport

    def later(self, act: Any, *arguments: Any) -> None:
        asyncio.get_running_loop().call_later(self.delay, act, *arguments)

    def datagram_received(self, data: bytes, client: Any) -> None:
        self.later(self._start, data, client)

    def _start(self, data: bytes, client: Any) -> None:
        task = asyncio.create_task(self._pass_on(data, client))
        self.tasks.add(task)
        task.add_done_callback(self.tasks.discard)

    async def _pass_on(self, data: bytes, client: Any) -> None:
        if client not in self.clients:
            self.clients[client] = asyncio.create_task(self._connect(client))
        transport = await asyncio.shield(self.clients[client])
        transport.sendto(data)

    async def _connect(self, client: Any) -> asyncio.DatagramTransport:
        transport, _ = await asyncio.get_running_loop().create_datagram_endpoint(
            lambda: Upstream(self, client), remote_addr=(HOST, self.port)
        )
        return transport


async def copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, delay: float) -> None:
    """Each piece, and the end, after the delay."""
    loop = asyncio.get_running_loop()
    try:
        while data := await reader.read(65536):
            loop.call_later(delay, writer.write, data)
    except OSError:
        pass
    loop.call_later(delay, writer.close)


async def main(round_trip: float, pairs: list[str]) -> None:
    delay = round_trip / 2
    running = []

    async def on_connection(
        port: int, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        to_server = await asyncio.open_connection(HOST, port)
        await asyncio.gather(copy(reader, to_server[1], delay), copy(to_server[0], writer, delay))

    for pair in pairs:
        kind, front, back = pair.split(":")
        if kind == "udp":
            await asyncio.get_running_loop().create_datagram_endpoint(
                partial(Front, delay, int(back)), local_addr=("::", int(front))
            )
        else:
            take = partial(on_connection, int(back))
            running.append(await asyncio.start_server(take, None, int(front)))
    sys.stdout.write("ready\n")
    sys.stdout.flush()
    await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(main(float(sys.argv[1]) / 1000, sys.argv[2:]))
