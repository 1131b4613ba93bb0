"""One attempt to connect: its time limit, its errors, its order of nodes."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import socket
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest

from pyderp import (
    CertificateError,
    Client,
    ClientConfig,
    ConnectError,
    DERPNode,
    DERPRegion,
    DialError,
    DNSCache,
    FailureReason,
    NetworkSettings,
    RemoteProtocolError,
    TLSConfig,
    TLSError,
    dial_region_tls,
    is_transient,
)
from pyderp.net.streams import as_link
from pyderp.net.tls import TlsLink
from pyderp.wire.frames import FrameType, pack_frame
from pyderp.wire.upgrade import switching_protocols
from tests.net.certificates import ROOT, certificate

from .fakes import (
    DIRECT,
    RELAY,
    FakeRelay,
    Log,
    Peer,
    bounded,
    connects,
    fake_relay,
    until_closed,
)

HTTP = NetworkSettings(use_derp_http=True)
TRUSTING = TLSConfig(system_roots=False, builtin_roots=False, extra_roots=(ROOT.der,))
SERVER = certificate("127.0.0.1", issuer=ROOT).server()


def node(name: str, relay: FakeRelay | int, **settings: Any) -> DERPNode:
    port = relay if isinstance(relay, int) else relay.port
    return DERPNode(
        name=name, region_id=7, host_name="127.0.0.1", ipv6="none", derp_port=port, **settings
    )


def region(*nodes: DERPNode) -> DERPRegion:
    return DERPRegion(region_id=7, region_code="x", nodes=nodes)


def of_region(*nodes: DERPNode, network: NetworkSettings = HTTP, **settings: Any) -> Client:
    return Client.for_region(region(*nodes), config=ClientConfig(network=network, **settings))


def of_url(url: str, **settings: Any) -> Client:
    return Client.for_url(url, config=ClientConfig(network=DIRECT, **settings))


def closed_port() -> int:
    """A port that refuses connections."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port: int = server.getsockname()[1]
    return port


@contextlib.contextmanager
def full_port() -> Any:
    """A port whose accept queue is full, so that connecting to it never ends."""
    with socket.socket() as server, contextlib.ExitStack() as stack:
        server.bind(("127.0.0.1", 0))
        server.listen(0)
        for _ in range(3):
            sock = stack.enter_context(socket.socket())
            sock.setblocking(False)
            sock.connect_ex(server.getsockname())
        yield server.getsockname()[1]


async def fails(client: Client) -> ConnectError:
    async with bounded():
        with pytest.raises(ConnectError) as caught:
            await client.connect()
    error = caught.value
    group = error.__cause__
    assert isinstance(group, ExceptionGroup)
    assert group.exceptions == error.attempts
    assert error not in error.attempts
    assert not client.connected
    assert client.connection_state == "not connected"
    return error


async def nothing(_: Peer) -> None:
    pass


async def upgrade(peer: Peer) -> None:
    await peer.head()
    peer.say(switching_protocols(RELAY.public))


async def half_a_greeting(peer: Peer) -> None:
    await upgrade(peer)
    peer.say(b"\x01\0\0")


STAGES: dict[str, tuple[str, dict[str, Any], Callable[[Peer], Any], str]] = {
    "TLS": ("https", {}, nothing, "in the TLS handshake"),
    "upgrade": ("http", {}, nothing, "waiting for the relay's answer"),
    "websocket": ("http", {"websocket": True}, nothing, "waiting for the relay's answer"),
    "greeting": ("http", {}, upgrade, "waiting for the relay's answer"),
    "half a greeting": ("http", {}, half_a_greeting, "waiting for the relay's answer"),
}


