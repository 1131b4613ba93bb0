"""The upgrade and the login: what the client writes when, and which answers it takes."""

from __future__ import annotations

import asyncio
import ssl
import time
from datetime import UTC, datetime

import pytest

from pyderp import (
    BadMagic,
    BadUpgrade,
    Client,
    ClientConfig,
    ConnectError,
    MeshKey,
    NodePrivate,
    ReceivedPacket,
    RemoteProtocolError,
    ServerInfo,
    TLSConfig,
    UnexpectedFrame,
    UpgradeRejected,
    is_transient,
)
from pyderp.client.login import Login
from pyderp.wire.frames import FrameType, pack_frame, pack_server_key
from pyderp.wire.login import ClientInfo
from pyderp.wire.metacert import make_meta_certificate
from pyderp.wire.upgrade import switching_protocols
from tests.net.certificates import ROOT, certificate

from .fakes import (
    DIRECT,
    PEER,
    RELAY,
    FakeRelay,
    bounded,
    connects,
    fake_relay,
    packet_frame,
    until_closed,
)

META = make_meta_certificate(RELAY.public, now=datetime.now(UTC))
TRUSTING = ClientConfig(
    network=DIRECT,
    tls=TLSConfig(system_roots=False, builtin_roots=False, extra_roots=(ROOT.der,)),
)
SERVER = certificate("127.0.0.1", issuer=ROOT)


def config(**settings: object) -> ClientConfig:
    return ClientConfig(network=DIRECT, **settings)  # type: ignore[arg-type]  # passed on unchanged


async def refused(client: Client, relay: FakeRelay, *answer: bytes) -> ConnectError:
    """Connect to a relay that answers and closes; returns the error."""
    connecting = asyncio.create_task(client.connect())
    peer = await relay.accept()
    await peer.head()
    peer.say(*answer)
    peer.hang_up()
    async with bounded():
        with pytest.raises(ConnectError) as caught:
            await connecting
    await peer.gone()
    assert not client.connected
    assert client.generation == 0
    return caught.value


async def test_the_request_has_gos_headers() -> None:
    """Path, query and Host are those of the URL, without its user."""
    async with fake_relay() as relay:
        url = f"http://user:pw@127.0.0.1:{relay.port}/some/path?x=1"
        async with Client.for_url(url, config=config()) as client:
            peer = await connects(client, relay)
            lines = peer.request.decode().split("\r\n")
            assert lines[0] == "GET /some/path?x=1 HTTP/1.1"
            headers = {line.partition(": ")[0] for line in lines[1:] if line}
            assert f"Host: 127.0.0.1:{relay.port}" in lines
            assert "Upgrade: DERP" in lines
            assert "Connection: Upgrade" in lines
            assert headers == {"Host", "User-Agent", "Connection", "Upgrade"}
            assert "pw" not in peer.request.decode()


async def test_client_info_has_what_the_settings_ask_for() -> None:
    """Its key is the client's."""
    mesh = MeshKey(bytes(range(32)))
    private = NodePrivate.generate()
    settings = config(mesh_key=mesh, is_prober=True, app_name="tests", can_ack_pings=True)
    async with fake_relay() as relay:
        async with Client.for_url(relay.url, private_key=private, config=settings) as client:
            peer = await connects(client, relay)
        assert peer.key == private.public == client.self_public_key
        info = peer.info
        assert info.mesh_key == mesh
        assert (info.version, info.is_prober, info.can_ack_pings) == (2, True, True)
        assert info.app_name == "tests"
        async with Client.for_url(relay.url, config=config()) as client:
            peer = await connects(client, relay)
        info = peer.info
        assert info.mesh_key is None
        assert (info.version, info.is_prober, info.can_ack_pings) == (2, False, False)
        assert info.app_name == ""


async def test_can_ack_pings_holds_for_later_connects() -> None:
    """An open connection sends nothing."""
    async with fake_relay() as relay, Client.for_url(relay.url, config=config()) as client:
        first = await connects(client, relay)
        client.set_can_ack_pings(True)
        assert not first.info.can_ack_pings
        first.cut()
        await until_closed(client)
        second = await connects(client, relay)
        assert second.info.can_ack_pings


async def test_preferred_and_watch_leave_with_client_info() -> None:
    """On every connect."""
    settings = config(watch_connection_changes=True)
    async with fake_relay() as relay, Client.for_url(relay.url, config=settings) as client:
        await client.note_preferred(True)
        for _ in range(2):
            peer = await connects(client, relay)
            assert await peer.expect(FrameType.NOTE_PREFERRED) == b"\x01"
            assert await peer.expect(FrameType.WATCH_CONNS) == b""
            peer.cut()
            await until_closed(client)


