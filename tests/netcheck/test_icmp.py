"""ICMP echoes: their bytes, invalid answers, and refusals of the kernel."""

from __future__ import annotations

import asyncio
import errno
import select
import socket
from collections.abc import Iterator
from typing import Any

import pytest

from pyderp.errors import DialError
from pyderp.netcheck.icmp import NotPermitted, Pinger, echo_answer_untrusted, pack_echo


def reply(sequence: int, payload: bytes, *, kind: int = 0, code: int = 0) -> bytes:
    return bytes((kind, code, 0, 0, 0x12, 0x34)) + sequence.to_bytes(2) + payload


def test_the_bytes_of_an_echo_are_those_of_rfc_792() -> None:
    packet = pack_echo(1, b"abc")
    assert packet.hex() == "0800339c00000001616263"
    words = [int.from_bytes(packet[at : at + 2].ljust(2, b"\0")) for at in range(0, 11, 2)]
    total = sum(words)
    assert (total & 0xFFFF) + (total >> 16) == 0xFFFF  # RFC 1071


@pytest.mark.parametrize(
    ("packet", "found"),
    [
        (reply(7, b"x"), (7, b"x")),
        (b"\x45" + bytes(19) + reply(7, b"x"), (7, b"x")),
        (reply(7, b"x", kind=8), None),
        (reply(7, b"x", kind=3), None),
        (reply(7, b"x", code=1), None),
        (reply(7, b"")[:-1], None),
        (b"", None),
        (b"\x4f" + bytes(20), None),
    ],
)
def test_only_echo_replies_are_answers(packet: bytes, found: tuple[int, bytes] | None) -> None:
    assert echo_answer_untrusted(packet) == found


class PingSocket(socket.socket):
    """One end of a pair of Unix sockets instead of a ping socket; tests hold the other."""

    def sendto(self, data: Any, *_: Any) -> int:
        return self.send(data)


@pytest.fixture
def ends() -> Iterator[tuple[PingSocket, socket.socket]]:
    """The pinger's socket, and the kernel's side of it."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    with PingSocket(socket.AF_UNIX, socket.SOCK_DGRAM, fileno=ours.detach()) as fake, theirs:
        theirs.setblocking(False)
        yield fake, theirs


async def test_only_the_answer_to_the_echo_ends_the_wait(
    ends: tuple[PingSocket, socket.socket],
) -> None:
    """Go's TestPingerMismatch and TestPinger."""

    fake, kernel = ends
    pinger = Pinger(lambda: fake)
    loop = asyncio.get_running_loop()
    waiting = asyncio.create_task(pinger.ping("192.0.2.1", b"900a"))
    request = await loop.sock_recv(kernel, 100)
    assert request == pack_echo(1, b"900a")
    wrong = (reply(2, b"900a"), reply(1, b"900b"), reply(1, b"900a", kind=8), b"noise")
    for packet in wrong:
        kernel.send(packet)
    while select.select([fake], [], [], 0)[0]:  # noqa: ASYNC110 (the pinger empties it)
        await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert not waiting.done()
    kernel.send(reply(1, b"900a"))
    assert await waiting > 0
    pinger.close()


async def test_closing_ends_waiting_pings(ends: tuple[PingSocket, socket.socket]) -> None:
    """Go's TestPingerTimeout."""

    pinger = Pinger(lambda: ends[0])
    waiting = asyncio.create_task(pinger.ping("192.0.2.1", b"x"))
    await asyncio.sleep(0)
    pinger.close()
    with pytest.raises(asyncio.CancelledError):
        await waiting


def test_a_refusal_of_the_kernel_names_the_setting() -> None:
    def refuse() -> socket.socket:
        raise PermissionError(errno.EACCES, "Permission denied")

    with pytest.raises(NotPermitted, match=r"net\.ipv4\.ping_group_range") as caught:
        Pinger(refuse)
    assert isinstance(caught.value, DialError)