class TestTime:
    """`connect_timeout` holds for all steps of a connect together."""

    @pytest.mark.parametrize("stage", STAGES)
    async def test_a_silent_server_is_given_up(self, stage: str) -> None:
        """The error names the step."""
        scheme, settings, start, step = STAGES[stage]

        async with fake_relay() as relay:
            url = relay.url.replace("http", scheme, 1)
            async with of_url(url, connect_timeout=0.2, **settings) as client:
                failing = asyncio.create_task(fails(client))
                peer = await relay.accept()
                await start(peer)
                error = await failing
                prefix = f"derphttp.Client.Connect connect to {url}: "
                assert str(error) == f"{prefix}no answer within 0.2 s, {step}"
                assert isinstance(error.attempts[0], TimeoutError)
                assert client.stats.failed_connects == 1
                await peer.gone()
                # The client can connect again.
                assert client.generation == 0
                if scheme == "http" and not settings:
                    await connects(client, relay)

    async def test_a_server_that_takes_no_connection_is_given_up(self) -> None:
        with full_port() as port:
            async with of_url(f"http://127.0.0.1:{port}/derp", connect_timeout=0.1) as client:
                error = await fails(client)
                assert str(error).endswith("no answer within 0.1 s, connecting")

    async def test_a_dialer_that_never_returns_is_given_up(self) -> None:
        async def dialer(_host: str, _port: int) -> socket.socket:
            await asyncio.get_running_loop().create_future()
            raise AssertionError

        async with of_url("http://h/derp", connect_timeout=0.1, dialer=dialer) as client:
            assert str(await fails(client)).endswith("/derp: no answer within 0.1 s, connecting")

    async def test_a_silent_stream_is_given_up(self) -> None:
        ours, theirs = socket.socketpair()
        with theirs:
            client = Client.over_stream(ours, config=ClientConfig(connect_timeout=0.1))
            error = await fails(client)
            assert str(error) == (
                "derphttp.Client.Connect connect to the given stream: "
                "no answer within 0.1 s, waiting for the relay's greeting"
            )
            assert await asyncio.to_thread(theirs.recv, 10) == b""
            await client.aclose()

    @pytest.mark.parametrize("scheme", ["http", "https"])
    async def test_a_sooner_deadline_of_the_caller_raises_timeouterror(self, scheme: str) -> None:
        """Nothing stays open."""
        async with (
            fake_relay() as relay,
            of_url(relay.url.replace("http", scheme, 1)) as client,
        ):
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.1):
                    await client.connect()
            await (await relay.accept()).gone()
            assert client.connection_state == "not connected"

    @pytest.mark.parametrize("call", ["send", "recv"])
    async def test_connect_scope_bounds_the_connects_of_sends_and_receives_only(
        self, call: str
    ) -> None:
        async with fake_relay() as relay:
            scopes: list[asyncio.Timeout] = []

            def scope() -> asyncio.Timeout:
                scopes.append(asyncio.timeout(0.1))
                return scopes[-1]

            async with of_url(relay.url, connect_scope=scope) as client:
                work = client.recv() if call == "recv" else client.send(RELAY.public, b"x")
                async with bounded():
                    with pytest.raises(ConnectError, match="time of connect_scope is up"):
                        await work
                await (await relay.accept()).gone()
                connecting = asyncio.create_task(client.connect())
                peer = await relay.accept()
                await peer.serve()
                await connecting
                assert len(scopes) == 1


class TestErrors:
    """Errors of a failed connect."""

    async def test_label_target_and_cause_are_those_of_go(self) -> None:
        """The target's address is there once."""
        url = f"http://127.0.0.1:{closed_port()}/derp"
        async with of_url(url) as client:
            error = await fails(client)
            text = str(error)
            assert text == f"derphttp.Client.Connect connect to {url}: Connection refused"
            assert isinstance(error.attempts[0], DialError)
            assert str(error.attempts[0]).startswith("connect to 127.0.0.1:")
            with pytest.raises(ConnectError, match=r"^derphttp\.Client\.Recv connect to"):
                await client.recv()
            with pytest.raises(ConnectError, match=r"^derphttp\.Client\.Send connect to"):
                await client.send(RELAY.public, b"x")
            with pytest.raises(ConnectError, match=r"^derphttp\.Client\.ForwardPacket connect"):
                await client.forward_packet(RELAY.public, RELAY.public, b"x")
            with pytest.raises(ConnectError, match=r"^derphttp\.Client\.ClosePeer connect to"):
                await client.close_peer(RELAY.public)
            assert client.stats.failed_connects == 5

    @pytest.mark.parametrize("websocket", [False, True])
    async def test_no_error_or_log_line_has_the_password(self, websocket: bool) -> None:
        url = f"http://user:s3cret@127.0.0.1:{closed_port()}/derp"
        with Log("pyderp") as log:
            async with of_url(url, websocket=websocket) as client:
                error = await fails(client)
                texts = [str(error), repr(error), str(client), repr(client), *log.lines]
                texts += map(str, error.attempts)
        assert log.lines
        assert any("xxxxx" in line for line in log.lines)
        assert not any("s3cret" in text for text in texts)

    async def test_the_cause_is_the_tls_error_of_an_untrusted_certificate(self) -> None:
        async with fake_relay(SERVER) as relay, of_url(relay.url) as client:
            error = await fails(client)
            assert isinstance(error.attempts[0], CertificateError)

    async def test_any_error_of_a_dialer_is_a_connect_error(self) -> None:
        """The client can connect afterwards."""
        broken = True

        async def dialer(host: str, port: int) -> socket.socket:
            if broken:
                raise ZeroDivisionError
            return socket.create_connection((host, port))

        async with fake_relay() as relay, of_url(relay.url, dialer=dialer) as client:
            with pytest.raises(ConnectError, match="dialer raised ZeroDivisionError") as e:
                await client.connect()
            assert isinstance(e.value.attempts[0].__cause__, ZeroDivisionError)
            assert client.connection_state == "not connected"
            broken = False
            await connects(client, relay)


