"""Ports for programs that cannot pick one, or that must know the port of another before."""

from __future__ import annotations

import random
import socket
from typing import Final

_random: Final = random.SystemRandom()  # not seeded, so that no two processes guess alike


def free_port(host: str = "127.0.0.1", kind: socket.SocketKind = socket.SOCK_STREAM) -> int:
    """Return a free port outside of the range for outgoing connections.

    A port of the kernel's choice may be that of an outgoing connection a moment later, the more
    likely the more tests run at once.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    while True:
        port = _random.randrange(20000, 32000)
        with socket.socket(family, kind) as probe:
            try:
                probe.bind((host, port))
            except OSError:
                continue
        return port
