"""Every default with a unit: ports, depths, sizes in bytes, times in seconds.

Names in brackets are the Go names or flags of Tailscale's `derper` that they come from.
"""

from __future__ import annotations

from typing import Final

# Login and HTTP
LOGIN_TIMEOUT: Final = 10.0
"""From accept to a complete ClientInfo: TLS, HTTP head and login together (`--login-timeout`).
Before that a PROXY header may take as long."""
HTTP_IDLE_TIMEOUT: Final = 30.0
"""An HTTP keep-alive connection between two requests [http.Server.IdleTimeout]."""
MAX_HTTP_HEAD: Final = 64 * 1024

# Steady state
KEEP_ALIVE: Final = 60.0
"""Shortest time between two KeepAlive frames [derp.KeepAlive]."""
KEEP_ALIVE_JITTER: Final = 5.0
"""Added to `KEEP_ALIVE`, drawn once a connection from [0, this)."""
WRITE_TIMEOUT: Final = 30.0
"""No byte taken by the kernel for so long ends a connection [-tcp-write-timeout, 2 s]. The kernel
of a slow reader opens its window in steps of a sixteenth of its buffer and more, so that one that
reads 20 kB/s shows no progress for five seconds and longer."""
MESH_WRITE_TIMEOUT: Final = 30.0
HOME_MOVE_GRACE: Final = 5.0
"""NotePreferred sooner after connecting is not counted as a move."""
CLOSE_TIMEOUT: Final = 5.0
"""A connection that is closing gets so long to take what was written to it."""
LINGER_TIMEOUT: Final = 2.0
"""A client gets so long to close its half, once all was written and ours is closed."""

# Queues of one destination
SEND_QUEUE_DEPTH: Final = 32
"""Packets in each of the two queues, disco and data [perClientSendQueueDepth]."""
SEND_QUEUE_BYTES: Final = 256 * 1024
"""Bytes that wait for one destination, in both queues and in the transport."""
MAX_PENDING_CHANGES: Final = 100_000
"""Presence changes that wait for one watcher before it is closed."""
MAX_PENDING_CONTROL: Final = 10_000
"""Frames that are no packets and wait for one client, before PeerGone frames add no more."""
MAX_FORWARDED_SOURCES: Final = 100_000
"""Sources of one client whose departure it is told, before forwarded packets add no more."""
MAX_REMOTE_SOURCES: Final = 250_000
"""Sources that are noted beyond the connections here, before forwarded packets add no more."""
MAX_REMOTE_PAIRS: Final = 1_000_000
"""Pairs of source and destination that are noted, before forwarded packets add no more."""
MAX_MESH_KEYS: Final = 250_000
"""Keys that one other relay of the mesh may have; packets to further ones find no way."""

# "Not here" replies, a token bucket for each connection
NOT_HERE_RATE: Final = 1.0
NOT_HERE_BURST: Final = 3

# Sockets
RECEIVE_BUFFER: Final = 128 * 1024
"""One buffer for all connections of the process; what one read brings fits an idle queue."""
TCP_KEEPALIVE_TIME: Final = 600
TCP_KEEPALIVE_INTERVAL: Final = 15
TCP_KEEPALIVE_PROBES: Final = 9
TCP_USER_TIMEOUT: Final = 15.0
"""A client whose kernel acknowledges nothing for so long, while it should, is gone."""
TCP_NOTSENT_LOWAT: Final = 256 * 1024
"""What the kernel holds unsent can no longer be dropped and arrives late: with a reader
that takes a sixth of what it is offered, packets are 0.19 s old at this value and 1.9 s
without (bench/queueing.py)."""
LISTEN_BACKLOG: Final = 1024

# Admission
ADMISSION_TIMEOUT: Final = 5.0
"""An admission controller answers within so long, body included."""
ADMISSION_WAIT: Final = 30.0
"""A client waits at most so long for the answer whether it may log in."""
ADMISSION_REMEMBER: Final = 10.0
"""An answer is good for so long for further connections of the same key."""
ADMISSION_RECHECK: Final = 60.0
"""Between two looks at whether connected clients are still allowed."""
ADMISSION_CACHE: Final = 10_000
"""Answers that are remembered."""
ADMISSION_QUESTIONS: Final = 64
"""Newcomers about whom one source of answers is asked at once, at most."""
ADMISSION_SHARE: Final = 8
"""Of these, newcomers from one IPv4 address, or from one IPv6 /64."""
ADMISSION_RECHECKS: Final = 16
"""Connected clients about whom it is asked again at once, beside the newcomers."""

# Stopping
DRAIN: Final = 5.0
"""Closes of a graceful stop are spread over so long."""
RECONNECT_TRY_FOR: Final = 60.0
"""What FrameRestarting advises: keep trying for so long."""

# Client
CONNECT_TIMEOUT: Final = 10.0
"""Name, proxy, TCP, TLS, upgrade and login together."""
RECEIVE_TIMEOUT: Final = 120.0
"""A relay that is silent for so long is gone; it sends KeepAlive every 60 s."""
PING_TIMEOUT: Final = 5.0
CLIENT_WRITE_BUFFER: Final = 64 * 1024
"""Bytes that wait for the kernel before a send waits."""
CLIENT_UNREAD: Final = 1024 * 1024
"""Bytes that came since all messages were last taken, before the socket is no longer read."""

# Ports
HTTPS_PORT: Final = 443
HTTP_PORT: Final = 80
STUN_PORT: Final = 3478
DEV_PORT: Final = 3340
