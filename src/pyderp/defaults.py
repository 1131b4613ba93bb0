"""Every default with a unit: ports, depths, sizes in bytes, times in seconds.

Names in brackets are the Go names or flags of Tailscale's `derper` that they come from.
"""

from __future__ import annotations

from typing import Final

# Login and HTTP
LOGIN_TIMEOUT: Final = 10.0
"""From accept to a complete ClientInfo: TLS, HTTP head and login together (`--login-timeout`).
A PROXY header before that has the same time for itself."""
HTTP_IDLE_TIMEOUT: Final = 30.0
"""An HTTP keep-alive connection between two requests [http.Server.IdleTimeout]."""
MAX_HTTP_HEAD: Final = 64 * 1024
"""The longest head of an HTTP request, in bytes."""

# Steady state
KEEP_ALIVE: Final = 60.0
"""Shortest time between two KeepAlive frames [derp.KeepAlive]."""
KEEP_ALIVE_JITTER: Final = 5.0
"""Bound of a random time that is added to `KEEP_ALIVE`, drawn once per connection."""
WRITE_TIMEOUT: Final = 30.0
"""A connection ends if the kernel takes none of its bytes for so long [-tcp-write-timeout, 2 s].
The kernel of a slow reader opens its window in steps of a sixteenth of its buffer or more: at
20 kB/s no progress is visible for five seconds and longer."""
MESH_WRITE_TIMEOUT: Final = 30.0
"""As `WRITE_TIMEOUT`, for connections with the mesh key."""
HOME_MOVE_GRACE: Final = 5.0
"""A NotePreferred that comes sooner after the login is not counted as a move of the home."""
CLOSE_TIMEOUT: Final = 5.0
"""Time for the peer of a closing connection to take what was written to it."""
LINGER_TIMEOUT: Final = 2.0
"""Time for a client to close its half of a connection, after the relay has closed its own."""

# Queues of one destination
SEND_QUEUE_DEPTH: Final = 32
"""Packets in each of the two queues, disco and data [perClientSendQueueDepth]."""
SEND_QUEUE_BYTES: Final = 256 * 1024
"""Bytes that wait for one destination, in both queues and in the transport."""
MAX_PENDING_CHANGES: Final = 100_000
"""Presence changes that may wait for one watcher; one more ends its connection."""
MAX_PENDING_CONTROL: Final = 10_000
"""Non-packet frames that may wait for one client; above that no PeerGone frames are added."""
MAX_FORWARDED_SOURCES: Final = 100_000
"""Sources that the relay notes per client, to send it PeerGone when one leaves; above that
forwarded packets add none."""
MAX_REMOTE_SOURCES: Final = 250_000
"""Sources on other relays that are noted; above that forwarded packets add none."""
MAX_REMOTE_PAIRS: Final = 1_000_000
"""Pairs of source and destination that are noted; above that forwarded packets add none."""
MAX_MESH_KEYS: Final = 250_000
"""Keys that are noted for one other relay of the mesh; packets to further ones are dropped."""

# Replies that a peer is not here: a token bucket per connection
NOT_HERE_RATE: Final = 1.0
"""Such replies a second."""
NOT_HERE_BURST: Final = 3
"""Such replies at once."""

# Sockets
RECEIVE_BUFFER: Final = 128 * 1024
"""Size of the one receive buffer of the process. A full one fits the queue of an idle client."""
TCP_KEEPALIVE_TIME: Final = 600
"""Time without data after which the kernel sends the first keep-alive probe."""
TCP_KEEPALIVE_INTERVAL: Final = 15
"""Time between two keep-alive probes."""
TCP_KEEPALIVE_PROBES: Final = 9
"""Keepalive probes without an answer after which the kernel drops a connection."""
TCP_USER_TIMEOUT: Final = 15.0
"""The kernel drops a connection whose peer leaves sent bytes without acknowledgement so long."""
TCP_NOTSENT_LOWAT: Final = 256 * 1024
"""Unsent bytes that the kernel holds for a client. The relay can no longer drop these, so they
arrive late: a client that reads a sixth of its traffic gets packets that are 0.19 s old with this
limit, and 1.9 s without it (bench/queueing.py)."""
LISTEN_BACKLOG: Final = 1024
"""Connections that may wait for the relay to accept them."""

# Admission
ADMISSION_TIMEOUT: Final = 5.0
"""Time for an admission controller to answer, body included."""
ADMISSION_WAIT: Final = 30.0
"""Longest time that a login waits for its verdict."""
ADMISSION_REMEMBER: Final = 10.0
"""A verdict holds so long for further connections of the same key."""
ADMISSION_RECHECK: Final = 60.0
"""Between two checks whether connected clients are still allowed."""
ADMISSION_CACHE: Final = 10_000
"""Verdicts that are remembered."""
ADMISSION_QUESTIONS: Final = 64
"""Logins about which one admission source is asked at the same time."""
ADMISSION_SHARE: Final = 8
"""Of these, logins from one IPv4 address or from one IPv6 /64."""
ADMISSION_RECHECKS: Final = 16
"""Rechecks of connected clients at the same time, besides the logins."""

# Stopping
DRAIN: Final = 5.0
"""A relay that drains closes its connections spread over this time."""
RECONNECT_TRY_FOR: Final = 60.0
"""The relay's advice in FrameRestarting: clients should try to reconnect for so long."""

# Client
CONNECT_TIMEOUT: Final = 10.0
"""Look-up, proxy, TCP, TLS, upgrade and login together."""
RECEIVE_TIMEOUT: Final = 120.0
"""A client ends a connection that brings nothing for so long; relays send KeepAlive every 60 s."""
PING_TIMEOUT: Final = 5.0
"""A ping of a client fails without an answer within this time."""
CLIENT_WRITE_BUFFER: Final = 64 * 1024
"""Bytes that may wait for the kernel; with more, a client's send waits."""
CLIENT_UNREAD: Final = 1024 * 1024
"""Bytes that may come while messages wait for the program; with more, the client stops reading."""

# Ports
HTTPS_PORT: Final = 443
HTTP_PORT: Final = 80
STUN_PORT: Final = 3478
DEV_PORT: Final = 3340
"""Port of a relay with `--dev`, and of a node's relay without TLS."""
