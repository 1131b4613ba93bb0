"""The STUN server on loopback sockets."""

from __future__ import annotations

import asyncio
import errno
import logging
import socket
from ipaddress import ip_address
from typing import Any

import pytest

from pyderp.errors import ConfigError
from pyderp.server.services import stun
from pyderp.server.services.stun import StunServer, stun_sockets
from pyderp.wire.stun import pack_request, parse_response_untrusted
from tests.waiting import until

TX = b"transaction!"
REQUEST = pack_request(TX)
JUNK = bytes(40)


def client(server: StunServer, host: str = "127.0.0.1") -> socket.socket:
    """Return a socket connected to the server."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    sock = socket.socket(family, socket.SOCK_DGRAM)
    sock.settimeout(5)
    sock.connect((host, server.addresses[0][1]))
    return sock


async def exchange(sock: socket.socket, *datagrams: bytes) -> bytes:
    """Send all datagrams, return the first answer."""
    for datagram in datagrams:
        sock.send(datagram)
    return await asyncio.to_thread(sock.recv, 2048)


class Serving:
    """Runs a server within an `async with` block."""

    def __init__(self, host: str = "127.0.0.1", sockets: list[socket.socket] | None = None) -> None:
        self.server = StunServer(stun_sockets(host, 0) if sockets is None else sockets)

    async def __aenter__(self) -> StunServer:
        self.server.start()
        return self.server

    async def __aexit__(self, *_: object) -> None:
        await self.server.aclose()


async def test_a_request_is_answered() -> None:
    async with Serving() as server:
        with client(server) as sock:
            answer = await exchange(sock, REQUEST)
            own = sock.getsockname()
        found = parse_response_untrusted(answer)
        assert (found.tx_id, str(found.address), found.port) == (TX, *own)
        assert len(answer) == 32
        assert server.counters == stun.StunCounters(success=1, ipv4=1)


@pytest.mark.parametrize("host", ["", "::"])
@pytest.mark.parametrize(("family", "size"), [("127.0.0.1", 32), ("::1", 44)])
async def test_a_server_on_all_addresses_answers_both_families(
    host: str, family: str, size: int
) -> None:
    async with Serving(host) as server:
        with client(server, family) as sock:
            answer = await exchange(sock, REQUEST)
        assert parse_response_untrusted(answer).address == ip_address(family)
        assert len(answer) == size
        assert (server.counters.ipv4, server.counters.ipv6) == (size == 32, size == 44)


async def test_a_server_on_one_ipv6_address_serves_that_one() -> None:
    async with Serving("::1") as server:
        with client(server, "::1") as sock:
            assert len(await exchange(sock, REQUEST)) == 44
        assert server.addresses[0][0] == "::1"


async def test_other_datagrams_are_ignored_and_counted() -> None:
    async with Serving() as server:
        with client(server) as sock:
            bad = [JUNK, b"", REQUEST[:32], REQUEST[:-1] + b"?", bytes(1472), bytes(9000)]
            answer = await exchange(sock, *bad, REQUEST)
            assert parse_response_untrusted(answer).tx_id == TX
        assert server.counters == stun.StunCounters(success=1, ipv4=1, not_stun=len(bad))


async def test_a_flood_is_read_in_batches() -> None:
    async with Serving() as server:
        with client(server) as sock:
            for _ in range(3 * stun.BATCH):
                sock.send(JUNK)
            counts: list[int] = []
            while server.counters.not_stun < 3 * stun.BATCH:
                await asyncio.sleep(0)
                counts.append(server.counters.not_stun)
        steps = {b - a for a, b in zip([0, *counts], counts, strict=False)}
        assert steps - {0} == {stun.BATCH}


async def test_inherited_sockets_are_served() -> None:
    inherited = [socket.socket(socket.AF_INET, socket.SOCK_DGRAM) for _ in range(2)]
    for sock in inherited:
        sock.bind(("127.0.0.1", 0))
    async with Serving(sockets=inherited) as server:
        for _, port in server.addresses:
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
                sock.settimeout(5)
                sock.connect(("127.0.0.1", port))
                assert parse_response_untrusted(await exchange(sock, REQUEST)).tx_id == TX


async def test_closing_frees_the_port() -> None:
    async with Serving() as server:
        port = server.addresses[0][1]
    await server.aclose()
    for sock in stun_sockets("127.0.0.1", port):
        sock.close()


async def test_closing_a_server_that_never_started_closes_its_sockets() -> None:
    sockets = stun_sockets("127.0.0.1", 0)
    await StunServer(sockets).aclose()
    assert sockets[0].fileno() == -1


class Broken(socket.socket):
    """A socket that fails if an error is set."""

    read_error: OSError | None = None
    write_error: OSError | None = None
    reads = 0

    def recvfrom_into(self, *args: Any) -> Any:
        self.reads += 1
        if self.read_error is not None:
            raise self.read_error
        return super().recvfrom_into(*args)

    def sendto(self, *args: Any) -> int:
        if self.write_error is not None:
            raise self.write_error
        return super().sendto(*args)


def broken() -> Broken:
    sock = Broken(socket.AF_INET, socket.SOCK_DGRAM)
    sock.bind(("127.0.0.1", 0))
    return sock


async def test_the_server_continues_after_a_read_error(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(stun, "_PAUSE", 0.01)

    async def main() -> None:
        sock = broken()
        sock.read_error = OSError(errno.ENOMEM, "no memory")
        async with Serving(sockets=[sock]) as server:
            with client(server) as peer:
                peer.send(REQUEST)
                await until(lambda: server.counters.read_error == 3)
                assert sock.reads == 3
                sock.read_error = None
                answer = await asyncio.to_thread(peer.recv, 100)
                assert parse_response_untrusted(answer).tx_id == TX

    with caplog.at_level(logging.WARNING, "pyderp.stun"):
        await main()
    assert [r.getMessage() for r in caplog.records if r.name == "pyderp.stun"] == [
        f"STUN read error: [Errno {errno.ENOMEM}] no memory (logged once; counted from now on)"
    ]


async def test_after_a_read_error_the_socket_is_not_read_until_a_timer_or_the_end(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The socket stays readable all the time."""
    monkeypatch.setattr(stun, "_PAUSE", 1000.0)

    sock = broken()
    sock.read_error = OSError(errno.ENOMEM, "no memory")
    async with Serving(sockets=[sock]) as server:
        with client(server) as peer:
            peer.send(REQUEST)
            await until(lambda: server.counters.read_error == 1)
            for _ in range(20):
                await asyncio.sleep(0)
            assert sock.reads == 1
            (timer,) = server._resting.values()
            assert not timer.cancelled()
    assert timer.cancelled()
    assert sock.fileno() == -1


