"""A connection through a SOCKS5 proxy (RFC 1928, RFC 1929), which also resolves the name."""

from __future__ import annotations

import asyncio
import socket
from typing import cast

from python_socks import ProxyError as SocksProxyError
from python_socks import ProxyTimeoutError, ProxyType
from python_socks.async_.asyncio.v2 import Proxy as SocksProxy

from pyderp.addresses import format_address
from pyderp.errors import ProxyError, without_frames
from pyderp.net.proxies import Proxy
from pyderp.net.race import connect_to_proxy
from pyderp.net.resolve import Resolver
from pyderp.net.settings import NetworkSettings
from pyderp.wire.text import printable

__all__ = ["connect_through_socks"]


async def connect_through_socks(
    proxy: Proxy,
    host: str,
    port: int,
    *,
    settings: NetworkSettings,
    resolver: Resolver | None = None,
) -> socket.socket:
    """A socket on which the proxy carries bytes to `host`; cancelling closes it.

    Args:
        host: a name, for the proxy to resolve, or an IP address.
        resolver: for the name of the proxy itself.

    Raises:
        ProxyError: the proxy refused, spoke nonsense, or took more than 60 s.
        DialError: the proxy cannot be reached.
        ConfigError: mark or device cannot be used.
    """
    what = f"SOCKS5 proxy {proxy.redacted} to {format_address(host, port)}"
    way = _Way(proxy, settings, resolver)
    dialer = SocksProxy(
        ProxyType.SOCKS5,
        proxy.host,
        proxy.port,
        username=proxy.user,
        password=proxy.password,
        rdns=True,
        # A proxy in front of the proxy is asked for the connection, so it may be our own
        # socket; of such a proxy only `connect` is used, and of its stream what _Stream has.
        forward=cast("SocksProxy", way),
    )
    try:
        stream = cast("_Stream", await dialer.connect(host, port))
    except (SocksProxyError, ProxyTimeoutError) as e:
        raise ProxyError(f"{what}: {printable(str(e))}") from e
    except ValueError as e:
        # Neither name, user nor password have escaped: the cause may quote one of them.
        raise ProxyError(f"{what}: not to be said in SOCKS5: {type(e).__name__}") from None
    return stream.socket


class _Way:
    """How the proxy itself is reached."""

    def __init__(self, proxy: Proxy, settings: NetworkSettings, resolver: Resolver | None) -> None:
        self._proxy = proxy
        self._settings = settings
        self._resolver = resolver

    async def connect(self, dest_host: str, dest_port: int) -> _Stream:
        """The arguments are the proxy's own address; names are python-socks'."""
        sock = await connect_to_proxy(self._proxy, settings=self._settings, resolver=self._resolver)
        return _Stream(sock, self._proxy)


class _Stream:
    """Whole reads on a socket; never a byte more, for those belong to the tunnel."""

    def __init__(self, sock: socket.socket, proxy: Proxy) -> None:
        self.socket = sock
        self._proxy = proxy

    async def write(self, data: bytes) -> None:
        try:
            await asyncio.get_running_loop().sock_sendall(self.socket, data)
        except OSError as e:
            raise self._broken(e) from e

    async def read_exactly(self, n: int) -> bytes:
        loop = asyncio.get_running_loop()
        data = b""
        while len(data) < n:
            try:
                chunk = await loop.sock_recv(self.socket, n - len(data))
            except OSError as e:
                raise self._broken(e) from e
            if not chunk:
                raise self._error("it closed the connection")
            data += chunk
        return data

    # The names of python-socks 2
    write_all = write
    read_exact = read_exactly

    async def close(self) -> None:
        self.socket.close()

    def _broken(self, error: OSError) -> ProxyError:
        # A frame of asyncio holds the future that holds the error.
        return self._error(without_frames(error).strerror or str(error))

    def _error(self, reason: str) -> ProxyError:
        return ProxyError(f"SOCKS5 proxy {self._proxy.redacted}: {reason}")