class Bytes:
    """anyio's byte stream over a pair of asyncio streams."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    async def receive(self, max_bytes: int = 65536) -> bytes:
        return await self.reader.read(max_bytes)

    async def send(self, item: bytes) -> None:
        self.writer.write(item)
        await self.writer.drain()

    async def aclose(self) -> None:
        self.writer.transport.abort()


class TestDialer:
    """A function of the program that opens the connection."""

    @pytest.mark.parametrize("kind", ["socket", "streams", "byte stream", "link"])
    async def test_any_kind_of_stream_can_be_used(self, kind: str) -> None:
        """The dialer is called with the host by name and the port."""
        asked: list[tuple[str, int]] = []

        async with fake_relay() as relay:

            async def dialer(host: str, port: int) -> Any:
                asked.append((host, port))
                address = ("127.0.0.1", relay.port)
                if kind == "socket":
                    return socket.create_connection(address)
                if kind == "link":
                    return await as_link(socket.create_connection(address))
                pair = await asyncio.open_connection(*address)
                return pair if kind == "streams" else Bytes(*pair)

            async with of_url("http://no.such.name:99/derp", dialer=dialer) as client:
                peer = await connects(client, relay)
                assert b"\r\nHost: no.such.name:99\r\n" in peer.request
                await client.send(RELAY.public, b"x")
                assert (await peer.expect(FrameType.SEND_PACKET))[32:] == b"x"
            await peer.gone()
            assert asked == [("no.such.name", 99)]

    async def test_its_error_is_the_cause(self) -> None:
        error = OSError("no way out")

        async def dialer(_host: str, _port: int) -> socket.socket:
            raise error

        async with of_url("https://h/derp", dialer=dialer) as client:
            found = await fails(client)
            assert found.attempts == (error,)
            assert str(found).endswith("connect to https://h/derp: no way out")

    async def test_a_result_that_is_not_a_stream_is_refused(self) -> None:
        async def dialer(_host: str, _port: int) -> Any:
            return None

        async with of_url("https://h/derp", dialer=dialer) as client:
            assert "a NoneType is not a stream" in str(await fails(client))


async def test_a_urls_host_is_looked_up_in_the_cache() -> None:
    asked = []

    async def resolver(host: str, _family: socket.AddressFamily) -> list[Any]:
        import ipaddress

        asked.append(host)
        return [ipaddress.ip_address("127.0.0.1")]

    async with fake_relay() as relay:
        cache = DNSCache(resolver=resolver)
        url = relay.url.replace("127.0.0.1", "cached.example")
        async with of_url(url, dns_cache=cache) as client:
            for _ in range(2):
                peer = await connects(client, relay)
                peer.cut()
                await until_closed(client)
    assert set(asked) == {"cached.example"}


async def test_calls_without_a_connection_share_one_attempt() -> None:
    async with fake_relay() as relay, of_url(relay.url) as client:
        calls = [
            asyncio.create_task(client.connect()),
            asyncio.create_task(client.recv()),
            *(asyncio.create_task(client.send(RELAY.public, b"x")) for _ in range(3)),
        ]
        await relay.serve()
        async with bounded():
            await asyncio.gather(*calls)
        assert client.generation == 1
        assert len(relay.seen) == 1
        await client.connect()  # has connected already
        assert len(relay.seen) == 1


async def test_waiting_calls_fail_with_the_attempt_of_another() -> None:
    """They do not wait ten seconds more."""
    async with fake_relay() as relay, of_url(relay.url) as client:
        calls = [asyncio.create_task(client.connect()) for _ in range(5)]
        (await relay.accept()).cut()
        errors = await asyncio.gather(*calls, return_exceptions=True)
        assert {type(e) for e in errors} == {ConnectError}
        assert len({str(e) for e in errors}) == 1
        assert len({id(e) for e in errors}) == 5
        assert client.stats.failed_connects == 1
        await connects(client, relay)


async def test_waiting_calls_go_on_when_one_is_cancelled() -> None:
    """A cancelled attempt is no failure: the next waiting call makes its own."""
    async with fake_relay() as relay, of_url(relay.url) as client:
        first = asyncio.create_task(client.connect())
        second = asyncio.create_task(client.connect())
        await relay.accept()
        first.cancel()
        await relay.serve()
        await second
        assert client.generation == 1


async def test_changes_during_a_connect_are_sent_after_it() -> None:
    async with fake_relay() as relay, of_url(relay.url) as client:
        connecting = asyncio.create_task(client.connect())
        peer = await relay.accept()
        await upgrade(peer)
        await client.note_preferred(True)
        watching = asyncio.create_task(client.watch_connection_changes())
        await asyncio.sleep(0)
        await peer.login()
        await connecting
        assert await peer.expect(FrameType.NOTE_PREFERRED) == b"\x01"
        assert await peer.expect(FrameType.WATCH_CONNS) == b""
        await watching
        # And back, when the login has sent it already.
        peer.cut()
        await until_closed(client)
        connecting = asyncio.create_task(client.connect())
        peer = await relay.accept()
        await upgrade(peer)
        await client.note_preferred(False)
        await peer.login()
        await connecting
        assert await peer.expect(FrameType.NOTE_PREFERRED) == b"\x01"
        assert await peer.expect(FrameType.WATCH_CONNS) == b""
        assert await peer.expect(FrameType.NOTE_PREFERRED) == b"\x00"


class TestRegion:
    """The nodes of a region are tried in order."""

    async def test_a_missing_region_is_looked_up_at_each_attempt(self) -> None:
        async with fake_relay() as relay:
            answers = [None, None, region(node("1", relay)), region(node("2", relay))]
            client = Client.for_region(lambda: answers.pop(0), config=ClientConfig(network=HTTP))
            async with client:
                assert len(answers) == 4
                for _ in range(2):
                    with pytest.raises(
                        ConnectError, match=r"^DERP region not available$"
                    ) as caught:
                        await client.connect()
                    assert caught.value.__cause__ is None
                assert client.stats.failed_connects == 2
                for left in (1, 0):
                    peer = await connects(client, relay)
                    assert len(answers) == left
                    peer.cut()
                    await until_closed(client)

    async def test_a_region_without_derp_nodes_is_an_error(self) -> None:
        """With Go's text, also if there are nodes for STUN only."""
        async with of_region() as client:
            assert str(await fails(client)) == (
                "derphttp.Client.Connect connect to region 7 (x): no nodes for region 7 (x)"
            )
        async with of_region(node("1", 1, stun_only=True)) as client:
            assert str(await fails(client)).endswith(": no non-STUNOnly nodes for region 7 (x)")

    async def test_the_first_node_gets_no_ideal_node_header(self) -> None:
        """DERPPort is in Host."""
        async with fake_relay() as relay, fake_relay() as other:
            async with of_region(node("1", relay), node("2", other)) as client:
                peer = await connects(client, relay)
                assert peer.request.startswith(b"GET /derp HTTP/1.1\r\n")
                assert f"\r\nHost: 127.0.0.1:{relay.port}\r\n".encode() in peer.request
                assert b"Ideal-Node" not in peer.request
            assert not other.seen

    @pytest.mark.parametrize("websocket", [False, True])
    async def test_a_stun_only_first_node_is_skipped_and_still_ideal(self, websocket: bool) -> None:
        async with fake_relay() as relay:
            nodes = (node("1", 1, stun_only=True), node("2", relay))
            async with of_region(*nodes, websocket=websocket) as client:
                connecting = asyncio.create_task(client.connect())
                peer = await relay.accept()
                await peer.head()
                assert b"\r\nIdeal-Node: 1\r\n" in peer.request
                connecting.cancel()
                await asyncio.gather(connecting, return_exceptions=True)

    async def test_a_refused_connection_leads_to_the_next_node(self) -> None:
        async with (
            fake_relay() as relay,
            of_region(node("1", closed_port()), node("2", relay)) as client,
        ):
            peer = await connects(client, relay)
            assert b"\r\nIdeal-Node: 1\r\n" in peer.request
            assert client.stats.failed_connects == 0

    @pytest.mark.parametrize("failure", ["upgrade", "cut", "greeting", "silence"])
    async def test_a_refused_or_silent_login_leads_to_the_next_node(self, failure: str) -> None:
        async with fake_relay() as bad, fake_relay() as good:
            nodes = (node("1", bad), node("2", good))
            async with of_region(*nodes, connect_timeout=2) as client:
                connecting = asyncio.create_task(client.connect())
                peer = await bad.accept()
                if failure == "upgrade":
                    await peer.head()
                    peer.say(b"HTTP/1.1 503 No\r\nContent-Length: 0\r\n\r\n")
                elif failure == "cut":
                    peer.cut()
                elif failure == "greeting":
                    await upgrade(peer)
                    peer.say(pack_frame(FrameType.KEEP_ALIVE))
                await good.serve()
                await connecting
                await peer.gone()
                assert client.generation == 1

    async def test_a_failed_handshake_leads_to_the_next_node(self) -> None:
        """Bad certificates, and servers that do not speak TLS."""
        bad_context = certificate("another.name", issuer=ROOT).server()
        async with (
            fake_relay(bad_context) as bad,
            fake_relay() as plain,
            fake_relay(SERVER) as good,
        ):
            nodes = (node("1", bad), node("2", plain), node("3", good))
            async with of_region(*nodes, network=DIRECT, tls=TRUSTING) as client:
                connecting = asyncio.create_task(client.connect())
                peer = await plain.accept()
                peer.say(b"220 mail.example.com ESMTP\r\n")
                await good.serve()
                await connecting
                await peer.gone()

    async def test_silent_nodes_share_the_time_of_one(self) -> None:
        async with fake_relay() as relay:
            nodes = [node(str(number), relay) for number in range(3)]
            async with of_region(*nodes, connect_timeout=0.6) as client:
                loop = asyncio.get_running_loop()
                began = loop.time()
                error = await fails(client)
                assert loop.time() - began < 2
                assert len(error.attempts) == 3
                assert "node 0: no answer within 0.2 s" in str(error)
                assert "waiting for the relay's answer" in str(error)
                assert str(error).endswith(" (the first of 3 nodes that failed)")
                assert len(relay.seen) == 3
                for peer in relay.seen:
                    await peer.gone()

    async def test_when_all_fail_the_first_failure_is_raised_with_all_others(self) -> None:
        async with fake_relay() as bad:
            nodes = (
                node("0", 1, stun_only=True),
                node("1", closed_port()),
                node("2", bad),
                dataclasses.replace(node("3", 1), ipv4="none"),
            )
            async with of_region(*nodes) as client:
                failing = asyncio.create_task(fails(client))
                peer = await bad.accept()
                await upgrade(peer)
                peer.say(pack_frame(FrameType.KEEP_ALIVE))
                error = await failing
                first, second, third = error.attempts
                assert isinstance(first, DialError)
                assert isinstance(second, RemoteProtocolError)
                assert str(third) == "both IPv4 and IPv6 are explicitly disabled for node"
                text = str(error)
                assert text.startswith("derphttp.Client.Connect connect to region 7 (x): ")
                assert str(first) in text
                assert text.endswith(" (the first of 3 nodes that failed)")

    async def test_prefer_ipv6_is_asked_at_each_dial(self) -> None:
        """The preferred family may change between connects."""
        asked = []

        def prefer() -> bool:
            asked.append(1)
            return len(asked) > 1

        async with (
            fake_relay() as relay,
            of_region(node("1", relay), prefer_ipv6=prefer) as client,
        ):
            for times in (1, 2):
                peer = await connects(client, relay)
                assert len(asked) == times
                peer.cut()
                await until_closed(client)


