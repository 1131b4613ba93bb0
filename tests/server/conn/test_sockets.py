from __future__ import annotations

import asyncio
import contextlib
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest

import pyderp
from pyderp.defaults import LISTEN_BACKLOG
from pyderp.errors import ConfigError
from pyderp.server.conn.kernel import unacknowledged
from pyderp.server.conn.sockets import (
    listen,
    tune,
)


def _has_ipv6_loopback() -> bool:
    """Whether a socket can be bound to ::1: a kernel or a container may be without IPv6."""
    try:
        with socket.socket(socket.AF_INET6) as sock:
            sock.bind(("::1", 0))
    except OSError:
        return False
    return True


def test_a_listener_listens_on_a_free_port() -> None:
    with listen("127.0.0.1", 0) as sock:
        host, port = sock.getsockname()
        assert host == "127.0.0.1"
        assert port != 0
        with socket.create_connection((host, port), timeout=5):
            pass


@pytest.mark.skipif(not _has_ipv6_loopback(), reason="this machine has no ::1")
def test_an_empty_host_listens_on_both_families() -> None:
    with listen("", 0) as sock:
        port = sock.getsockname()[1]
        for address in ("127.0.0.1", "::1"):
            with socket.create_connection((address, port), timeout=5):
                pass


def test_without_ipv6_an_empty_host_listens_on_ipv4(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(socket, "has_dualstack_ipv6", lambda: False)
    with listen("", 0) as sock:
        assert sock.family is socket.AF_INET
        assert sock.getsockname()[0] == "0.0.0.0"


@pytest.mark.skipif(sys.platform != "linux", reason="Linux hands options on to accepted sockets")
def test_accepted_sockets_have_the_options_of_the_listener() -> None:
    with listen("127.0.0.1", 0) as sock:
        tune(sock, keepalive_time=600, notsent_lowat=16384)
        with socket.create_connection(sock.getsockname(), timeout=5):
            accepted, _ = sock.accept()
            with accepted:
                get = accepted.getsockopt
                assert get(socket.SOL_SOCKET, socket.SO_KEEPALIVE) == 1
                assert get(socket.IPPROTO_TCP, socket.TCP_NODELAY) == 1
                assert get(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE) == 600
                assert get(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL) == 15
                assert get(socket.IPPROTO_TCP, socket.TCP_KEEPCNT) == 9
                assert get(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT) == 0
                assert get(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT) == 16384


@pytest.mark.skipif(sys.platform != "linux", reason="Linux hands options on to accepted sockets")
def test_zero_keeps_the_systems_options() -> None:
    with listen("127.0.0.1", 0) as sock:
        tune(sock, keepalive_time=0, notsent_lowat=0)
        assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE) == 0
        assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT) == 0


@pytest.mark.parametrize("seconds", [1e5, 1e12, float("inf")])
def test_a_keepalive_time_that_the_kernel_refuses_keeps_its_default(seconds: float) -> None:
    with listen("127.0.0.1", 0) as sock:
        tune(sock, keepalive_time=seconds, notsent_lowat=0)
        assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE) == 1


def test_an_option_that_the_system_lacks_is_skipped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(socket, "TCP_KEEPIDLE")
    with listen("127.0.0.1", 0) as sock:
        tune(sock, keepalive_time=1, notsent_lowat=0)


def test_a_port_in_use_is_reported() -> None:
    with listen("127.0.0.1", 0) as sock:
        port = sock.getsockname()[1]
        with pytest.raises(ConfigError, match=rf"127\.0\.0\.1:{port}: the port is taken"):
            listen("127.0.0.1", port)


def test_an_address_of_another_machine_is_reported() -> None:
    with pytest.raises(ConfigError, match="does not have that address"):
        listen("192.0.2.1", 0)


@pytest.mark.parametrize("host", ["no such host", "a" * 70, "a..b", "x\0y"])
def test_an_invalid_host_is_reported(host: str) -> None:
    with pytest.raises(ConfigError, match="cannot listen on"):
        listen(host, 0)


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (PermissionError(13, "Permission denied"), "CAP_NET_BIND_SERVICE"),
        (OSError(12, "Cannot allocate memory"), "Cannot allocate memory"),
        (OSError("odd"), "odd"),
    ],
)
def test_other_failures_to_listen_are_reported(
    monkeypatch: pytest.MonkeyPatch, error: OSError, text: str
) -> None:
    def fail(*_: object, **__: object) -> socket.socket:
        raise error

    monkeypatch.setattr(socket, "create_server", fail)
    with pytest.raises(ConfigError, match=text):
        listen("127.0.0.1", 80)


def somaxconn() -> int:
    """Return the kernel's limit for the queue of a listener."""
    return int(Path("/proc/sys/net/core/somaxconn").read_text())


@pytest.mark.skipif(shutil.which("ss") is None, reason="ss of iproute2 is not here")
async def test_the_listen_queue_is_as_long_as_documented() -> None:
    """create_server would set it to 100 by default."""
    limit = somaxconn()
    async with pyderp.Relay() as relay:
        command = ["ss", "-Hltn", f"sport = :{relay.address[1]}"]
        done = await asyncio.to_thread(
            subprocess.run, command, capture_output=True, text=True, check=True
        )
        assert int(done.stdout.split()[2]) == min(LISTEN_BACKLOG, limit)


def test_unacknowledged_bytes_are_counted() -> None:
    listener = socket.create_server(("127.0.0.1", 0))
    with listener, socket.create_connection(listener.getsockname()) as client:
        server, _ = listener.accept()
        with server:
            server.setblocking(False)
            with contextlib.suppress(BlockingIOError):
                while True:
                    server.send(bytes(65536))
            transport = asyncio.Transport({"socket": server})
            before = unacknowledged(transport)
            assert before > 0
            received = 0
            while received < before:
                received += len(client.recv(1 << 20))
            assert unacknowledged(transport) < before
        assert unacknowledged(transport) == 0
    assert unacknowledged(asyncio.Transport()) == 0


def test_two_colons_are_all_addresses_of_both_families() -> None:
    with (
        listen("::", 0) as sock,
        socket.create_connection(("127.0.0.1", sock.getsockname()[1])),
    ):
        pass