async def test_an_answer_may_come_byte_by_byte_or_at_once() -> None:
    whole = switching_protocols(RELAY.public) + pack_server_key(RELAY.public)
    whole += packet_frame(b"early")
    for step in (1, 7, len(whole)):
        async with fake_relay() as relay, Client.for_url(relay.url, config=config()) as client:
            receiving = asyncio.create_task(client.recv())
            peer = await relay.accept()
            await peer.head()
            for at in range(0, len(whole), step):
                peer.say(whole[at : at + step])
                await asyncio.sleep(0)
            await peer.client_info()
            async with bounded():
                assert await receiving == ReceivedPacket(PEER, b"early")
            assert client.server_public_key == RELAY.public


@pytest.mark.parametrize(
    ("status", "transient"), [(404, False), (503, True), (200, False), (426, False), (429, True)]
)
async def test_a_status_other_than_101_is_an_error_with_status_and_body(
    status: int, transient: bool
) -> None:
    asks_once = config(websocket=False)
    async with fake_relay() as relay, Client.for_url(relay.url, config=asks_once) as client:
        answer = f"HTTP/1.1 {status} Some Reason\r\nContent-Length: 6\r\n\r\nno, no"
        error = await refused(client, relay, answer.encode())
        (cause,) = error.attempts
        assert isinstance(cause, UpgradeRejected)
        assert (cause.status, cause.body) == (status, "no, no")
        assert f"derphttp.Client.Connect connect to {relay.url}: " in str(error)
        assert str(status) in str(error)
        assert "no, no" in str(error)
        assert is_transient(error) is transient


async def test_the_body_of_a_refusal_is_read_up_to_a_limit() -> None:
    async with fake_relay() as relay, Client.for_url(relay.url, config=config()) as client:
        connecting = asyncio.create_task(client.connect())
        peer = await relay.accept()
        await peer.head()
        peer.say(b"HTTP/1.1 500 No\r\n\r\n", bytes(1 << 20))
        async with bounded():
            with pytest.raises(ConnectError, match="500 No") as caught:
                await connecting
        assert len(str(caught.value)) < 10_000
        await peer.gone()


@pytest.mark.parametrize("answer", [b"SSH-2.0-OpenSSH_9.2\r\n", b"\x16\x03", b"HTTP"])
async def test_an_answer_that_is_not_http_is_an_error(answer: bytes) -> None:
    async with fake_relay() as relay, Client.for_url(relay.url, config=config()) as client:
        error = await refused(client, relay, answer)
        assert isinstance(error.attempts[0], BadUpgrade)
        assert not is_transient(error)


BAD_GREETINGS = {
    "another frame": (pack_frame(FrameType.KEEP_ALIVE), UnexpectedFrame),
    "short": (pack_frame(FrameType.SERVER_KEY, b"DERP"), RemoteProtocolError),
    "another magic": (pack_frame(FrameType.SERVER_KEY, bytes(40)), BadMagic),
    "zero key": (
        pack_frame(FrameType.SERVER_KEY, "DERP🔑".encode() + bytes(32)),
        RemoteProtocolError,
    ),
    "too long": (pack_frame(FrameType.SERVER_KEY, bytes(2000)), RemoteProtocolError),
}


@pytest.mark.parametrize("which", BAD_GREETINGS)
async def test_a_bad_greeting_fails_the_connect(which: str) -> None:
    """With Go's text and the error's own class."""
    greeting, kind = BAD_GREETINGS[which]

    async with fake_relay() as relay, Client.for_url(relay.url, config=config()) as client:
        error = await refused(client, relay, switching_protocols(RELAY.public), greeting)
        assert type(error.attempts[0]) is kind or which == "too long"
        assert isinstance(error.attempts[0], kind)
        assert "derp.Client: failed to receive server key: " in str(error)
        assert not is_transient(error)


@pytest.mark.parametrize("websocket", [False, True])
async def test_a_refusal_whose_body_does_not_come_is_still_a_refusal(websocket: bool) -> None:
    """It is raised soon, and is no timeout."""
    settings = config(websocket=websocket)
    async with fake_relay() as relay, Client.for_url(relay.url, config=settings) as client:
        connecting = asyncio.create_task(client.connect())
        peer = await relay.accept()
        await peer.head()
        peer.say(b"HTTP/1.1 403 Forbidden\r\nContent-Length: 100\r\n\r\ngo away")
        began = time.monotonic()
        async with bounded():
            with pytest.raises(ConnectError) as caught:
                await connecting
        assert time.monotonic() - began < 5
        (cause,) = caught.value.attempts
        assert isinstance(cause, UpgradeRejected)
        assert (cause.status, cause.body) == (403, "go away")
        assert not is_transient(caught.value)
        await peer.gone()


