"""A STUN client on one UDP socket: asks servers for the address that they see.

Several requests may be under way at once. An answer belongs to the request with its transaction
id. Its source address is not compared: so a server that answers from another address than the
one that was asked can be detected (`StunAnswer.from_asked_address`).
"""

from __future__ import annotations

import asyncio
import os
import secrets
import socket
import struct
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from ipaddress import ip_address
from types import TracebackType
from typing import Final, Self, TypeAlias

from pyderp.addresses import IPAddress, format_address
from pyderp.errors import ConfigError, DialError, FailureReason, RemoteProtocolError
from pyderp.net.tcp import failure_reason
from pyderp.text import counted
from pyderp.wire.stun import TX_ID_LEN, pack_request, parse_response_untrusted

__all__ = ["MAX_ANSWER", "StunAnswer", "StunClient"]

MAX_ANSWER: Final = 1500
"""Bytes; a longer answer is ignored, as a datagram of 64 KiB can hold 16,000 attributes."""
MAX_PENDING: Final = 65_536
"""Requests that wait for an answer; one more makes the client forget the oldest."""
WITHIN: Final = 3.0
RETRANSMIT: Final = 0.5
_BATCH: Final = 64
"""Datagrams that one turn of the loop reads, so that a flood does not keep it busy."""
_ANCILLARY: Final = 64
_RECEIVE_BUFFER: Final = 1024 * 1024
"""Requested size; the kernel may allow less. Answers to thousands of requests come at once."""
_SO_TIMESTAMPNS: Final = 35 if sys.platform == "linux" else None
"""Option by which the kernel adds the time at which a datagram came; `socket` lacks its name."""
_TIMESPEC: Final = struct.Struct("@ll")

_Sockaddr: TypeAlias = tuple[str, int] | tuple[str, int, int, int]


@dataclass(frozen=True, slots=True)
class StunAnswer:
    """An answer of a STUN server, and where it came from."""

    address: IPAddress
    """The source address of the request, as the server saw it."""
    port: int
    asked: tuple[str, int]
    """IP address and port that the request was sent to."""
    source: tuple[str, int]
    """IP address and port that the answer came from."""
    round_trip: float
    """Seconds, from just before the request was sent."""

    @property
    def from_asked_address(self) -> bool:
        """Whether the answer came from the address and port that the request went to.

        Firewalls and NAT with connection tracking drop other answers.
        """
        (asked, asked_port), (source, port) = self.asked, self.source
        return port == asked_port and ip_address(source) == ip_address(asked)


@dataclass(frozen=True, slots=True)
class _Pending:
    asked: tuple[str, int]
    sent: int
    """`perf_counter_ns`."""
    sent_wall: int
    """`time_ns`."""
    on_answer: Callable[[StunAnswer], None]


