"""A websocket as a byte stream: Go's `net/wsconn`, over the websockets library.

    async with connect("wss://relay.example.com/derp", subprotocols=["derp"]) as websocket:
        async with net_conn(websocket, max_message=32768) as stream:
            await stream.write(b"hello")
            data = await stream.read(4096)

For anyio's `ByteStream` see `pyderp.wsconn.for_anyio`, which needs anyio.
"""

from pyderp.wsconn.bounds import Scope, WebSocketConnection
from pyderp.wsconn.stream import CLOSE_TIMEOUT, GO_READ_LIMIT, WebSocketStream, net_conn

__all__ = [
    "CLOSE_TIMEOUT",
    "GO_READ_LIMIT",
    "Scope",
    "WebSocketConnection",
    "WebSocketStream",
    "net_conn",
]
