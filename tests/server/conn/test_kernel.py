from __future__ import annotations

import asyncio
import socket
import sys
from contextlib import closing

import pytest

from pyderp.server.conn.kernel import rtt_label, tcp_info

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="needs Linux's TCP_INFO")


class Transport(asyncio.Transport):
    """An open transport with a socket."""

    def is_closing(self) -> bool:
        return False


async def test_the_kernel_counts_the_bytes_of_a_connection() -> None:
    seen: asyncio.Queue[asyncio.StreamWriter] = asyncio.Queue()
    server = await asyncio.start_server(lambda _, writer: seen.put_nowait(writer), "127.0.0.1", 0)
    reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
    there = await seen.get()
    there.write(b"x" * 1234)
    await reader.readexactly(1234)
    writer.write(b"y" * 77)
    ours, theirs = tcp_info(writer.transport), tcp_info(there.transport)
    assert ours is not None
    assert theirs is not None
    assert ours.received == 1234
    # Loopback delivers within the call that sends.
    assert (theirs.sent, theirs.received) == (1234, 77)
    assert ours.sent == 77
    assert 0 < theirs.rtt < 1
    for each in (writer, there):
        each.close()
        assert tcp_info(each.transport) is None
    await writer.wait_closed()
    await there.wait_closed()
    server.close()
    await server.wait_closed()
    assert tcp_info(writer.transport) is None


async def test_a_unix_socket_has_no_tcp_info() -> None:
    here, there = socket.socketpair()
    with there:
        _, writer = await asyncio.open_connection(sock=here)
        assert tcp_info(writer.transport) is None
        writer.close()
        await writer.wait_closed()


def test_without_a_transport_there_is_no_tcp_info() -> None:
    assert tcp_info(None) is None


def test_a_closed_socket_has_no_tcp_info() -> None:
    sock = socket.socket()
    sock.close()
    assert tcp_info(Transport({"socket": sock})) is None


def test_a_short_tcp_info_of_an_old_kernel_is_not_used() -> None:
    class Old:
        family = socket.AF_INET

        def getsockopt(self, level: int, option: int, size: int, /) -> bytes:
            return bytes(200)

    assert tcp_info(Transport({"socket": Old()})) is None


def test_the_round_trip_time_is_positive() -> None:
    with (
        closing(socket.create_server(("127.0.0.1", 0))) as server,
        closing(socket.create_connection(server.getsockname())) as sock,
    ):
        info = tcp_info(Transport({"socket": sock}))
    assert info is not None
    assert 0 < info.rtt < 1


@pytest.mark.parametrize(
    ("seconds", "label"),
    [
        (0.0, "10ms"),
        (0.010, "10ms"),
        (0.0101, "20ms"),
        (0.050, "50ms"),
        (0.1, "100ms"),
        (0.15, "150ms"),
        (0.25, "250ms"),
        (0.5, "500ms"),
        (0.501, "inf"),
        (None, "error"),
    ],
)
def test_each_round_trip_time_has_one_label(seconds: float | None, label: str) -> None:
    assert rtt_label(seconds) == label
