"""Send every byte of every TCP connection back; print the port on the first line.

Run as a script, inside a node's namespace: what arrives for the node's Tailscale address is
handed to its loopback address by a tailscaled without a tun device.
"""

from __future__ import annotations

import socketserver
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import socket


class Echo(socketserver.BaseRequestHandler):
    """One connection."""

    request: socket.socket

    def handle(self) -> None:
        """Send back until the other side ends."""
        while chunk := self.request.recv(65536):
            self.request.sendall(chunk)


if __name__ == "__main__":
    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), Echo) as server:
        sys.stdout.write(f"port {server.server_address[1]}\n")
        sys.stdout.flush()
        server.serve_forever()