async def dial(*nodes: DERPNode, **settings: Any) -> tuple[TlsLink, DERPNode]:
    config = ClientConfig(network=DIRECT, tls=TRUSTING, **settings)
    async with bounded():
        return await dial_region_tls(region(*nodes), config=config)


class TestDialRegionTls:
    """A connection with TCP and TLS, without a client, to measure latency."""

    async def test_the_first_reachable_node_is_dialled_and_no_request_sent(self) -> None:
        async with fake_relay(SERVER) as relay:
            nodes = (node("0", 1, stun_only=True), node("1", closed_port()), node("2", relay))
            link, found = await dial(*nodes)
            assert found.name == "2"
            assert link.state.version == "TLSv1.3"
            assert link.remote_address == ("127.0.0.1", relay.port)
            peer = await relay.accept()
            link.abort()
            assert await peer.gone() == b""

    async def test_errors_of_tcp_name_the_region_and_those_of_tls_do_not(self) -> None:
        """Nothing stays open."""
        async with fake_relay() as relay:
            with pytest.raises(DialError, match=r"^dialRegion\(7\): ") as caught:
                await dial(node("1", closed_port()))
            assert caught.value.__cause__ is not None
            with pytest.raises(DialError, match=r"^no nodes for region 7 \(x\)$"):
                await dial()
            dialling = asyncio.create_task(dial(node("1", relay)))
            peer = await relay.accept()
            peer.say(b"HTTP/1.1 400 Bad Request\r\n\r\n")
            with pytest.raises(TLSError, match="does not speak TLS"):
                await dialling
            await peer.gone()

    async def test_the_time_limit_is_that_of_a_connect(self) -> None:
        async with fake_relay() as relay:
            with pytest.raises(TimeoutError, match="in the TLS handshake"):
                await dial(node("1", relay), connect_timeout=0.1)
            await (await relay.accept()).gone()