@pytest.mark.parametrize(
    "error",
    [BlockingIOError(errno.EAGAIN, "full"), PermissionError(errno.EPERM, "firewall")],
    ids=["EAGAIN", "EPERM"],
)
async def test_answers_that_cannot_be_sent_are_counted(
    caplog: pytest.LogCaptureFixture, error: OSError
) -> None:
    async def main() -> None:
        sock = broken()
        sock.write_error = error
        async with Serving(sockets=[sock]) as server:
            with client(server) as peer:
                peer.send(REQUEST)
                peer.send(REQUEST)
                await until(lambda: server.counters.write_error == 2)
                sock.write_error = None
                assert parse_response_untrusted(await exchange(peer, REQUEST)).tx_id == TX
            assert server.counters == stun.StunCounters(success=1, write_error=2, ipv4=3)

    with caplog.at_level(logging.WARNING, "pyderp.stun"):
        await main()
    assert len([r for r in caplog.records if r.name == "pyderp.stun"]) == 1


def test_a_port_in_use_is_an_error() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.bind(("127.0.0.1", 0))
        port = sock.getsockname()[1]
        with pytest.raises(ConfigError, match=f"UDP 127.0.0.1:{port}: the port is taken; stop"):
            stun_sockets("127.0.0.1", port)
        with pytest.raises(ConfigError, match="the port is taken"):
            stun_sockets("", port)


def test_with_reuse_port_two_sockets_share_a_port() -> None:
    (first,) = stun_sockets("127.0.0.1", 0, reuse_port=True)
    with first:
        (second,) = stun_sockets("127.0.0.1", first.getsockname()[1], reuse_port=True)
        second.close()


@pytest.mark.parametrize(
    ("host", "why"),
    [
        ("192.0.2.77", "this machine does not have that address"),
        ("not a host", "for STUN on UDP not a host:0: "),
        ("a" * 70, "not a host name"),
    ],
)
def test_an_address_that_cannot_be_used_is_an_error(host: str, why: str) -> None:
    with pytest.raises(ConfigError, match=why):
        stun_sockets(host, 0)


@pytest.mark.parametrize(
    ("error", "why"),
    [
        (PermissionError(errno.EACCES, "x"), "CAP_NET_BIND_SERVICE"),
        (OSError(errno.EMFILE, "x"), "UDP 127.0.0.1:1: Too many open files"),
        (OSError("odd"), "UDP 127.0.0.1:1: odd"),
    ],
)
def test_other_failures_are_errors(
    monkeypatch: pytest.MonkeyPatch, error: OSError, why: str
) -> None:
    def refuse(*_: object) -> None:
        raise error

    monkeypatch.setattr(stun, "resolve", refuse)
    with pytest.raises(ConfigError, match=why):
        stun_sockets("127.0.0.1", 1)


def test_without_ipv6_all_addresses_are_ipv4(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(socket, "has_dualstack_ipv6", lambda: False)
    (sock,) = stun_sockets("", 0)
    with sock:
        assert sock.getsockname()[0] == "0.0.0.0"


def test_a_tcp_socket_is_refused() -> None:
    with socket.socket() as sock, pytest.raises(ConfigError, match="AF_INET SOCK_STREAM; want UDP"):
        StunServer([sock])
