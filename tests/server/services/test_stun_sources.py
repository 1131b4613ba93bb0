"""A STUN server for all addresses answers from the address of the request; here on `lo`."""

from __future__ import annotations

import asyncio
import errno
import logging
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from pyderp.server.services import stun
from pyderp.server.services.stun import StunServer, stun_sockets
from pyderp.wire.stun import pack_request, parse_response_untrusted

TX = b"transaction!"
REQUEST = pack_request(TX)

linux = pytest.mark.skipif(sys.platform != "linux", reason="elsewhere the kernel chooses")


class Watched(socket.socket):
    """A socket that records its calls and can be made to fail."""

    refuses_options = False
    names_no_address = False
    calls: set[str]

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.calls = set()

    def setsockopt(self, *args: Any) -> None:
        if self.refuses_options:
            raise OSError(errno.ENOPROTOOPT, "Protocol not available")
        super().setsockopt(*args)

    def recvmsg_into(self, *args: Any) -> Any:
        self.calls.add("recvmsg_into")
        size, ancillary, flags, address = super().recvmsg_into(*args)
        return size, [] if self.names_no_address else ancillary, flags, address

    def recvfrom_into(self, *args: Any) -> Any:
        self.calls.add("recvfrom_into")
        return super().recvfrom_into(*args)


def watched(host: str) -> Watched:
    sock = Watched(socket.AF_INET, socket.SOCK_DGRAM)
    sock.bind((host, 0))
    return sock


@contextmanager
def asking(family: int = socket.AF_INET) -> Iterator[socket.socket]:
    """Yield a client that accepts an answer from any address."""
    with socket.socket(family, socket.SOCK_DGRAM) as sock:
        sock.settimeout(20)
        sock.bind(("::1" if family == socket.AF_INET6 else "127.0.0.1", 0))
        yield sock


async def ask(sock: socket.socket, host: str, port: int) -> tuple[bytes, str]:
    """Return the answer, and the address it came from."""
    sock.sendto(REQUEST, (host, port))
    answer, address = await asyncio.to_thread(sock.recvfrom, 2048)
    assert parse_response_untrusted(answer).tx_id == TX
    assert address[1] == port
    return answer, address[0]


@linux
@pytest.mark.parametrize("listen", ["", "0.0.0.0"], ids=["both families", "IPv4"])
async def test_each_address_of_a_host_answers_its_own_requests(listen: str) -> None:
    server = StunServer(stun_sockets(listen, 0))
    server.start()
    port = server.addresses[0][1]
    with asking() as sock:
        for host in ("127.0.0.2", "127.0.0.1", "127.9.9.9", "127.0.0.2"):
            answer, source = await ask(sock, host, port)
            assert source == host
            # family 1, also on a socket for both
            assert (len(answer), answer[25]) == (32, 1)
    assert server.counters == stun.StunCounters(success=4, ipv4=4)
    await server.aclose()


@linux
async def test_ipv6_requests_are_answered() -> None:
    server = StunServer(stun_sockets("", 0))
    server.start()
    with asking(socket.AF_INET6) as sock:
        answer, source = await ask(sock, "::1", server.addresses[0][1])
    assert (source, len(answer), answer[25]) == ("::1", 44, 2)
    assert server.counters == stun.StunCounters(success=1, ipv6=1)
    await server.aclose()


@linux
async def test_an_inherited_socket_for_all_addresses_answers_from_the_right_one() -> None:
    sock = watched("0.0.0.0")
    server = StunServer([sock])
    server.start()
    with asking() as client:
        _, source = await ask(client, "127.0.0.2", server.addresses[0][1])
    assert source == "127.0.0.2"
    assert sock.calls == {"recvmsg_into"}
    await server.aclose()


async def test_a_socket_with_one_address_uses_recvfrom() -> None:
    sock = watched("127.0.0.1")
    server = StunServer([sock])
    server.start()
    with asking() as client:
        _, source = await ask(client, "127.0.0.1", server.addresses[0][1])
    assert source == "127.0.0.1"
    assert sock.calls == {"recvfrom_into"}
    await server.aclose()


@linux
async def test_without_pktinfo_requests_are_answered_and_a_warning_is_logged_once(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def main() -> None:
        sock = watched("0.0.0.0")
        sock.refuses_options = True
        server = StunServer([sock])
        server.start()
        with asking() as client:
            for _ in range(2):
                _, source = await ask(client, "127.0.0.2", server.addresses[0][1])
                assert source == "127.0.0.1"  # the kernel's choice
        # Without the option no address is expected, so none counts as missing.
        assert server.counters == stun.StunCounters(success=2, ipv4=2)
        await server.aclose()

    with caplog.at_level(logging.WARNING, "pyderp.stun"):
        await main()
    (record,) = (r for r in caplog.records if r.name == "pyderp.stun")
    assert "STUN answers leave from an address of the kernel's choice" in record.getMessage()
    assert "Protocol not available" in record.getMessage()


@linux
async def test_a_request_without_destination_address_is_answered_and_counted() -> None:
    sock = watched("0.0.0.0")
    sock.names_no_address = True
    server = StunServer([sock])
    server.start()
    with asking() as client:
        client.sendto(b"no request", ("127.0.0.2", server.addresses[0][1]))
        _, source = await ask(client, "127.0.0.2", server.addresses[0][1])
    assert source == "127.0.0.1"
    counted = stun.StunCounters(success=1, ipv4=1, not_stun=1, no_local_addr=1)
    assert server.counters == counted
    await server.aclose()


@linux
async def test_a_flood_to_a_socket_for_all_addresses_is_read_in_batches() -> None:
    server = StunServer(stun_sockets("", 0))
    server.start()
    with asking() as client:
        for _ in range(3 * stun.BATCH):
            client.sendto(bytes(40), ("127.0.0.2", server.addresses[0][1]))
        counts: list[int] = []
        while server.counters.not_stun < 3 * stun.BATCH:
            await asyncio.sleep(0)
            counts.append(server.counters.not_stun)
    steps = {b - a for a, b in zip([0, *counts], counts, strict=False)}
    assert steps - {0} == {stun.BATCH}
    await server.aclose()


@linux
async def test_the_server_continues_after_errors_of_a_socket_for_all_addresses(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(stun, "_PAUSE", 0.01)

    class Broken(Watched):
        failing: str | None = None

        def recvmsg_into(self, *args: Any) -> Any:
            if self.failing == "read":
                raise OSError(errno.ENOMEM, "no memory")
            return super().recvmsg_into(*args)

        def sendmsg(self, *args: Any) -> int:
            if self.failing == "write":
                self.failing = None
                raise OSError(errno.EPERM, "firewall")
            return super().sendmsg(*args)

    sock = Broken(socket.AF_INET, socket.SOCK_DGRAM)
    sock.bind(("0.0.0.0", 0))
    server = StunServer([sock])
    server.start()
    port = server.addresses[0][1]
    with asking() as client:
        sock.failing = "read"
        client.sendto(REQUEST, ("127.0.0.2", port))
        while server.counters.read_error < 2:  # noqa: ASYNC110 (no event to wait for)
            await asyncio.sleep(0)
        sock.failing = None
        answer, _ = await asyncio.to_thread(client.recvfrom, 2048)
        assert parse_response_untrusted(answer).tx_id == TX
        sock.failing = "write"
        client.sendto(REQUEST, ("127.0.0.2", port))
        while server.counters.write_error < 1:  # noqa: ASYNC110 (no event to wait for)
            await asyncio.sleep(0)
        _, source = await ask(client, "127.0.0.2", port)
        assert source == "127.0.0.2"
    await server.aclose()