async def test_the_debug_switch_turns_tls_off_for_https(caplog: pytest.LogCaptureFixture) -> None:
    """As in Go; a warning is logged."""
    async with fake_relay() as relay:
        config = ClientConfig(network=dataclasses.replace(DIRECT, use_derp_http=True))
        url = relay.url.replace("http://", "https://")
        async with Client.for_url(url, config=config) as client:
            await connects(client, relay)
            assert client.tls_state is None
    assert "no TLS for https://127.0.0.1" in caplog.text


@pytest.mark.parametrize("bad", ["a/b", "a@b", 'a"b', "a<b", ""])
async def test_a_host_name_that_no_proxy_can_be_asked_for_fails_that_node_only(bad: str) -> None:
    async with fake_connect_proxy() as (port, targets):
        network = NetworkSettings(proxy=f"http://127.0.0.1:{port}", use_derp_http=True)
        nodes = [
            DERPNode(name=name, region_id=7, host_name=host, derp_port=8443)
            for name, host in (("a", bad), ("b", "relay.test"))
        ]
        client = Client.for_region(region(*nodes), config=ClientConfig(network=network))
        with pytest.raises(ConnectError) as caught:
            await client.connect()
        await client.aclose()
        first, _ = caught.value.attempts
        assert isinstance(first, DialError)
        named = {"a/b": "node a: HostName 'a/b' is a URL", "": "node a: no HostName"}
        assert str(first).startswith(named.get(bad, f"node a: HostName {bad!r} has "))
        assert targets == ["relay.test:8443"]


