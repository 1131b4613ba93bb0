"""The effect of TCP_NOTSENT_LOWAT: how old packets are when a slow reader gets them.

A sender sends more than a reader takes; the relay queues and drops. Bytes that the kernel
holds unsent can no longer be dropped, so they arrive late. Run it by itself:

    python bench/queueing.py
    python bench/queueing.py --rate 20000 --read-rate 4000000 --seconds 5
"""

from __future__ import annotations

import argparse
import asyncio
import os
import socket
import statistics
import struct
import time

from pyderp import NodePrivate, Relay, RelayConfig
from pyderp.wire import ClientSession, UpgradeReply, upgrade_request
from pyderp.wire.messages import ReceivedPacket

SIZE = 1200


async def connect(relay: Relay, *, receive_buffer: int = 0) -> tuple[socket.socket, ClientSession]:
    """Returns a client that is logged in, on a plain non-blocking socket."""
    loop = asyncio.get_running_loop()
    sock = socket.socket()
    if receive_buffer:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
    sock.setblocking(False)
    await loop.sock_connect(sock, relay.address)
    session = ClientSession(NodePrivate.generate(), random=os.urandom)
    await loop.sock_sendall(sock, upgrade_request("bench", "/derp", user_agent="pyderp-bench"))
    reply = UpgradeReply()
    while (rest := reply.receive_data(await loop.sock_recv(sock, 65536))) is None:
        pass
    session.receive_data(rest)
    while not (out := session.data_to_send()):
        session.receive_data(await loop.sock_recv(sock, 65536))
    await loop.sock_sendall(sock, b"".join(out))
    while not session.receive_data(await loop.sock_recv(sock, 65536)):
        pass
    return sock, session


async def send(sock: socket.socket, session: ClientSession, peer: NodePrivate, rate: float) -> None:
    """Send `rate` packets a second, each with the time at which it was sent."""
    loop = asyncio.get_running_loop()
    start = loop.time()
    sent = 0
    while True:
        while sent < (loop.time() - start) * rate:
            stamp = struct.pack(">d", time.monotonic())
            session.send_packet(peer.public, stamp + bytes(SIZE - len(stamp)))
            sent += 1
        await loop.sock_sendall(sock, b"".join(session.data_to_send()))
        await asyncio.sleep(0.001)


async def measure(lowat: int, options: argparse.Namespace) -> tuple[list[float], int]:
    """Returns the ages in seconds of packets that a slow reader got, and the number dropped."""
    loop = asyncio.get_running_loop()
    ages: list[float] = []
    async with Relay(RelayConfig(tcp_notsent_lowat=lowat)) as relay:
        reader, reading = await connect(relay, receive_buffer=options.receive_buffer)
        sender, sending = await connect(relay)
        task = loop.create_task(send(sender, sending, reading.private, options.rate))
        end = loop.time() + options.seconds
        step = 0.005
        while loop.time() < end:
            data = await loop.sock_recv(reader, int(options.read_rate * step))
            now = time.monotonic()
            ages += [
                now - struct.unpack_from(">d", message.data)[0]
                for message in reading.receive_data(data)
                if isinstance(message, ReceivedPacket)
            ]
            await asyncio.sleep(step)
        task.cancel()
        dropped = sum(packets for packets, _ in relay.counters.drops.values())
        reader.close()
        sender.close()
    return ages[len(ages) // 2 :], dropped


async def main(options: argparse.Namespace) -> None:
    """Measure each value of the option, and print a table."""
    print("| TCP_NOTSENT_LOWAT | median age, ms | p99, ms | dropped |\n|---|---|---|---|")
    for lowat in options.lowat:
        ages, dropped = await measure(lowat, options)
        p99 = statistics.quantiles(ages, n=100)[98]
        median = statistics.median(ages)
        print(f"| {lowat or 'system'} | {median * 1e3:.0f} | {p99 * 1e3:.0f} | {dropped} |")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--rate", type=float, default=10_000, help="packets a second offered")
    parser.add_argument("--read-rate", type=float, default=2e6, help="bytes a second taken")
    parser.add_argument("--receive-buffer", type=int, default=65536, help="SO_RCVBUF of the reader")
    parser.add_argument("--seconds", type=float, default=4)
    parser.add_argument("--lowat", type=int, nargs="*", default=[0, 16384, 65536, 131072, 262144])
    asyncio.run(main(parser.parse_args()))
