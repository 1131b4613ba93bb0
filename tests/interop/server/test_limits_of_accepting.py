"""Connections beyond the accept limit: derper exits at the first, pyderp closes it and goes on."""

from __future__ import annotations

import socket
import ssl
from pathlib import Path

import pytest

from tests.interop.relays import Kind, Relay, each_derper, running
from tests.server.certificates import trusting_nobody

from .support import Answer, parse_metrics, request, until

LIMIT = "--accept-connection-limit=0.001"


def shake_hands(relay: Relay) -> ssl.SSLSocket | None:
    """Connect; returns nothing if the relay closes the connection instead."""
    sock = socket.create_connection((relay.address, relay.port), timeout=10)
    try:
        return trusting_nobody().wrap_socket(sock, server_hostname=relay.hostname)
    except OSError:
        sock.close()
        return None


@each_derper
def test_derper_exits(derper: Kind, tmp_path: Path) -> None:
    def main() -> None:
        # One more, as the check that it listens takes one.
        burst = "--accept-connection-burst=3"
        with running(derper, "named", tmp_path, options=[LIMIT, burst]) as relay:
            first, second = shake_hands(relay), shake_hands(relay)
            assert first is not None
            assert second is not None
            assert shake_hands(relay) is None
            until(lambda: relay.process.poll() is not None, "derper exits")
            first.close()
            second.close()

    with pytest.raises(AssertionError, match=r"exited with 1\n(.*\n)*.*rate limited"):
        main()


def test_ours_serves_on(tmp_path: Path) -> None:
    burst = "--accept-connection-burst=2"
    with running("pyderp", "named", tmp_path, options=[LIMIT, burst]) as relay:
        first, second = shake_hands(relay), shake_hands(relay)
        assert first is not None
        assert second is not None
        assert shake_hands(relay) is None
        assert shake_hands(relay) is None
        second.close()
        first.sendall(request("/debug/varz"))
        data = bytearray()
        while chunk := first.recv(65536):
            data += chunk
        first.close()
        seen = parse_metrics(Answer.parse(bytes(data)).body.decode())
        assert seen["tls_listener_accepted_connections"] == 2
        assert seen["tls_listener_rejected_connections"] == 2