async def test_an_end_before_the_answer_is_transient() -> None:
    async with fake_relay() as relay, Client.for_url(relay.url, config=config()) as client:
        error = await refused(client, relay)
        assert "closed the connection without an answer" in str(error)
        assert is_transient(error)


async def test_an_end_before_the_greeting_is_transient() -> None:
    async with fake_relay() as relay, Client.for_url(relay.url, config=config()) as client:
        error = await refused(client, relay, switching_protocols(RELAY.public))
        assert "derp.Client: failed to receive server key: EOF" in str(error)
        assert is_transient(error)


def context(version: ssl.TLSVersion, *rest: bytes) -> ssl.SSLContext:
    return SERVER.followed_by(*rest).server(version)


class TestFastStart:
    """With the relay's key from its meta certificate, the client waits for no answer."""

    async def test_one_write(self) -> None:
        """Request, ClientInfo, NotePreferred and WatchConns leave in one record, without an
        answer."""
        settings = ClientConfig(network=DIRECT, tls=TRUSTING.tls, watch_connection_changes=True)
        tls = context(ssl.TLSVersion.TLSv1_3, META)
        async with fake_relay(tls) as relay:
            async with Client.for_url(relay.url, config=settings) as client, bounded():
                await client.note_preferred(True)
                # The relay has not sent a byte.
                await client.connect()
                assert client.connected
                assert client.server_public_key == RELAY.public
                peer = await relay.accept()
                await peer.head()
                assert b"\r\nDerp-Fast-Start: 1\r\n" in peer.request
                info = await peer.client_info()
                assert info.version == 2
                assert await peer.expect(FrameType.NOTE_PREFERRED) == b"\x01"
                await peer.expect(FrameType.WATCH_CONNS)
                # The greeting comes later, and is skipped.
                assert peer.key is not None
                peer.say(pack_server_key(RELAY.public), packet_frame(b"x"))
                assert await client.recv() == ReceivedPacket(PEER, b"x")
            assert client.stats.connects == 1

    @pytest.mark.parametrize("why", ["no meta certificate", "TLS 1.2", "version 0"])
    async def test_without_a_valid_meta_certificate_the_client_waits(self, why: str) -> None:
        version = ssl.TLSVersion.TLSv1_2 if why == "TLS 1.2" else ssl.TLSVersion.TLSv1_3
        rest = () if why == "no meta certificate" else (META,)
        if why == "version 0":
            # The serial number is the version; the certificate's signature is not looked at.
            rest = (META.replace(b"\x02\x01\x02\x30", b"\x02\x01\x00\x30", 1),)
            assert rest != (META,)

        async with (
            fake_relay(context(version, *rest)) as relay,
            Client.for_url(relay.url, config=TRUSTING) as client,
            bounded(),
        ):
            connecting = asyncio.create_task(client.connect())
            peer = await relay.accept()
            await peer.head()
            assert b"Fast-Start" not in peer.request
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.02):
                    await peer.reader.read(1)
            assert not connecting.done()
            peer.say(switching_protocols(RELAY.public))
            if why == "version 0":
                # The key is known, so the client does not wait for the greeting.
                await peer.client_info()
            await connecting if why == "version 0" else await peer.login()
            await connecting
            assert client.tls_state is not None
            assert client.tls_state.version == version.name.replace("_", ".")

    async def test_another_key_in_the_greeting(self) -> None:
        """The key of the meta certificate is used; the greeting is not compared with it, as in
        Go."""
        tls = context(ssl.TLSVersion.TLSv1_3, META)
        async with (
            fake_relay(tls) as relay,
            Client.for_url(relay.url, config=TRUSTING) as client,
            bounded(),
        ):
            await client.connect()
            peer = await relay.accept()
            await peer.head()
            await peer.client_info()
            other = NodePrivate.generate().public
            peer.say(pack_server_key(other), packet_frame(b"x"))
            assert await client.recv() == ReceivedPacket(PEER, b"x")
            assert client.server_public_key == RELAY.public


async def test_server_info_is_the_first_message() -> None:
    """The program receives ServerInfo like any other message."""
    async with fake_relay() as relay, Client.for_url(relay.url, config=config()) as client:
        info = ServerInfo(2, 1000, 2000)
        await connects(client, relay, info=info)
        assert await client.recv_with_generation() == (info, 1)


def test_skipped_frames_are_logged(caplog: pytest.LogCaptureFixture) -> None:
    """With Go's text."""
    caplog.set_level("DEBUG", "pyderp.client")
    session = Login(NodePrivate.generate(), ClientInfo()).session(NodePrivate.generate().public)
    assert session.receive_data(pack_frame(FrameType.PEER_GONE, b"short")) == []
    assert caplog.messages == [
        "[unexpected] dropping short peerGone frame from DERP server (type 0x08)"
    ]
