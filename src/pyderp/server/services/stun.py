"""The STUN server: it answers a client with the address that the client's packet came from."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from pyderp.addresses import format_address
from pyderp.errors import ConfigError, RemoteProtocolError
from pyderp.server.conn.sockets import explained, resolve
from pyderp.server.services.pktinfo import ANCILLARY_SIZE, AnswerSources, enable_pktinfo
from pyderp.wire.stun import RequestReader, pack_response

__all__ = ["StunCounters", "StunServer", "stun_sockets"]

log = logging.getLogger("pyderp.stun")

BATCH: Final = 32
"""Most packets read from a socket in one turn of the loop, in about 0.2 ms. One packet a turn would
cost a sixth more CPU under load (bench/STUN.md)."""
_PAUSE: Final = 1.0
"""Seconds for which a socket is not read after a read error."""
_RECEIVE_BUFFER: Final = 1024 * 1024
"""Bytes requested of the kernel, which may grant less. Its default, 208 KiB, holds 270 requests."""
_V4_ANSWER_LEN: Final = 32
_inet_pton = socket.inet_pton
_FAMILIES: Final = (socket.AF_INET, socket.AF_INET6)


@dataclass(slots=True)
class StunCounters:
    """A STUN server's counters; the names are labels of Go's metrics."""

    success: int = 0
    """Requests answered."""
    not_stun: int = 0
    """Packets that were ignored: no STUN request of a Tailscale client."""
    read_error: int = 0
    write_error: int = 0
    """Answers that the kernel refused to send."""
    ipv4: int = 0
    """Valid requests by IPv4, whether or not the answer was sent."""
    ipv6: int = 0
    no_local_addr: int = 0
    """Valid requests for which the kernel failed to name the address they came to. The answer left
    from an address of the kernel's choice."""


def stun_sockets(host: str, port: int, *, reuse_port: bool = False) -> list[socket.socket]:
    """Return UDP sockets for a `StunServer`.

    Args:
        host: an address, or empty or `::` for all addresses of both families.
        port: 0: any free port.
        reuse_port: another process may listen on the same port, to take over.

    Raises:
        ConfigError: the address cannot be used; the text says why and what to do.
    """
    where = f"for STUN on UDP {format_address(host, port)}"
    with (
        explained(where, "stop what uses it, or choose another STUN port or none"),
        contextlib.ExitStack() as undo,
    ):
        family, address, dual = resolve(host, port, socket.SOCK_DGRAM)
        sock = socket.socket(family, socket.SOCK_DGRAM)
        undo.callback(sock.close)
        if family == socket.AF_INET6:
            # One socket for both families. Two would make answers by IPv4 5 % cheaper, but could
            # not bind the same free port in one step.
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, not dual)
        if reuse_port:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _RECEIVE_BUFFER)
        sock.bind(address)
        undo.pop_all()
    return [sock]


