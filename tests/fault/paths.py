"""A network namespace in which nftables drops all packets of one connection.

Nothing leaves it: it has a loopback interface only.
"""

from __future__ import annotations

import contextlib
import ctypes
import itertools
import os
import socket
import subprocess
import threading
from collections.abc import Iterator
from typing import Final

from tests.interop.tailscaled.namespaces import Namespace
from tests.interop.tailscaled.peers import missing, need, need_namespaces

__all__ = ["Paths", "paths"]

_CLONE_NEWNET: Final = 0x40000000
_libc: Final = ctypes.CDLL(None, use_errno=True)
_serial = itertools.count(1)

# Packets are dropped where they arrive: a packet that is dropped where it leaves is an error
# for the sender, and no dead path.
_RULES: Final = """
add table inet paths
add set inet paths dead { type inet_service; }
add chain inet paths arrive { type filter hook input priority 0; }
add rule inet paths arrive tcp sport @dead drop
add rule inet paths arrive tcp dport @dead drop
"""


class Paths:
    """The namespace, and its dead connections.

    Args:
        namespace: where all happens.
    """

    def __init__(self, namespace: Namespace) -> None:
        self.namespace = namespace

    def rule(self, text: str) -> subprocess.CompletedProcess[str]:
        """Pass a rule to nftables; returns the outcome, whatever it is."""
        return subprocess.run(
            self.namespace.command(["nft", "-f", "-"]),
            input=text,
            text=True,
            capture_output=True,
            timeout=10,
        )

    def kill(self, port: int) -> None:
        """Drop all packets from and to a port from now on."""
        outcome = self.rule(f"add element inet paths dead {{ {port} }}")
        assert outcome.returncode == 0, outcome.stderr

    def socket(self, receive_buffer: int = 0) -> socket.socket:
        """A TCP socket inside; it stays there, wherever this process uses it.

        Args:
            receive_buffer: bytes of the kernel's receive buffer; 0: the system's.
        """
        made: list[socket.socket] = []

        def make() -> None:
            # A thread can change its namespace without the other threads of the process.
            handle = os.open(f"/run/netns/{self.namespace.name}", os.O_RDONLY)
            try:
                if _libc.setns(handle, _CLONE_NEWNET):
                    raise OSError(ctypes.get_errno(), "setns")
                made.append(socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP))
            finally:
                os.close(handle)

        thread = threading.Thread(target=make)
        thread.start()
        thread.join()
        (sock,) = made
        sock.setblocking(False)
        if receive_buffer:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        return sock


@contextlib.contextmanager
def paths() -> Iterator[Paths]:
    """Make a namespace, and remove it at the end; without the permission, skip the test."""
    need_namespaces()
    need("nft")
    namespace = Namespace(f"pyderp-{os.getpid()}-paths{next(_serial)}", "127.0.0.1")
    subprocess.run(["ip", "netns", "add", namespace.name], check=True, timeout=10)
    try:
        subprocess.run(
            ["ip", "-n", namespace.name, "link", "set", "lo", "up"], check=True, timeout=10
        )
        made = Paths(namespace)
        outcome = made.rule(_RULES)
        if outcome.returncode != 0:
            missing("working `nft`", outcome.stderr.strip())
        yield made
    finally:
        subprocess.run(["ip", "netns", "del", namespace.name], check=True, timeout=10)
