"""Regions whose first nodes are dead, silent or other servers: the client finds one that works."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import cast

import pytest

from pyderp import (
    BadUpgrade,
    Client,
    ConnectError,
    ConnectionClosed,
    DERPNode,
    DialError,
    PeerGone,
    TLSError,
    UpgradeRejected,
    is_transient,
)
from tests.interop.relays import KINDS, Kind, Relay
from tests.interop.tailscaled.peers import missing

from .recorder import recording
from .support import (
    GetRelay,
    clients,
    config,
    deliver,
    next_of,
    node,
    plain_region,
    region,
    talk,
    within,
)

pytestmark = pytest.mark.parametrize("kind", KINDS)

HAS_IPV6 = Path("/proc/net/if_inet6").exists()


def plain_client(relay: Relay, *nodes: DERPNode, **changes: object) -> Client:
    settings = config(relay, network=plain_region(), **changes)
    return Client.for_region(region(*nodes), config=settings)


@contextmanager
def refusing_port() -> Iterator[int]:
    """A port that answers with RST, and that no other process can get meanwhile."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        yield sock.getsockname()[1]


@contextmanager
def mute_port() -> Iterator[int]:
    """A port that accepts connections and never sends a byte."""
    with socket.create_server(("127.0.0.1", 0)) as sock:
        yield sock.getsockname()[1]


@asynccontextmanager
async def answering_port(answer: bytes) -> AsyncIterator[int]:
    """A port with the same answer to every request, which then closes."""

    class Answer(asyncio.Protocol):
        def connection_made(self, transport: asyncio.BaseTransport) -> None:
            # A cast, because uvloop's transports are no subclasses of asyncio.WriteTransport.
            self.transport = cast("asyncio.WriteTransport", transport)

        def data_received(self, data: bytes) -> None:
            self.transport.write(answer)
            self.transport.close()

    server = await asyncio.get_running_loop().create_server(Answer, "127.0.0.1", 0)
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        server.close()
        await server.wait_closed()


async def failure_of(client: Client) -> ConnectError:
    async with client:
        with pytest.raises(ConnectError) as caught:
            await within(client.connect())
    return caught.value


async def attempts_of(client: Client) -> tuple[Exception, ...]:
    return (await failure_of(client)).attempts


async def test_a_first_node_that_refuses_leads_to_the_next(kind: Kind, relays: GetRelay) -> None:
    """At once."""
    relay = relays(kind, "plain")

    with refusing_port() as port:
        dead = node(relay, port=port)
        await talk(plain_client(relay, dead, node(relay)), plain_client(relay, node(relay)))
        (error,) = await attempts_of(plain_client(relay, dead))
    assert isinstance(error, DialError)


async def test_a_silent_first_node_leads_to_the_next(kind: Kind, relays: GetRelay) -> None:
    """It gets its share of the time, and the next node the rest."""
    relay = relays(kind, "plain")

    with mute_port() as port:
        mute = node(relay, port=port)
        client = plain_client(relay, mute, node(relay), connect_timeout=1)
        await talk(client, plain_client(relay, node(relay)))
        error = await failure_of(plain_client(relay, mute, connect_timeout=0.2))
    assert "waiting for the relay's answer" in str(error)


@pytest.mark.parametrize(
    ("answer", "kind_of_error"),
    [
        (b"HTTP/1.1 404 Not Found\r\nContent-Length: 5\r\n\r\nnope\n", UpgradeRejected),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi", UpgradeRejected),
        (b"HTTP/1.1 503 Service Unavailable\r\nContent-Length: 0\r\n\r\n", UpgradeRejected),
        (b"SSH-2.0-OpenSSH_9.2\r\n", BadUpgrade),
    ],
    ids=["404", "200", "503", "ssh"],
)
async def test_a_first_node_that_is_no_relay_leads_to_the_next(
    kind: Kind,
    answer: bytes,
    kind_of_error: type[Exception],
    relays: GetRelay,
) -> None:
    """Servers that answer, but not with DERP."""
    relay = relays(kind, "plain")

    async with answering_port(answer) as port:
        other = node(relay, port=port)
        await talk(plain_client(relay, other, node(relay)), plain_client(relay, node(relay)))
        (error,) = await attempts_of(plain_client(relay, other))
    assert isinstance(error, kind_of_error)
    if isinstance(error, UpgradeRejected):
        assert error.status == int(answer.split()[1])
        assert is_transient(error) is (error.status == 503)


