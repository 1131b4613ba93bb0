"""A relay, behind a proxy if the transport has one, that reaches a stage and then does one thing.

It runs in a thread, on blocking sockets, so that none of its objects is on the event loop whose
leftovers are counted.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import os
import socket
import ssl
import struct
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from websockets.frames import Frame, Opcode

from pyderp.keys import NodePrivate
from pyderp.wire.frames import (
    MAX_CLIENT_FRAME,
    FrameType,
    frame_header,
    pack_received_packet,
    pack_restarting,
    pack_server_key,
)
from pyderp.wire.upgrade import switching_protocols
from tests.net.certificates import META, ROOT, Identity, certificate

RELAY: Final = NodePrivate.generate()
STAGES: Final = ("tcp", "proxy", "tls", "http", "greeting", "login", "idle")
"""The stages of the peer, in order."""
_BOUND: Final = 20.0
_RESET: Final = struct.pack("ii", 1, 0)
_GARBAGE: Final = b"\xfe\xff\xff\xff" * 100 + b"\r\n\r\n"
_ALERT: Final = b"\x15\x03\x03\x00\x02\x02\x28"
"""A fatal alert of TLS: handshake_failure."""


@dataclass(frozen=True)
class Way:
    """How a client reaches the relay."""

    name: str
    tls: bool = False
    websocket: bool = False
    proxy: str = ""
    """`http`, `https` (TLS inside TLS) or `socks`."""
    fast: bool = False
    """The certificate contains the relay's key, so the login leaves at once."""

    def stages(self) -> list[str]:
        without = set() if self.proxy else {"proxy"}
        without |= set() if self.tls else {"tls"}
        without |= {"greeting"} if self.fast else set()
        return [stage for stage in STAGES if stage not in without]


WAYS: Final = (
    Way("plain"),
    Way("TLS", tls=True),
    Way("fast", tls=True, fast=True),
    Way("ws", websocket=True),
    Way("wss", tls=True, websocket=True),
    Way("HTTP proxy", tls=True, proxy="http"),
    Way("HTTPS proxy", tls=True, proxy="https"),
    Way("SOCKS", proxy="socks"),
)


class Identities:
    """Certificates of the peer, made once."""

    def __init__(self) -> None:
        own: Identity = certificate("127.0.0.1", issuer=ROOT)
        self.plain = own.server()
        self.fast = own.followed_by(META).server()


