"""One logged-in connection, as the relay's core sees it, and why and how connections end."""

from __future__ import annotations

from enum import Enum
from typing import Protocol

from pyderp.addresses import as_16_bytes, parse_ip
from pyderp.defaults import NOT_HERE_BURST
from pyderp.keys import NodePublic
from pyderp.relay.backlog import Backlog
from pyderp.wire.frames import PeerPresentFlags, pack_peer_present

__all__ = ["Connection", "EndReason", "How", "Sink"]


class How(Enum):
    """What becomes of the bytes that were written and that the kernel did not take yet."""

    NOW = "now"
    """They are lost, and counted as lost. What the kernel has may still arrive."""
    GRACEFUL = "graceful"
    """They are written first, then the last words of TLS and of a websocket. Then the relay
    closes its half and discards what the client still sends: with unread bytes the kernel
    would reset the connection, and throw away what it had not delivered."""
    LOST = "lost"
    """The connection is gone already; so are they."""


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
    """Admission did not let the client in."""
    DISALLOWED_APP_NAME = "disallowed_app_name"
    """The client gave its program one of the names of `--disallow-app-names`."""
    REVOKED = "revoked"
    """Admission lets the client in no longer."""
    MESH_PEER = "mesh_peer"
    """A relay of the mesh asked for it (ClosePeer)."""
    WATCHER_BEHIND = "watcher_behind"
    """Too many presence changes waited for a watcher."""
    WRITE_TIMEOUT = "write_timeout"
    """The client took no byte for too long while more waited here."""
    DEAD_PATH = "dead_path"
    """The client's kernel acknowledged nothing for too long."""
    RESET = "reset"
    """The client's kernel reset the connection."""
    TIMED_OUT = "timed_out"
    """Our kernel gave the connection up, say after unanswered keepalive probes."""
    LOST = "lost"
    """Our kernel ended the connection for another cause."""
    FAILED = "failed"
    """The relay failed to answer; a bug, which is logged with its traceback."""


class Sink(Protocol):
    """Where a connection's frames go: the transport, or a list in a test."""

    def send(self, chunks: list[bytes]) -> bool:
        """Write whole frames. The list is the caller's again afterwards.

        May call `Router.pause` for this connection when the kernel does not take all.

        Returns:
            False: nothing was written, as the connection is about to end.
        """

    def unsent_size(self) -> int:
        """Bytes at the end of what `send` last wrote that the kernel did not take.

        They are bytes of frames: those that TLS or a websocket added are not among them.
        """

    def end(self, reason: EndReason, how: How, detail: str = "") -> None:
        """Unregister the connection and close it.

        Args:
            detail: for the log; empty: the end is nothing to be logged.
        """


class Connection:
    """State of one connection between login and end. Idle ones must stay small: see `bench/`.

    Args:
        key: the client's public key, 32 raw bytes: routing compares bytes, not objects.
        sink: where its frames go.
        number: its number among all accepted connections, for logs.
        peer: remote address and port; un-mapped; port 0 and an empty address: unknown.
        connected_at: time of login, in seconds of the router's clock.
        app_name: what the client calls itself; the login has checked that it keeps the rule.
        version: the protocol version that the client named when it logged in.
    """

    __slots__ = (
        "_present",
        "app_name",
        "backlog",
        "bytes_received",
        "bytes_sent",
        "can_mesh",
        "connected_at",
        "dirty",
        "has_left",
        "heard_from",
        "is_dup",
        "is_prober",
        "key",
        "not_here_at",
        "not_here_tokens",
        "not_ideal",
        "number",
        "out",
        "out_bytes",
        "out_packets",
        "packets_received",
        "packets_sent",
        "paused",
        "peer",
        "pong_pending",
        "preferred",
        "sent_to",
        "sink",
        "skip",
        "takes_health",
        "version",
    )

    def __init__(
        self,
        key: bytes,
        sink: Sink,
        *,
        number: int = 0,
        peer: tuple[str, int] = ("", 0),
        connected_at: float = 0.0,
        can_mesh: bool = False,
        is_prober: bool = False,
        not_ideal: bool = False,
        app_name: str = "",
        version: int = 0,
        takes_health: bool = False,
    ) -> None:
        self.key = key
        self.sink = sink
        self.number = number
        self.peer = peer
        self.connected_at = connected_at
        self.can_mesh = can_mesh
        self.is_prober = is_prober
        self.not_ideal = not_ideal
        self.app_name = app_name
        self.version = version
        self.takes_health = takes_health
        """Known to take Health and Restarting: others may end on a frame they do not know."""
        self.preferred = False
        self.is_dup = False
        """Another connection has the same key."""
        self.has_left = False
        """No longer registered: what it still sends or is sent is for no one."""
        # Packets that the client sent, for peers here or forwarded, and packets written to it.
        # The bytes are those of the packets alone, without frame headers and keys.
        self.packets_received = 0
        self.bytes_received = 0
        self.packets_sent = 0
        self.bytes_sent = 0
        # What leaves at the end of this turn of the loop: runs of whole frames.
        self.out: list[bytes] = []
        self.out_bytes = 0
        self.out_packets = 0
        self.dirty = False
        # What waits because the socket takes no more; None nearly always.
        self.backlog: Backlog | None = None
        self.paused = False
        self.pong_pending = False
        self.skip = 0
        """Bytes of an unknown frame still to be thrown away."""
        # Who must be told when this key leaves, and whose leaving this connection is told.
        self.sent_to: set[Connection] | None = None
        self.heard_from: set[bytes] | None = None
        self._present: bytes | None = None
        self.not_here_tokens = float(NOT_HERE_BURST)
        self.not_here_at = connected_at

    @property
    def public(self) -> NodePublic:
        """The client's key as an object."""
        return NodePublic(self.key)

    @property
    def flags(self) -> PeerPresentFlags:
        """What a watcher is told of this connection; "regular" stands alone."""
        flags = PeerPresentFlags(0)
        if self.can_mesh:
            flags |= PeerPresentFlags.MESH_PEER
        if self.is_prober:
            flags |= PeerPresentFlags.PROBER
        if self.not_ideal:
            flags |= PeerPresentFlags.NOT_IDEAL
        return flags or PeerPresentFlags.REGULAR

    def present_frame(self) -> bytes:
        """The PeerPresent frame about this connection; made once, as each watcher gets it."""
        if self._present is None:
            host, port = self.peer
            self._present = pack_peer_present(
                self.public, _ip16(host), port, self.flags, self.app_name
            )
        return self._present

    def __repr__(self) -> str:
        return f"<Connection {self.number} {self.public.short()} {self.peer[0]}:{self.peer[1]}>"


def _ip16(host: str) -> bytes:
    address = parse_ip(host)
    return bytes(16) if address is None else as_16_bytes(address)
