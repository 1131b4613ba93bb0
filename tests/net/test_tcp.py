from __future__ import annotations

import asyncio
import errno
import os
import socket
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest

from pyderp.errors import ConfigError, DialError
from pyderp.net.settings import NetworkSettings
from pyderp.net.tcp import connect_socket
from tests.interop.tailscaled.peers import missing

from .ways_out import Sockets, closed_port, echo, serving

ELSEWHERE = "192.0.2.1"
"""Not loopback; nothing is ever sent there, as `Stop` comes first."""


class Stop(Exception):
    """Raised instead of connecting."""


@contextmanager
def unprivileged() -> Iterator[None]:
    """Without CAP_NET_ADMIN, until the next await."""
    root = os.geteuid() == 0
    if root:
        os.seteuid(65534)
    try:
        yield
    finally:
        if root:
            os.seteuid(0)


def options(name: str, value: object) -> Callable[..., None]:
    """A replacement of `setsockopt` that fails for one option."""
    real = socket.socket.setsockopt

    def setsockopt(sock: socket.socket, level: int, option: int, given: int | bytes) -> None:
        if option == getattr(socket, name):
            assert isinstance(value, int)
            raise OSError(value, os.strerror(value))
        real(sock, level, option, given)

    return setsockopt


async def test_a_connected_socket_has_its_options() -> None:
    async with serving(echo) as port:
        sockets = Sockets()
        sock = await connect_socket("127.0.0.1", port, settings=sockets.watch())
        with sock:
            assert sockets.all == [sock]
            assert sock.getpeername() == ("127.0.0.1", port)
            assert not sock.getblocking()
            assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
            assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE) == 30
            assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL) == 30
            assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)


async def test_ipv6_has_a_socket_of_its_family() -> None:
    async with serving(echo, "::1") as port:
        with await connect_socket("::1", port, settings=NetworkSettings()) as sock:
            assert sock.family == socket.AF_INET6


@pytest.mark.parametrize(("host", "where"), [("127.0.0.1", "127.0.0.1"), ("::1", "[::1]")])
async def test_a_refused_connection_names_the_address_and_closes_the_socket(
    host: str, where: str
) -> None:
    sockets = Sockets()
    port = closed_port(host)
    with pytest.raises(DialError) as caught:
        await connect_socket(host, port, settings=sockets.watch())
    assert str(caught.value) == f"connect to {where}:{port}: Connection refused"
    assert isinstance(caught.value.__cause__, ConnectionRefusedError)
    await sockets.closed()


