"""Whether the relay that settings describe runs already, on the ports that they name."""

from __future__ import annotations

import contextlib
import socket
import ssl
from typing import Final

from pyderp.addresses import parse_address, parse_ip, unix_path
from pyderp.config import RelayConfig
from pyderp.errors import InvalidKey
from pyderp.keys import NodePublic

__all__ = ["runs_already"]

_TIMEOUT: Final = 2.0
"""Seconds for each step. It is a relay of this machine."""
_LARGEST_HEAD: Final = 8192
_REQUEST: Final = (
    b"GET /derp HTTP/1.1\r\nHost: localhost\r\nConnection: Upgrade\r\nUpgrade: DERP\r\n\r\n"
)
_KEY: Final = b"derp-public-key"


def runs_already(config: RelayConfig, key: NodePublic) -> bool:
    """Ask what listens on the address of the settings for its key, without logging in.

    Args:
        key: the relay's.

    Returns:
        whether it is the same. False also if it cannot be asked: because it wants a PROXY header,
        say, or has no certificate.
    """
    with contextlib.suppress(OSError):
        return _key_of(config) == key
    return False


def _key_of(config: RelayConfig) -> NodePublic | None:
    with contextlib.closing(_connect(config)) as plain, contextlib.ExitStack() as stack:
        sock = plain
        if config.tls is not None:
            context = ssl.create_default_context()
            # The key is what counts, and who could listen there could read the certificate, too.
            context.check_hostname = False
            context.verify_mode = ssl.CERT_NONE
            name = config.hostname if parse_ip(config.hostname) is None else None
            sock = stack.enter_context(context.wrap_socket(plain, server_hostname=name))
        sock.sendall(_REQUEST)
        head = b""
        while b"\r\n\r\n" not in head and len(head) < _LARGEST_HEAD:
            data = sock.recv(4096)
            if not data:
                break
            head += data
    return _key_in(head)


def _connect(config: RelayConfig) -> socket.socket:
    path = unix_path(config.address)
    if path is not None:
        sock = socket.socket(socket.AF_UNIX)
        sock.settimeout(_TIMEOUT)
        try:
            sock.connect(str(path))
        except OSError:
            sock.close()
            raise
        return sock
    host, port = parse_address(config.address)
    if host in ("", "::", "0.0.0.0"):  # noqa: S104 (compared, not listened on)
        host = "localhost"
    return socket.create_connection((host, port), timeout=_TIMEOUT)


def _key_in(head: bytes) -> NodePublic | None:
    for line in head.partition(b"\r\n\r\n")[0].split(b"\r\n"):
        name, _, value = line.partition(b":")
        if name.strip().lower() == _KEY:
            with contextlib.suppress(InvalidKey):
                return NodePublic.parse(f"nodekey:{value.strip().decode('latin-1')}")
    return None