class Peer:
    """A listener; each connection goes as far as `stage`, and then `act` is called.

    Args:
        act: gets the socket; it is closed afterwards.
    """

    def __init__(
        self,
        way: Way,
        stage: str,
        act: Callable[[Peer], None],
        *,
        contexts: Identities,
        reached: Callable[[], object],
    ) -> None:
        self.way = way
        self._stage = stage
        self._act = act
        self._contexts = contexts
        self._reached = reached
        self._listening = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listening.getsockname()[1]
        self.sock: socket.socket
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    @property
    def over(self) -> bool:
        """Whether the thread has ended."""
        return not self._thread.is_alive()

    def stop(self) -> None:
        """Accept no further connection."""
        with contextlib.suppress(OSError):
            self._listening.shutdown(socket.SHUT_RDWR)

    def _serve(self) -> None:
        with self._listening:
            while True:
                try:
                    self.sock, _ = self._listening.accept()
                except OSError:
                    return
                self.sock.settimeout(_BOUND)
                with contextlib.suppress(OSError):
                    if self._advance():
                        self._reached()
                        self._act(self)
                self.sock.close()

    # Stages

    def _advance(self) -> bool:
        for stage in self.way.stages():
            getattr(self, f"_to_{stage}")()
            if stage == self._stage:
                return True
            self._after(stage)
        return False

    def _to_tcp(self) -> None:
        pass

    def _to_proxy(self) -> None:
        if self.way.proxy == "https":
            self._secure()
        if self.way.proxy == "socks":
            self.sock.recv(100)
        else:
            self._head()

    def _to_tls(self) -> None:
        # In a tunnel through TLS, a read would take the bytes away.
        if not isinstance(self.sock, ssl.SSLSocket):
            self.sock.recv(1, socket.MSG_PEEK)

    def _to_http(self) -> None:
        self.head = self._head()

    def _to_greeting(self) -> None:
        pass

    def _to_login(self) -> None:
        self.sock.recv(100)

    def _to_idle(self) -> None:
        pass

    def _after(self, stage: str) -> None:
        if stage == "proxy":
            self._let_through()
        elif stage == "tls":
            self._secure()
        elif stage == "http" and not self.way.fast:
            self.sock.sendall(self._upgraded())
        elif stage == "greeting":
            self.say(pack_server_key(RELAY.public))

    def _let_through(self) -> None:
        if self.way.proxy != "socks":
            self.sock.sendall(b"HTTP/1.1 200 OK\r\n\r\n")
            return
        self.sock.sendall(b"\x05\x00")
        self.sock.recv(300)
        self.sock.sendall(b"\x05\x00\x00\x01" + bytes(6))

    def _secure(self) -> None:
        context = self._contexts.fast if self.way.fast else self._contexts.plain
        if isinstance(self.sock, ssl.SSLSocket):
            self.sock = _Inner(self.sock, context)
        else:
            self.sock = context.wrap_socket(self.sock, server_side=True)

    def _head(self) -> bytes:
        data = b""
        while b"\r\n\r\n" not in data:
            if not (more := self.sock.recv(1 if self.way.fast else 4096)):
                raise ConnectionError
            data += more
        return data

    def _upgraded(self) -> bytes:
        if not self.way.websocket:
            return switching_protocols(RELAY.public)
        [key] = [
            line.partition(b": ")[2]
            for line in self.head.split(b"\r\n")
            if line.lower().startswith(b"sec-websocket-key")
        ]
        salted = key + b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
        accept = base64.b64encode(hashlib.sha1(salted).digest())
        return (
            b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            b"Sec-WebSocket-Accept: " + accept + b"\r\nSec-WebSocket-Protocol: derp\r\n\r\n"
        )

    # Helpers for the end

    @property
    def in_stream(self) -> bool:
        """Whether DERP is spoken."""
        return STAGES.index(self._stage) >= STAGES.index("greeting")

    def say(self, data: bytes) -> None:
        """Send bytes of the DERP stream."""
        if self.way.websocket:
            for at in range(0, len(data), 32768):
                self.frame(Opcode.BINARY, data[at : at + 32768])
        else:
            self.sock.sendall(data)

    def frame(self, opcode: Opcode, data: bytes) -> None:
        self.sock.sendall(Frame(opcode, data).serialize(mask=False))

    def wait(self) -> None:
        """Wait until the client has closed."""
        with contextlib.suppress(OSError):
            while self.sock.recv(1 << 16):
                pass

    def bottom(self) -> int:
        """The descriptor below all TLS."""
        return self.sock.fileno()


class _Inner(socket.socket):
    """TLS inside TLS; as much of a socket as is needed here."""

    def __init__(self, outer: ssl.SSLSocket, context: ssl.SSLContext) -> None:
        super().__init__(fileno=os.dup(outer.fileno()))
        self._outer = outer
        self._in, self._out = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._tls = context.wrap_bio(self._in, self._out, server_side=True)
        try:
            self._run(self._tls.do_handshake)
        except OSError:
            self.close()
            raise

    def _run(self, do: Callable[[], object]) -> object:
        while True:
            try:
                result = do()
            except ssl.SSLWantReadError:
                self._flush()
                data = self._outer.recv(1 << 16)
                if data:
                    self._in.write(data)
                else:
                    self._in.write_eof()
            else:
                self._flush()
                return result

    def _flush(self) -> None:
        if self._out.pending:
            self._outer.sendall(self._out.read())

    def recv(self, size: int, flags: int = 0) -> bytes:
        data = self._run(lambda: self._tls.read(size))
        assert isinstance(data, bytes)
        return data

    def sendall(self, data: object, flags: int = 0) -> None:
        assert isinstance(data, bytes)
        self._run(lambda: self._tls.write(data))

    def shutdown(self, how: int) -> None:
        self._outer.shutdown(how)

    def close(self) -> None:
        self._outer.close()
        super().close()


