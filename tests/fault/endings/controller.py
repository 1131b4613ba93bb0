"""A server that answers each HTTP request as a test says, in threads, on blocking sockets."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Final, Literal, TypeAlias

from tests.admission.fakes import STALL

Reply: TypeAlias = "Sequence[bytes | Literal['stall', 'close']]"
_BOUND: Final = 20.0


class Controller:
    """Listens on loopback, or on `path`."""

    def __init__(self, reply: Reply, path: Path | None = None) -> None:
        self._reply = reply
        if path is None:
            self._listening = socket.create_server(("127.0.0.1", 0))
            self.url = f"http://127.0.0.1:{self._listening.getsockname()[1]}/"
        else:
            self._listening = socket.socket(socket.AF_UNIX)
            self._listening.bind(str(path))
            self._listening.listen()
        self._threads = [threading.Thread(target=self._accept, daemon=True)]
        self._threads[0].start()

    def __enter__(self) -> Controller:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def stop(self) -> None:
        """Accept no further connection."""
        with contextlib.suppress(OSError):
            self._listening.shutdown(socket.SHUT_RDWR)

    @property
    def over(self) -> bool:
        """Whether all threads have ended; those of connections do when the client closes."""
        return not any(thread.is_alive() for thread in self._threads)

    def _accept(self) -> None:
        with self._listening:
            while True:
                try:
                    sock, _ = self._listening.accept()
                except OSError:
                    return
                sock.settimeout(_BOUND)
                thread = threading.Thread(target=self._serve, args=(sock,), daemon=True)
                self._threads.append(thread)
                thread.start()

    def _serve(self, sock: socket.socket) -> None:
        with sock, contextlib.suppress(OSError):
            while self._exchange(sock):
                pass

    def _exchange(self, sock: socket.socket) -> bool:
        data = b""
        while b"\r\n\r\n" not in data:
            if not (more := sock.recv(4096)):
                return False
            data += more
        head, _, body = data.lower().partition(b"\r\n\r\n")
        _, found, length = head.partition(b"content-length: ")
        size = int(length.partition(b"\r\n")[0]) if found else 0
        while len(body) < size:
            body += sock.recv(4096)
        for part in self._reply:
            if isinstance(part, bytes):
                sock.sendall(part)
            elif part == STALL:
                while sock.recv(4096):
                    pass
                return False
            else:
                return False
        return True
