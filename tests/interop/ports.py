"""Ports for programs that cannot pick one themselves, or that must be told of another's before."""

from __future__ import annotations

import random
import socket
from typing import Final

_random: Final = random.SystemRandom()  # not seeded, so that no two processes guess alike


def free_port(host: str = "127.0.0.1", kind: socket.SocketKind = socket.SOCK_STREAM) -> int:
    """Return a port that nobody has, from where the kernel takes none for outgoing connections.

    A port of the kernel's choice may be an outgoing connection's a moment later, and more likely
    so the more tests run at once.
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