class StunClient:
    """A UDP socket of one family that asks STUN servers; use it in `async with` or `close` it.

    Args:
        family: AF_INET or AF_INET6. A socket for IPv6 is for IPv6 only.
        host: IP address to bind to; empty: all addresses.
        port: UDP port to bind to; 0: any free one.

    Raises:
        ConfigError: host or port cannot be bound; the text says why.
        RuntimeError: no event loop is running.
    """

    def __init__(
        self, family: socket.AddressFamily = socket.AF_INET, *, host: str = "", port: int = 0
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self._pending: dict[bytes, _Pending] = {}
        self.family = family
        self.ignored = 0
        """Number of datagrams that were no answer to a request of this socket."""
        try:
            self._sock = socket.socket(family, socket.SOCK_DGRAM)
        except OSError as e:
            raise ConfigError(f"no UDP socket for {_family_name(family)}: {_text(e)}") from e
        try:
            self._set_up(host, port)
        except OSError as e:
            self._sock.close()
            where = format_address(host or "any address", port)
            raise ConfigError(f"cannot bind UDP to {where}: {_text(e)}") from e
        self._loop.add_reader(self._sock, self._on_readable)

    def _set_up(self, host: str, port: int) -> None:
        sock = self._sock
        sock.setblocking(False)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _RECEIVE_BUFFER)
        if self.family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        if _SO_TIMESTAMPNS is not None:
            sock.setsockopt(socket.SOL_SOCKET, _SO_TIMESTAMPNS, 1)
        sock.bind(_sockaddr(self.family, host or _any(self.family), port))

    @property
    def local_address(self) -> tuple[str, int]:
        """IP address and port that the socket is bound to."""
        host, port, *_ = self._sock.getsockname()
        return host, port

    def send(self, host: str, port: int, on_answer: Callable[[StunAnswer], None]) -> None:
        """Send one request, with a transaction id of its own.

        Args:
            host: an IP address of the socket's family, which may have a `%zone`.
            on_answer: called at most once, while the socket is open.

        Raises:
            OSError: the kernel did not take it. On Linux EPERM, by which a firewall refuses, is
                not an error: the request counts as lost.
        """
        address = _sockaddr(self.family, host, port)
        tx_id = secrets.token_bytes(TX_ID_LEN)
        if len(self._pending) >= MAX_PENDING:
            del self._pending[next(iter(self._pending))]
        packet = pack_request(tx_id)
        self._pending[tx_id] = _Pending(
            (host, port), time.perf_counter_ns(), time.time_ns(), on_answer
        )
        try:
            self._sock.sendto(packet, address)
        except PermissionError:
            if sys.platform != "linux":
                del self._pending[tx_id]
                raise
        except OSError:
            del self._pending[tx_id]
            raise

    async def ask(
        self, host: str, port: int, *, within: float = WITHIN, retransmit: float = RETRANSMIT
    ) -> StunAnswer:
        """Send requests until an answer comes; return the first one.

        Args:
            host: an IP address of the socket's family.
            within: seconds for all requests together.
            retransmit: seconds between two requests, at least 0.01. If it is more than `within`,
                one request is sent.

        Raises:
            DialError: no answer in time (`TIMEOUT`), or the kernel could not send.
        """
        answered: asyncio.Future[StunAnswer] = self._loop.create_future()

        def on_answer(answer: StunAnswer) -> None:
            if not answered.done():
                answered.set_result(answer)

        where = format_address(host, port)
        sent = 0
        try:
            async with asyncio.timeout(within):
                while not answered.done():
                    self.send(host, port, on_answer)
                    sent += 1
                    await asyncio.wait((answered,), timeout=max(retransmit, 0.01))
        except TimeoutError:
            raise DialError(
                f"no STUN answer from {where} within {within:g} s "
                f"({counted(sent, 'request')} sent)",
                reason=FailureReason.TIMEOUT,
            ) from None
        except OSError as e:
            text = f"cannot send a STUN request to {where}: {_text(e)}"
            raise DialError(text, reason=failure_reason(e)) from e
        finally:
            self._forget(on_answer)
        return answered.result()

    def _forget(self, on_answer: Callable[[StunAnswer], None]) -> None:
        mine = [tx for tx, pending in self._pending.items() if pending.on_answer is on_answer]
        for tx_id in mine:
            del self._pending[tx_id]

    def forget(self) -> None:
        """Forget all requests; later answers to them are ignored."""
        self._pending.clear()

    def close(self) -> None:
        """Close the socket; no answer is reported any more. May be called again."""
        self.forget()
        if self._sock.fileno() >= 0:
            self._loop.remove_reader(self._sock)
            self._sock.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def _on_readable(self) -> None:
        for _ in range(_BATCH):
            if self._sock.fileno() < 0:
                return  # closed by a callback
            try:
                data, ancillary, _, source = self._sock.recvmsg(MAX_ANSWER + 1, _ANCILLARY)
            except OSError:
                return  # no more datagrams, or an ICMP error that belongs to one request
            now = time.perf_counter_ns()
            self._on_datagram_untrusted(data, source[:2], now, _kernel_time(ancillary))

    def _on_datagram_untrusted(
        self, data: bytes, source: tuple[str, int], now: int, came_wall: int | None
    ) -> None:
        try:
            if len(data) > MAX_ANSWER:
                raise RemoteProtocolError("STUN answer is too long")
            found = parse_response_untrusted(data)
        except RemoteProtocolError:
            self.ignored += 1
            return
        pending = self._pending.pop(found.tx_id, None)
        if pending is None:
            self.ignored += 1
            return
        elapsed = now - pending.sent
        # The kernel's time leaves out how long the datagram waited for this process. But it is of
        # the wall clock: if that was set meanwhile, the result is negative or too large.
        if came_wall is not None and 0 < came_wall - pending.sent_wall < elapsed:
            elapsed = came_wall - pending.sent_wall
        answer = StunAnswer(found.address, found.port, pending.asked, source, elapsed / 1e9)
        pending.on_answer(answer)


def _kernel_time(ancillary: list[tuple[int, int, bytes]]) -> int | None:
    for level, kind, data in ancillary:
        if level == socket.SOL_SOCKET and kind == _SO_TIMESTAMPNS and len(data) == _TIMESPEC.size:
            seconds, nanoseconds = _TIMESPEC.unpack(data)
            return int(seconds) * 1_000_000_000 + int(nanoseconds)
    return None


def _sockaddr(family: socket.AddressFamily, host: str, port: int) -> _Sockaddr:
    if family == socket.AF_INET:
        return host, port
    bare, _, zone = host.partition("%")
    if not zone:
        return bare, port, 0, 0
    return bare, port, 0, int(zone) if zone.isdigit() else socket.if_nametoindex(zone)


def _any(family: socket.AddressFamily) -> str:
    return "0.0.0.0" if family == socket.AF_INET else "::"  # noqa: S104 (for answers to requests)


def _family_name(family: socket.AddressFamily) -> str:
    return "IPv4" if family == socket.AF_INET else "IPv6"


def _text(error: OSError) -> str:
    return os.strerror(error.errno) if error.errno else str(error)