# Ends by the peer


def hang_up(peer: Peer) -> None:
    peer.sock.shutdown(socket.SHUT_WR)
    peer.wait()


def reset(peer: Peer) -> None:
    peer.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)


def garbage(peer: Peer) -> None:
    peer.sock.sendall(_GARBAGE)
    peer.wait()


def half(peer: Peer) -> None:
    """Send the start of valid bytes, and close."""
    peer.say(pack_server_key(RELAY.public)[:20] if peer.in_stream else b"HTTP/1.1 101 Swi")
    hang_up(peer)


def garbage_below(peer: Peer) -> None:
    """Send bytes that are no TLS."""
    os.write(peer.bottom(), _GARBAGE)
    peer.wait()


def alert(peer: Peer) -> None:
    os.write(peer.bottom(), _ALERT)
    peer.wait()


def refuse(peer: Peer) -> None:
    """Break the rules of DERP, or refuse as an HTTP server."""
    if peer.in_stream:
        peer.say(frame_header(FrameType.RECV_PACKET, MAX_CLIENT_FRAME + 1))
    else:
        peer.sock.sendall(b"HTTP/1.1 403 Forbidden\r\nContent-Length: 2\r\n\r\nno")
    peer.wait()


def refuse_slowly(peer: Peer) -> None:
    """Refuse without ever sending the body."""
    peer.sock.sendall(b"HTTP/1.1 403 Forbidden\r\nContent-Length: 200\r\n\r\nno")
    hang_up(peer)


def packets(peer: Peer) -> None:
    """Send some packets and then an invalid frame."""
    peer.say(pack_received_packet(RELAY.public, b"x" * 1000) * 5)
    refuse(peer)


def flood(peer: Peer) -> None:
    """Send more than a client keeps that does not receive."""
    with contextlib.suppress(OSError):
        for _ in range(200):
            peer.say(pack_received_packet(RELAY.public, b"x" * 30_000))
    peer.wait()


def restart(peer: Peer) -> None:
    peer.say(pack_restarting(0.001, 0.001))
    hang_up(peer)


def say_goodbye(peer: Peer) -> None:
    """Close in order in the layer above TCP."""
    if peer.way.websocket and peer.in_stream:
        peer.frame(Opcode.CLOSE, b"\x03\xe8")
    elif isinstance(peer.sock, ssl.SSLSocket):
        with contextlib.suppress(OSError, ValueError):
            peer.sock.unwrap()
    else:
        peer.sock.shutdown(socket.SHUT_WR)
    peer.wait()


def say_it_failed(peer: Peer) -> None:
    peer.frame(Opcode.CLOSE, b"\x03\xf3broken")
    peer.wait()


def say_text(peer: Peer) -> None:
    peer.frame(Opcode.TEXT, b"hello")
    peer.wait()


def stay(peer: Peer) -> None:
    """Read all bytes, and send nothing."""
    peer.wait()


def stall(peer: Peer) -> None:
    """Read nothing until the client has closed."""
    peer.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    gone = threading.Event()
    stalled.add(gone)
    gone.wait(_BOUND)


stalled: Final[set[threading.Event]] = set()


def actions(way: Way, stage: str) -> list[Callable[[Peer], None]]:
    """All ways in which the peer may end it at a stage."""
    found: list[Callable[[Peer], None]] = [hang_up, reset, garbage]
    in_stream = STAGES.index(stage) >= STAGES.index("greeting")
    in_tls = way.proxy == "https" or (way.tls and STAGES.index(stage) > STAGES.index("tls"))
    if in_stream or stage in ("proxy", "http"):
        found += [half, refuse]
    if stage in ("proxy", "http"):
        found += [refuse_slowly]
    if in_tls and stage not in ("tcp", "tls"):
        found += [garbage_below, say_goodbye]
    if stage == "tls":
        found += [alert]
    if way.websocket and in_stream:
        found += [say_it_failed, say_text] + ([] if in_tls else [say_goodbye])
    if stage == "idle":
        found += [packets, restart]
    return found
