"""Sockets that a relay listens on: its own, inherited ones, and Unix sockets."""

from __future__ import annotations

import asyncio
import os
import socket
import ssl
from ipaddress import ip_network
from pathlib import Path

import pytest

import pyderp
from pyderp import ManualTLS, RelayConfig
from pyderp.errors import ConfigError
from pyderp.server.app import listeners
from pyderp.server.app.listeners import Listeners, open_listeners
from pyderp.server.conn.sockets import listen, listen_unix
from pyderp.server.services.stun import stun_sockets
from tests.server.dial import clients, drained, hang_up, passes
from tests.server.ways import NAME, over_tls

from .test_relay import ask, get


def bound(port: int = 0) -> socket.socket:
    return listen("127.0.0.1", port)


async def test_sockets_passed_to_the_relay_are_used_and_closed(tls: ManualTLS) -> None:
    given = Listeners([bound(), bound()], [bound()], stun_sockets("127.0.0.1", 0))
    names = [sock.getsockname() for sock in (*given.main, *given.side, *given.stun)]
    config = RelayConfig(
        address="192.0.2.1:1",
        stun_port=1,
        tls=ManualTLS(certdir=tls.certdir, hostname=NAME, http_port=2),
    )
    async with pyderp.Relay(config, listeners=open_listeners(config, given)) as relay:
        assert relay.address == names[0]
        assert relay.http_address == names[2]
        assert relay.stun_addresses == [names[3]]
        async with clients(relay, 2, via=over_tls()) as both:
            await passes(*both)
        # Each of several listeners accepts connections.
        trusting = over_tls().tls
        assert isinstance(trusting, ssl.SSLContext)
        _, writer = await asyncio.open_connection(*names[1], ssl=trusting, server_hostname=NAME)
        await hang_up(writer)
        answer = await ask(names[2], get("/generate_204"))
        assert answer.startswith(b"HTTP/1.1 204")
    for sock in (*given.main, *given.side, *given.stun):
        assert sock.fileno() == -1


def test_listeners_that_were_not_passed_are_opened() -> None:
    given = Listeners(main=[bound()])
    listeners = open_listeners(RelayConfig(address="127.0.0.1:0", stun_port=0), given)
    assert listeners.main == given.main
    assert len(listeners.stun) == 1
    listeners.close()


def test_all_listeners_are_non_blocking_and_have_the_tcp_options(tmp_path: Path) -> None:
    """Whether they were passed or opened."""
    given = Listeners(main=[bound(), listen_unix(tmp_path / "sock")])
    assert [sock.getblocking() for sock in given.main] == [True, True]
    tls = ManualTLS(certdir=Path(), hostname="127.0.0.1", http_port=0)
    config = RelayConfig(address="127.0.0.1:0", tls=tls, tcp_keepalive_time=77.0)
    opened = open_listeners(config, given)
    try:
        assert len(opened.side) == 1
        for sock in (*opened.main, *opened.side):
            assert not sock.getblocking()
        for sock in (opened.main[0], opened.side[0]):
            assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE) == 77
    finally:
        opened.close()


def test_if_one_listener_cannot_be_opened_all_are_closed() -> None:
    with bound() as taken:
        port = taken.getsockname()[1]
        given = Listeners(main=[bound()])
        tls = ManualTLS(certdir=Path(), hostname="127.0.0.1", http_port=port)
        with pytest.raises(ConfigError, match=r"taken.*http_port=None does without"):
            open_listeners(RelayConfig(tls=tls), given)
        assert given.main[0].fileno() == -1


async def test_two_relays_share_a_port_with_reuse_port() -> None:
    async with pyderp.Relay(RelayConfig(reuse_port=True, stun_port=0)) as first:
        again = RelayConfig(
            address=f"127.0.0.1:{first.address[1]}",
            stun_port=first.stun_addresses[0][1],
            reuse_port=True,
        )
        async with pyderp.Relay(again) as second:
            assert second.address == first.address
            await first.aclose(drain=0)
            async with clients(second) as both:
                await passes(*both)


# Unix sockets


async def over_unix(path: Path, request: bytes) -> bytes:
    reader, writer = await asyncio.open_unix_connection(str(path))
    writer.write(request)
    answer = await drained(reader)
    await hang_up(writer)
    return answer


