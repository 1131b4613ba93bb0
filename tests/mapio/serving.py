"""A web server that answers as a test says."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

__all__ = ["Served", "raw_server", "serving"]


@dataclass
class Served:
    """The server's answer, and the requests it got."""

    url: str = ""
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes = b""
    requests: list[dict[str, str]] = field(default_factory=list)
    """The headers of each request, names in lower case; and `path`."""

    def answer(self, handler: BaseHTTPRequestHandler) -> None:
        """Answer as an ordinary server: 304 to a client that has this version."""
        status = self.status
        etag = self.headers.get("ETag")
        if etag and handler.headers.get("If-None-Match") == etag:
            status = 304
        handler.send_response(status)
        for name, value in self.headers.items():
            handler.send_header(name, value)
        body = b"" if status == 304 else self.body
        handler.send_header("Content-Length", str(len(body)))
        handler.end_headers()
        handler.wfile.write(body)


@contextlib.contextmanager
def serving(**answer: Any) -> Iterator[Served]:
    """A server on a port of its own; `url` ends in `/map`."""
    served = Served(**answer)

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            headers = {name.lower(): value for name, value in self.headers.items()}
            served.requests.append({**headers, "path": self.path})
            served.answer(self)

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        served.url = f"http://127.0.0.1:{server.server_address[1]}/map"
        try:
            yield served
        finally:
            server.shutdown()
            thread.join()


@contextlib.contextmanager
def raw_server(talk: Callable[[socket.socket], None]) -> Iterator[str]:
    """A server that accepts one connection and calls `talk` with it; yields its URL."""
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def run() -> None:
            with contextlib.suppress(OSError), listener.accept()[0] as connection:
                connection.settimeout(60)
                talk(connection)

        thread = threading.Thread(target=run, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{listener.getsockname()[1]}/map"
        with contextlib.suppress(OSError):
            listener.shutdown(socket.SHUT_RDWR)
        thread.join(60)