async def test_too_many_open_files_is_a_dial_error(monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:

        def refuse(*_: object) -> None:
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

        patch.setattr("pyderp.net.tcp.socket.socket", refuse)
        with pytest.raises(DialError, match=r"connect to 127\.0\.0\.1:1: Too many open files"):
            await connect_socket("127.0.0.1", 1, settings=NetworkSettings())


async def test_an_error_of_the_hook_is_raised_and_closes_the_socket() -> None:
    seen: list[socket.socket] = []

    def hook(sock: socket.socket) -> None:
        seen.append(sock)
        raise Stop

    with pytest.raises(Stop):
        await connect_socket(ELSEWHERE, 1, settings=NetworkSettings(before_connect=hook))
    assert [sock.fileno() for sock in seen] == [-1]


async def test_cancelling_closes_the_socket() -> None:
    # The accept queue is full: the next connection hangs in the kernel.
    with socket.create_server(("127.0.0.1", 0), backlog=0) as server:
        address = server.getsockname()
        fillers = []
        for _ in range(4):
            filler = socket.socket()
            filler.setblocking(False)
            filler.connect_ex(address)
            fillers.append(filler)
        sockets = Sockets()
        dial = connect_socket(*address, settings=sockets.watch())
        task = asyncio.create_task(dial)
        while not sockets.all:  # noqa: ASYNC110 (there is no event)
            await asyncio.sleep(0)
        await asyncio.sleep(0)
        assert not task.done()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert sockets.all[0].fileno() == -1
        for filler in fillers:
            filler.close()


async def test_a_mark_needs_a_capability() -> None:
    dial = connect_socket(ELSEWHERE, 1, settings=NetworkSettings(socket_mark=0x80000))
    with pytest.raises(ConfigError) as caught, unprivileged():
        await dial
    assert str(caught.value) == (
        "socket_mark 0x80000: Operation not permitted: SO_MARK needs CAP_NET_ADMIN"
    )


@pytest.mark.parametrize("mark", [-1, 1 << 32])
async def test_a_mark_has_32_bits(mark: int) -> None:
    with pytest.raises(ConfigError, match=rf"socket_mark {mark:#x}: not a number of 32 bits"):
        await connect_socket(ELSEWHERE, 1, settings=NetworkSettings(socket_mark=mark))


@pytest.mark.parametrize("mark", [0, 1, 0xFFFF_FFFF])
async def test_every_mark_of_32_bits_is_set(mark: int) -> None:
    if os.geteuid() != 0:
        missing("permission to mark sockets", "run as root")

    seen: list[bytes] = []

    def hook(sock: socket.socket) -> None:
        seen.append(sock.getsockopt(socket.SOL_SOCKET, socket.SO_MARK, 4))
        raise Stop

    settings = NetworkSettings(socket_mark=mark, before_connect=hook)
    with pytest.raises(Stop):
        await connect_socket(ELSEWHERE, 1, settings=settings)
    assert seen == [mark.to_bytes(4, sys.byteorder)]


async def test_a_denied_device_names_the_capability(monkeypatch: pytest.MonkeyPatch) -> None:
    """As by kernels before 5.7 for processes without CAP_NET_RAW."""
    patched = options("SO_BINDTODEVICE", errno.EPERM)
    monkeypatch.setattr("socket.socket.setsockopt", patched)
    with pytest.raises(ConfigError) as caught:
        await connect_socket(ELSEWHERE, 1, settings=NetworkSettings(bind_device="eth0"))
    assert str(caught.value) == (
        "bind_device 'eth0': Operation not permitted: SO_BINDTODEVICE needs CAP_NET_ADMIN"
    )


async def test_a_missing_device_may_come_back() -> None:
    sockets = Sockets()
    settings = sockets.watch(NetworkSettings(bind_device="nosuch0"))
    with pytest.raises(DialError) as caught:
        await connect_socket(ELSEWHERE, 1, settings=settings)
    assert str(caught.value) == "bind_device 'nosuch0': No such device"


@pytest.mark.parametrize(
    ("option", "settings", "message"),
    [
        (
            "SO_MARK",
            NetworkSettings(socket_mark=1),
            "socket_mark 0x1: this system has no SO_MARK; it is for Linux",
        ),
        (
            "SO_BINDTODEVICE",
            NetworkSettings(bind_device="en0"),
            "bind_device 'en0': this system has no SO_BINDTODEVICE; it is for Linux",
        ),
    ],
)
async def test_a_system_without_the_option_is_a_config_error(
    monkeypatch: pytest.MonkeyPatch,
    option: str,
    settings: NetworkSettings,
    message: str,
) -> None:
    monkeypatch.delattr(socket, option)
    with pytest.raises(ConfigError) as caught:
        await connect_socket(ELSEWHERE, 1, settings=settings)
    assert str(caught.value) == message


@pytest.mark.parametrize("address", ["127.0.0.1", "127.8.8.8", "::1", "::ffff:127.0.0.1"])
async def test_loopback_has_neither_mark_nor_device(address: str) -> None:
    def hook(sock: socket.socket) -> None:
        assert not sock.getsockopt(socket.SOL_SOCKET, socket.SO_MARK)
        assert not sock.getsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, 16)
        raise Stop

    settings = NetworkSettings(socket_mark=1, bind_device="nosuch0", before_connect=hook)
    with pytest.raises(Stop):
        await connect_socket(address, 1, settings=settings)


async def test_a_system_without_linux_names_of_keepalive_uses_its_own(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    idle, interval = socket.TCP_KEEPIDLE, socket.TCP_KEEPINTVL
    monkeypatch.delattr(socket, "TCP_KEEPIDLE")
    monkeypatch.delattr(socket, "TCP_KEEPINTVL")
    # macOS calls it TCP_KEEPALIVE.
    monkeypatch.setattr(socket, "TCP_KEEPALIVE", idle, raising=False)
    async with serving(echo) as port:
        with await connect_socket("127.0.0.1", port, settings=NetworkSettings()) as sock:
            assert sock.getsockopt(socket.IPPROTO_TCP, idle) == 30
            assert sock.getsockopt(socket.IPPROTO_TCP, interval) != 30
