"""Group `stun`: each address is asked, and the source of the answer is checked."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import sys
from collections.abc import AsyncIterator
from ipaddress import ip_address
from typing import cast

import pytest

from pyderp import Relay
from pyderp.doctor.target import Single, relay_region
from pyderp.errors import RemoteProtocolError
from pyderp.wire.stun import pack_response, parse_request_untrusted

from .support import FAIL, OK, SKIP, SOON, Found, look, no_network, resolving, run, with_node


class Server(asyncio.DatagramProtocol):
    """A STUN server; it may answer from another socket, or not at all."""

    def __init__(self, answer_from: socket.socket | None = None, *, junk: bytes = b"") -> None:
        self.answer_from = answer_from
        self.junk = junk
        self.transport: asyncio.DatagramTransport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # A cast, as the loop's own class is none of asyncio's public ones.
        self.transport = cast("asyncio.DatagramTransport", transport)

    def datagram_received(self, data: bytes, addr: tuple[str, int]) -> None:
        assert self.transport is not None
        try:
            tx_id = parse_request_untrusted(data)
        except RemoteProtocolError:
            return
        answer = self.junk or pack_response(tx_id, ip_address(addr[0]).packed, addr[1])
        if self.answer_from is not None:
            self.answer_from.sendto(answer, addr[:2])
        else:
            self.transport.sendto(answer, addr)


@contextlib.asynccontextmanager
async def stun(server: Server, host: str = "127.0.0.1", port: int = 0) -> AsyncIterator[int]:
    """A running STUN server; yields its port."""
    loop = asyncio.get_running_loop()
    transport, _ = await loop.create_datagram_endpoint(lambda: server, local_addr=(host, port))
    try:
        yield transport.get_extra_info("sockname")[1]
    finally:
        transport.close()


async def found_with(port: int, *addresses: str, limit: float = 20.0) -> Found:
    async with Relay() as relay:
        url = f"http://derp.example:{relay.address[1]}"
        region = relay_region(url, Single(stun_port=port))
        names = resolving(derp_example=addresses or ("127.0.0.1",))
        return await look(region, no_network(resolver=names, timeout=limit))


def test_an_answer_from_the_asked_address_is_ok() -> None:
    async def main() -> None:
        async with stun(Server()) as port:
            found = await found_with(port)
        assert found["stun.ipv4"].result is OK
        assert "sees this machine as 127.0.0.1:" in found["stun.ipv4"].seen.text

    run(main())


def test_an_answer_from_another_address_is_found() -> None:
    """Like a relay with several addresses that listens on all of them with one socket."""

    async def main() -> None:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as other:
            other.bind(("127.0.0.2", 0))
            async with stun(Server(other)) as port:
                found = await found_with(port)
        assert found["stun.ipv4"].result is FAIL
        assert f"127.0.0.1:{port} was asked, and 127.0.0.2:" in found["stun.ipv4"].seen.text

    run(main())


def test_one_silent_address_of_two_fails() -> None:
    async def main() -> None:
        async with stun(Server()) as port:
            found = await found_with(port, "127.0.0.1", "127.0.0.9", limit=2)
        assert found["stun.ipv4"].result is FAIL
        assert "127.0.0.9" in found["stun.ipv4"].seen.text
        assert "1 of 2 addresses" in found["stun.ipv4"].seen.text

    run(main())


@pytest.mark.parametrize(
    "junk", [b"\0", b"\1\1" + bytes(18), b"a" * 1600], ids=["short", "empty", "long"]
)
def test_junk_is_no_answer(junk: bytes) -> None:
    async def main() -> None:
        async with stun(Server(junk=junk)) as port:
            found = await found_with(port, limit=SOON)
        assert found["stun.ipv4"].result is FAIL
        assert "answers over UDP, and not with STUN" in found["stun.ipv4"].seen.text
        assert "firewall" not in found["stun.ipv4"].seen.advice

    run(main())


def test_no_answer_fails() -> None:
    async def main() -> None:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as silent:
            silent.bind(("127.0.0.1", 0))
            found = await found_with(silent.getsockname()[1], limit=SOON)
        assert "no answer from 127.0.0.1" in found["stun.ipv4"].seen.text
        assert "open the UDP port in the firewalls" in found["stun.ipv4"].seen.advice

    run(main())


@pytest.mark.skipif(sys.platform != "linux", reason="other kernels may not report closed ports")
def test_a_closed_port_is_known_at_once() -> None:
    async def main() -> None:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as closed:
            closed.bind(("127.0.0.1", 0))
            port = closed.getsockname()[1]
        found = await found_with(port, limit=200.0)  # the test would time out before
        assert found["stun.ipv4"].result is FAIL
        assert "nothing listens there" in found["stun.ipv4"].seen.text

    run(main())


@pytest.mark.parametrize(
    ("stun_port", "result", "text"),
    [(-1, SKIP, "STUNPort is -1"), (70000, FAIL, "is not a port number")],
)
def test_the_stun_port_of_the_map_is_used(stun_port: int, result: object, text: str) -> None:
    async def main() -> None:
        async with Relay() as relay:
            region = relay_region(relay.url, Single())
            found = await look(with_node(region, stun_port=stun_port))
        assert found["stun.ipv4"].result is result
        assert text in found["stun.ipv4"].seen.text

    run(main())


def test_a_stun_only_node_gets_no_other_request() -> None:
    async def main() -> None:
        async with stun(Server()) as port:
            region = relay_region("http://127.0.0.1:1", Single(stun_port=port))
            found = await look(with_node(region, stun_only=True))
        assert set(found) == {"names.ipv4", "names.ipv6", "names.any", "stun.ipv4", "stun.ipv6"}
        assert found["stun.ipv4"].result is OK

    run(main())