class StunServer:
    """Answers valid STUN requests on UDP sockets, and nothing else (as Go's `stunserver`).

    An answer leaves from the address that the request came to. Work in a turn of the loop is
    bounded. Network errors are counted and do not end the server.

    Args:
        sockets: bound UDP sockets, from `stun_sockets` or inherited; `aclose` closes them.

    Raises:
        ConfigError: a socket is not for UDP.
    """

    def __init__(self, sockets: Sequence[socket.socket]) -> None:
        for sock in sockets:
            if sock.type != socket.SOCK_DGRAM or sock.family not in _FAMILIES:
                raise ConfigError(
                    f"a socket for STUN is {sock.family.name} {sock.type.name}; want UDP"
                )
        self.counters = StunCounters()
        self._sockets = list(sockets)
        self._requests = RequestReader()
        self._sources = AnswerSources()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._with_pktinfo: set[socket.socket] = set()
        """Sockets for all addresses, on which the kernel names each request's destination."""
        self._resting: dict[socket.socket, asyncio.TimerHandle] = {}
        self._read_error = ""
        self._logged: set[tuple[str, int | None]] = set()

    @property
    def addresses(self) -> list[tuple[str, int]]:
        """IP address and port of each socket."""
        return [sock.getsockname()[:2] for sock in self._sockets]

    @property
    def trouble(self) -> str:
        """Why a socket is not read from at the moment; empty: all sockets are read from."""
        return self._read_error if self._resting else ""

    def start(self) -> None:
        """Serve on the running loop."""
        self._loop = asyncio.get_running_loop()
        for sock, (host, port) in zip(self._sockets, self.addresses, strict=True):
            sock.setblocking(False)
            self._learn_local_addresses(sock)
            self._read(sock)
            log.info("STUN server listening on %s", format_address(host, port))

    def _learn_local_addresses(self, sock: socket.socket) -> None:
        try:
            if enable_pktinfo(sock):
                self._with_pktinfo.add(sock)
        except OSError as e:
            log.warning(
                "STUN answers leave from an address of the kernel's choice, which may differ from "
                "the one the request came to, because the kernel does not name that: %s",
                e,
            )

    async def aclose(self) -> None:
        """Stop and close the sockets; packets in their buffers are lost."""
        for timer in self._resting.values():
            timer.cancel()
        self._resting.clear()
        for sock in self._sockets:
            if self._loop is not None and sock.fileno() >= 0:
                self._loop.remove_reader(sock)
            sock.close()
        self._sockets.clear()
        self._with_pktinfo.clear()

    def _read(self, sock: socket.socket) -> None:
        assert self._loop is not None
        reader = self._on_readable_any if sock in self._with_pktinfo else self._on_readable
        # `sock.family` is passed on, because reading it takes as long as packing an answer.
        self._loop.add_reader(sock, reader, sock, sock.family)

    def _on_readable(self, sock: socket.socket, family: int) -> None:
        buffer, counters = self._requests.buffer, self.counters
        for _ in range(BATCH):
            try:
                size, address = sock.recvfrom_into(buffer)
            except BlockingIOError:
                return
            except OSError as e:
                self._on_read_error(sock, e)
                return
            response = self._response(size, family, address)
            if response is None:
                continue
            try:
                sock.sendto(response, address)
            except OSError as e:
                self._on_write_error(e)
            else:
                counters.success += 1

    def _on_readable_any(self, sock: socket.socket, family: int) -> None:
        """Do as `_on_readable` on a socket for all addresses, at a quarter more CPU an answer."""
        buffers, counters, source_of = (self._requests.buffer,), self.counters, self._sources.of
        for _ in range(BATCH):
            try:
                size, ancillary, _, address = sock.recvmsg_into(buffers, ANCILLARY_SIZE)
            except BlockingIOError:
                return
            except OSError as e:
                self._on_read_error(sock, e)
                return
            response = self._response(size, family, address)
            if response is None:
                continue
            source = source_of(ancillary)
            if source is None:
                counters.no_local_addr += 1
            try:
                sock.sendmsg((response,), source or (), 0, address)
            except OSError as e:
                self._on_write_error(e)
            else:
                counters.success += 1

    def _response(self, size: int, family: int, address: tuple[str, int]) -> bytes | None:
        """Return the answer to the packet in the buffer; `None`: it gets no answer."""
        counters = self.counters
        try:
            tx_id = self._requests.read_untrusted(size)
        except RemoteProtocolError:
            counters.not_stun += 1
            return None
        response = pack_response(tx_id, _inet_pton(family, address[0]), address[1])
        if len(response) == _V4_ANSWER_LEN:
            counters.ipv4 += 1
        else:
            counters.ipv6 += 1
        return response

    def _on_write_error(self, error: OSError) -> None:
        # A full buffer, a firewall, no route, a forged source port 0. The client asks again.
        self.counters.write_error += 1
        self._log_once("write", error)

    def _on_read_error(self, sock: socket.socket, error: OSError) -> None:
        # A pause, because the socket may stay readable, and reading on would be a busy loop.
        assert self._loop is not None
        self.counters.read_error += 1
        self._read_error = f"STUN rests for {_PAUSE:g} s after a read error: {error}"
        self._log_once("read", error)
        self._loop.remove_reader(sock)
        self._resting[sock] = self._loop.call_later(_PAUSE, self._read_again, sock)

    def _read_again(self, sock: socket.socket) -> None:
        del self._resting[sock]
        self._read(sock)

    def _log_once(self, what: str, error: OSError) -> None:
        # Once, because any sender can cause some of these errors; the counters count them.
        if (what, error.errno) not in self._logged:
            self._logged.add((what, error.errno))
            log.warning("STUN %s error: %s (logged once; counted from now on)", what, error)
