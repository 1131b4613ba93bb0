"""Sockets that a service manager opened: of each kind, by name, and of both IP families."""

from __future__ import annotations

import os
import socket
import ssl
from pathlib import Path

import pytest

from pyderp.wire.stun import pack_request, parse_response_untrusted
from tests.cli.process import BOUND
from tests.server.certificates import trusting_nobody, write_pair

from .support import service

ASK = b"GET /generate_204 HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"


def answer(sock: socket.socket | ssl.SSLSocket) -> bytes:
    sock.sendall(ASK)
    return sock.recv(1000).partition(b"\r\n")[0]


@pytest.mark.parametrize("loop", ["asyncio", "uvloop"])
def test_each_socket_serves_its_own_kind(loop: str, tmp_path: Path) -> None:
    """As in `contrib/systemd/`: 443 and 3478 in one unit, 80 in another by name."""
    write_pair(tmp_path, "localhost")
    flags = ["-c", tmp_path / "relay.json", "--certmode=manual", f"--certdir={tmp_path}"]
    flags += ["--hostname=localhost", f"--loop={loop}"]  # no port in the settings
    with (
        socket.create_server(("::", 0), family=socket.AF_INET6, dualstack_ipv6=True) as https,
        socket.create_server(("127.0.0.1", 0)) as http,
        socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as stun,
    ):
        stun.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        stun.bind(("::", 0))
        names = {"LISTEN_FDNAMES": "pyderp.socket:pyderp.socket:http"}
        with service(
            *flags, log=tmp_path / "log", sockets=[https, stun, http], extra=names
        ) as relay:
            assert relay.port == https.getsockname()[1]
            for host in ("127.0.0.1", "::1"):
                there = (host, relay.port)
                with (
                    socket.create_connection(there, timeout=BOUND) as sock,
                    trusting_nobody().wrap_socket(sock, server_hostname="localhost") as tls,
                ):
                    assert answer(tls) == b"HTTP/1.1 204 No Content"
                assert asks_stun(host, stun.getsockname()[1]) == host
            with socket.create_connection(http.getsockname(), timeout=BOUND) as sock:
                assert answer(sock) == b"HTTP/1.1 204 No Content"


def asks_stun(host: str, port: int) -> str:
    """The address that the relay sees."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_DGRAM) as sock:
        sock.settimeout(BOUND)
        tx_id = os.urandom(12)
        sock.sendto(pack_request(tx_id), (host, port))
        return str(parse_response_untrusted(sock.recv(1000)).address)