async def test_a_relay_behind_a_unix_socket(tmp_path: Path) -> None:
    path = tmp_path / "relay.sock"
    async with pyderp.Relay(RelayConfig(address=f"unix:{path}")) as relay:
        assert relay.address == (f"unix:{path}", 0)
        answer = await over_unix(path, get("/derp/probe"))
        assert answer.startswith(b"HTTP/1.1 200 OK")


async def test_forwarding_headers_on_a_unix_socket_count_only_with_trusted_proxies(
    tmp_path: Path,
) -> None:
    request = (
        b"GET /debug/ HTTP/1.1\r\nHost: localhost\r\n"
        b"X-Forwarded-For: %s\r\nConnection: close\r\n\r\n"
    )
    trusted = RelayConfig(
        address=f"unix:{tmp_path}/a", trusted_proxies=(ip_network("192.0.2.1/32"),)
    )
    async with pyderp.Relay(trusted):
        path = tmp_path / "a"
        assert b" 200 OK" in await over_unix(path, request % b"127.0.0.1")
        assert b" 403 " in await over_unix(path, request % b"198.51.100.1")
    async with pyderp.Relay(RelayConfig(address=f"unix:{tmp_path}/b")):
        assert b" 403 " in await over_unix(tmp_path / "b", request % b"127.0.0.1")


def test_a_stale_unix_socket_is_replaced_and_a_used_one_is_not(tmp_path: Path) -> None:
    path = tmp_path / "relay.sock"
    listen_unix(path).close()
    assert path.exists()
    with listen_unix(path), pytest.raises(ConfigError, match="something is there"):
        listen_unix(path)
    path.unlink()
    path.write_text("not a socket")
    with pytest.raises(ConfigError, match="something is there"):
        listen_unix(path)
    assert path.read_text() == "not a socket"


async def test_a_clean_stop_leaves_no_unix_socket(tmp_path: Path) -> None:
    path = tmp_path / "relay.sock"

    relay = pyderp.Relay(RelayConfig(address=f"unix:{path}"))
    await relay.start()
    assert path.is_socket()
    await relay.aclose(drain=0)
    assert not path.exists()


async def test_closing_does_not_remove_the_unix_socket_of_another_relay(tmp_path: Path) -> None:
    path = tmp_path / "relay.sock"
    config = RelayConfig(address=f"unix:{path}")

    first = pyderp.Relay(config)
    await first.start()
    path.unlink()
    async with pyderp.Relay(config):
        await first.aclose(drain=0)
        assert b" 200 OK" in await over_unix(path, get("/derp/probe"))
    assert not path.exists()


async def test_an_inherited_unix_socket_is_not_removed(tmp_path: Path) -> None:
    """systemd keeps listening on it, and starts the relay again at the next connection."""
    path = tmp_path / "relay.sock"

    with listen_unix(path) as sock:
        given = Listeners(main=[socket.socket(fileno=os.dup(sock.fileno()))])
        config = RelayConfig()
        async with pyderp.Relay(config, listeners=open_listeners(config, given)) as relay:
            assert relay.address == (f"unix:{path}", 0)
        assert path.is_socket()
        path.unlink()


def test_a_relay_that_does_not_start_leaves_no_unix_socket(tmp_path: Path) -> None:
    path = tmp_path / "relay.sock"
    opened = open_listeners(RelayConfig(address=f"unix:{path}"))
    assert path.is_socket()
    opened.close()
    assert not path.exists()


def test_a_unix_socket_in_a_missing_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match="Not a directory"):
        listen_unix(tmp_path / "file" / "relay.sock")
    with pytest.raises(ConfigError, match="No such file"):
        listen_unix(tmp_path / "missing" / "relay.sock")


async def test_queues_are_empty_when_all_connections_were_accepted(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    loop = asyncio.get_running_loop()
    with socket.create_server(("127.0.0.1", 0)) as server, socket.socket() as client:
        server.setblocking(False)
        opened = Listeners(main=[server])
        await opened.queues_empty()
        client.connect(server.getsockname())
        waiting = loop.create_task(opened.queues_empty())
        for _ in range(20):
            await asyncio.sleep(0)
        assert not waiting.done()
        server.accept()[0].close()
        await waiting

        monkeypatch.setattr(listeners, "_LONGEST_WAIT", 0.02)
        with socket.create_connection(server.getsockname()):
            await opened.queues_empty()  # returns after _LONGEST_WAIT