@contextlib.asynccontextmanager
async def fake_connect_proxy() -> AsyncIterator[tuple[int, list[str]]]:
    """A proxy that refuses every request; its port, and the requests it got."""
    targets: list[str] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        targets.append((await reader.readuntil(b"\r\n\r\n")).split()[1].decode())
        writer.write(b"HTTP/1.1 403 No\r\n\r\n")
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with server:
        yield server.sockets[0].getsockname()[1], targets


BAD_HOSTS = [
    ({"host_name": "https://127.0.0.1"}, "HostName 'https://127.0.0.1' is a URL"),
    ({"host_name": "127.0.0.1:443"}, "HostName '127.0.0.1:443' has a port or brackets"),
    ({"host_name": "", "ipv4": "127.0.0.1"}, "no HostName: only a node with InsecureForTests"),
    ({"host_name": ""}, "no HostName: only"),
]


@pytest.mark.parametrize(("settings", "error"), BAD_HOSTS)
async def test_a_node_that_has_no_usable_host_is_named(
    settings: dict[str, Any], error: str
) -> None:
    """No name is looked up before; the region's other nodes are tried."""
    bad = dataclasses.replace(node("7a", 1), **settings)

    async with of_region(bad, network=DIRECT) as client:
        with pytest.raises(ConnectError) as caught:
            await client.connect()
        assert f"node 7a: {error}" in str(caught.value)
        (cause,) = caught.value.attempts
        assert isinstance(cause, DialError)
        assert cause.reason is FailureReason.BAD_MAP
        assert not is_transient(caught.value)


async def test_a_node_after_one_without_usable_host_is_tried() -> None:
    bad = dataclasses.replace(node("7a", 1), host_name="https://127.0.0.1")

    async with fake_relay() as relay, of_region(bad, node("7b", relay)) as client:
        await connects(client, relay)