async def test_a_first_node_without_tls_leads_to_the_next(kind: Kind, relays: GetRelay) -> None:
    """A plain HTTP server on the port of the first node."""
    relay = relays(kind, "pinned")
    plain = relays(kind, "plain")

    wrong = node(relay, port=plain.port)

    def client(*nodes: DERPNode) -> Client:
        return Client.for_region(region(*nodes), config=config(relay))

    await talk(client(wrong, node(relay)), client(node(relay)))
    (error,) = await attempts_of(client(wrong))
    assert isinstance(error, TLSError)
    assert "does not speak TLS" in str(error)


async def test_a_first_node_with_another_certificate_leads_to_the_next(
    kind: Kind, relays: GetRelay
) -> None:
    relay = relays(kind, "pinned")

    other = node(relay, cert_name="sha256-raw:" + 64 * "0")

    def client(*nodes: DERPNode) -> Client:
        return Client.for_region(region(*nodes), config=config(relay))

    await talk(client(other, node(relay)), client(node(relay)))


async def test_when_all_nodes_fail_each_failure_is_in_the_error(
    kind: Kind, relays: GetRelay
) -> None:
    """In order."""
    relay = relays(kind, "plain")

    answer = b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n"
    async with answering_port(answer) as other:
        with refusing_port() as dead:
            stun_only = node(relay, stun_only=True)
            nodes = [stun_only, node(relay, port=dead), node(relay, port=other)]
            attempts = await attempts_of(plain_client(relay, *nodes))
    assert [type(e) for e in attempts] == [DialError, UpgradeRejected]


async def test_a_region_without_usable_nodes_is_an_error(kind: Kind, relays: GetRelay) -> None:
    """No nodes, none with DERP, none with an address family."""
    relay = relays(kind, "plain")
    nowhere = node(relay, ipv4="none", ipv6="none")

    for nodes, text in (
        ([], "no nodes for region 900 (test)"),
        ([node(relay, stun_only=True)], "no non-STUNOnly nodes for region 900 (test)"),
        ([nowhere], "both IPv4 and IPv6 are explicitly disabled for node"),
    ):
        (error,) = await attempts_of(plain_client(relay, *nodes))
        assert str(error) == text


async def test_a_node_with_ipv6_only_is_reached(kind: Kind, relays: GetRelay) -> None:
    if not HAS_IPV6:
        missing("IPv6", "use a kernel that has it")
    relay = relays(kind, "plain")

    async with recording(relay.port, host="::1") as recorder:
        six = node(relay, port=recorder.port, ipv4="none", ipv6="::1")
        client, other = plain_client(relay, six), plain_client(relay, node(relay))
        async with clients(client, other):
            assert client.local_address is not None
            assert client.local_address[0] == "::1"
            await deliver(client, other)
            await deliver(other, client)


async def test_a_family_that_does_not_answer_leads_to_the_other(
    kind: Kind, relays: GetRelay
) -> None:
    """Whichever is preferred."""
    relay = relays(kind, "plain")

    four = node(relay, ipv6="::1")  # no server listens there
    for preference in (None, lambda: True):
        client = plain_client(relay, four, prefer_ipv6=preference)
        async with clients(client):
            assert client.local_address is not None
            assert client.local_address[0] == "127.0.0.1"


async def test_the_region_is_looked_up_at_each_connect(kind: Kind, relays: GetRelay) -> None:
    """First there is none, then one, then another."""
    relay = relays(kind, "plain")
    other = relays("derper" if kind == "pyderp" else "pyderp", "plain")

    async with recording(relay.port) as recorder:
        moved = region(node(other))
        answers = iter([None, region(node(relay, port=recorder.port)), moved])
        settings = config(relay, network=plain_region())
        async with Client.for_region(lambda: next(answers), config=settings) as client:
            with pytest.raises(ConnectError, match="DERP region not available"):
                await client.connect()
            await client.connect()
            first = client.server_public_key
            recorder.cut()
            with pytest.raises(ConnectionClosed):
                await next_of(client, PeerGone)
            await talk(client, Client.for_region(moved, config=settings))
            assert client.generation == 2
            assert client.server_public_key != first
