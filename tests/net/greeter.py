"""Send each client the address it connects from; print the port first. A script."""

from __future__ import annotations

import socket
import socketserver
import sys


class Greeter(socketserver.BaseRequestHandler):
    """One connection."""

    request: socket.socket

    def handle(self) -> None:
        """Send the client's IP address, and wait for the end."""
        self.request.sendall(self.client_address[0].encode())
        self.request.recv(1)


if __name__ == "__main__":
    with socketserver.ThreadingTCPServer((sys.argv[1], 0), Greeter) as server:
        sys.stdout.write(f"port {server.server_address[1]}\n")
        sys.stdout.flush()
        server.serve_forever()
