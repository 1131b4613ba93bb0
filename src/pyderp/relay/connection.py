"""One logged-in connection as the router sees it; why and how connections end."""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass, field
from enum import Enum
from typing import Protocol

from pyderp.addresses import as_16_bytes, parse_ip
from pyderp.defaults import NOT_HERE_BURST
from pyderp.keys import NodePublic
from pyderp.relay.backlog import Backlog
from pyderp.wire.frames import PeerPresentFlags, pack_peer_present

__all__ = ["Connection", "EndReason", "How", "Sink"]


class How(Enum):
    """How a connection ends: what happens to written bytes that the kernel has yet to take."""

    NOW = "now"
    """They are dropped and counted as lost. Bytes that the kernel has may still arrive."""
    GRACEFUL = "graceful"
    """They are written first, then the closing messages of a websocket and of TLS. Then the relay
    closes its half and discards what the client still sends: with unread bytes the kernel
    would reset the connection, and throw away what it had not delivered."""
    LOST = "lost"
    """The connection is gone already, and they are lost with it."""


class EndReason(Enum):
    """Why a connection ended; the values are labels of `pyderp_connections_ended_total`."""

    CLIENT_CLOSED = "client_closed"
    """The client closed it."""
    ANSWERED = "answered"
    """An HTTP connection is over, or was idle for too long."""
    STOPPED = "stopped"
    """The relay stops."""
    PROTOCOL_ERROR = "protocol_error"
    """The client broke a protocol, TLS and HTTP included."""
    NO_LOGIN = "no_login"
    """The client did not log in, or send its next request, in time."""
    REFUSED = "refused"
    """Admission refused the client."""
    DISALLOWED_APP_NAME = "disallowed_app_name"
    """The client gave its program one of the names of `--disallow-app-names`."""
    REVOKED = "revoked"
    """Admission no longer allows the client."""
    MESH_PEER = "mesh_peer"
    """A relay of the mesh asked for it (ClosePeer)."""
    WATCHER_BEHIND = "watcher_behind"
    """Too many presence changes waited for a watcher."""
    WRITE_TIMEOUT = "write_timeout"
    """The client read nothing for too long while bytes waited for it."""
    DEAD_PATH = "dead_path"
    """The client's kernel acknowledged nothing for too long."""
    RESET = "reset"
    """The client's kernel reset the connection."""
    TIMED_OUT = "timed_out"
    """This host's kernel gave up, for example after unanswered keep-alive probes."""
    LOST = "lost"
    """This host's kernel ended the connection for another cause."""
    FAILED = "failed"
    """The relay raised an unexpected error: a bug, logged with its traceback."""


class Sink(Protocol):
    """Where the router writes a connection's frames: a transport, or a list in a test."""

    def send(self, chunks: list[bytes]) -> bool:
        """Write whole frames. The caller may reuse the list afterwards.

        May call `Router.pause` for this connection when the kernel does not take all.

        Returns:
            False if nothing was written because the connection is about to end.
        """

    def unsent_size(self) -> int:
        """Bytes at the end of what `send` last wrote that the kernel did not take.

        Bytes of frames only: those that TLS or a websocket adds are not counted.
        """

    def end(self, reason: EndReason, how: How, detail: str = "") -> None:
        """Unregister the connection and close it.

        Args:
            detail: for the log; empty: the end is not logged.
        """


@dataclass(slots=True, eq=False, repr=False)
class Connection:
    """The state of one connection between login and end.

    A relay holds tens of thousands of idle ones, so an idle one must stay small: see `bench/`.
    """

    key: bytes
    """The client's public key, 32 raw bytes, because comparing bytes is what routing does."""
    sink: Sink
    """Where its frames go."""
    _: KW_ONLY
    number: int = 0
    """Its number among all accepted connections, for logs."""
    peer: tuple[str, int] = ("", 0)
    """Remote address and port, un-mapped; an empty address and port 0: unknown."""
    connected_at: float = 0.0
    """Time of login, in seconds of the router's clock."""
    can_mesh: bool = False
    is_prober: bool = False
    not_ideal: bool = False
    app_name: str = ""
    """The name of the client's program, which the login has checked."""
    version: int = 0
    """The protocol version that the client named when it logged in."""
    takes_health: bool = False
    """Whether the client takes Health and Restarting; others may end on an unknown frame."""

    preferred: bool = False
    is_dup: bool = False
    """Another connection has the same key."""
    has_left: bool = False
    """It is no longer registered: further frames from it or for it are discarded."""
    # Packets that the client sent, for peers here or forwarded, and packets written to it.
    # The bytes are those of the packets alone, without frame headers and keys.
    packets_received: int = 0
    bytes_received: int = 0
    packets_sent: int = 0
    bytes_sent: int = 0
    # Runs of whole frames that `flush` writes at the end of this turn of the loop.
    out: list[bytes] = field(default_factory=list)
    out_bytes: int = 0
    out_packets: int = 0
    dirty: bool = False
    backlog: Backlog | None = None
    """Frames that wait because the socket is full; `None` nearly always."""
    paused: bool = False
    pong_pending: bool = False
    skip: int = 0
    """Bytes of an unknown frame that are still to be discarded."""
    sent_to: set[Connection] | None = None
    """Connections that get a PeerGone when this key leaves."""
    received_from: set[bytes] | None = None
    """Keys for which this connection gets a PeerGone when they leave."""
    not_here_tokens: float = float(NOT_HERE_BURST)
    not_here_at: float = 0.0
    _present: bytes | None = None

    @property
    def public(self) -> NodePublic:
        """The client's public key as an object."""
        return NodePublic(self.key)

    @property
    def flags(self) -> PeerPresentFlags:
        """The flags of PeerPresent; REGULAR only if no other flag is set."""
        flags = PeerPresentFlags(0)
        if self.can_mesh:
            flags |= PeerPresentFlags.MESH_PEER
        if self.is_prober:
            flags |= PeerPresentFlags.PROBER
        if self.not_ideal:
            flags |= PeerPresentFlags.NOT_IDEAL
        return flags or PeerPresentFlags.REGULAR

    def present_frame(self) -> bytes:
        """Return the PeerPresent frame about this connection; made once for all watchers."""
        if self._present is None:
            host, port = self.peer
            address = parse_ip(host)
            ip16 = bytes(16) if address is None else as_16_bytes(address)
            self._present = pack_peer_present(self.public, ip16, port, self.flags, self.app_name)
        return self._present

    def __repr__(self) -> str:
        return f"<Connection {self.number} {self.public.short()} {self.peer[0]}:{self.peer[1]}>"
