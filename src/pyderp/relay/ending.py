"""How and why a connection ends: one vocabulary for the router, the sockets and the metrics."""

from __future__ import annotations

from enum import Enum

__all__ = ["EndReason", "How"]


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
