"""Finds out whether the relay with a key runs already, and on which ports."""

from __future__ import annotations

import contextlib
import socket
import ssl
from functools import cached_property
from pathlib import Path
from typing import Final

from pyderp.addresses import parse_address, parse_ip, unix_path
from pyderp.cli.relay.holders import Process, processes
from pyderp.config import RelayConfig
from pyderp.errors import ConfigError, InvalidKey
from pyderp.keys import NodePublic, load_or_create_key

__all__ = ["RunningRelay"]

_TIMEOUT: Final = 2.0
"""Seconds for each step; the relay is on this machine."""
_LARGEST_HEAD: Final = 8192
_REQUEST: Final = (
    b"GET /derp HTTP/1.1\r\nHost: localhost\r\nConnection: Upgrade\r\nUpgrade: DERP\r\n\r\n"
)
_KEY: Final = b"derp-public-key"


class RunningRelay:
    """The relay that runs with a key, if there is one, and its sockets.

    A relay keeps its key file open as long as it runs. So the process that has the file open is
    the relay, and its sockets are the relay's. This also works without a certificate and behind a
    proxy, and it makes no connection, which the relay would log. A relay that is not found in this
    way (an older version, or a process of another user) is asked for its key.

    Args:
        config: the settings that are checked; the relay may run with others.
        key_file: file of its key; `None`: there is none, so no relay that runs has it.
    """

    def __init__(self, config: RelayConfig, key_file: Path | None) -> None:
        self._config = config
        self._key_file = key_file
        self._answers = False
        self._asked: frozenset[int] = frozenset()
        """Sockets of the processes that listen on the relay's address, if they have the key."""

    def has(self, sockets: frozenset[int], *, main: bool = False) -> bool | None:
        """Whether the relay is what listens on a port.

        Args:
            sockets: inodes of the sockets that listen there; empty: not known.
            main: whether it is the relay's address. Call this for that port first.

        Returns:
            `None`: the relay runs on its address, and this user cannot see which process has this
            port.
        """
        if self._key_file is None:
            return False
        if sockets and sockets <= self._with_key_file | self._asked:
            return True
        if main:
            self._answers = self._has_key(self._key_file)
            if self._answers:
                self._asked = sockets | self._beside(sockets)
            return self._answers
        visible = bool(sockets) and sockets <= frozenset().union(
            *(each.sockets for each in self._processes)
        )
        return None if self._answers and not visible else False

    @cached_property
    def _processes(self) -> tuple[Process, ...]:
        return () if self._key_file is None else tuple(processes(self._key_file))

    @cached_property
    def _with_key_file(self) -> frozenset[int]:
        return frozenset().union(*(each.sockets for each in self._processes if each.has_file))

    def _beside(self, sockets: frozenset[int]) -> frozenset[int]:
        """Returns all sockets of the processes that hold these."""
        holders = [each for each in self._processes if each.sockets & sockets]
        # Process 1, as a service manager, also has sockets that it opened for other services.
        found = [each for each in holders if each.pid != 1] or holders
        return frozenset().union(*(each.sockets for each in found))

    def _has_key(self, key_file: Path) -> bool:
        """Whether the server on the address of the settings has the key; asks without a login.

        False also if it cannot be asked, for example because it wants a PROXY header.
        """
        with contextlib.suppress(OSError, ConfigError):
            if key_file.exists():
                return _key_of(self._config) == load_or_create_key(key_file).public
        return False


def _key_of(config: RelayConfig) -> NodePublic | None:
    with contextlib.closing(_connect(config)) as plain, contextlib.ExitStack() as stack:
        sock = plain
        if config.tls is not None:
            context = ssl.create_default_context()
            # Only the key counts. A verified certificate would prove no more: a process that can
            # listen on the relay's port of this machine could usually read the certificate, too.
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
