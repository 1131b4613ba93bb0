"""The proxy's sockets."""

from __future__ import annotations

import gc
import socket

import pytest

from pyderp.testing.proxy import HOST, _bind


def test_a_taken_port_leaves_no_socket() -> None:
    """Binding fails, and no socket is left for the collector."""
    with socket.create_server((HOST, 0)) as taken:
        with pytest.raises(OSError, match="in use"):
            _bind(taken.getsockname()[1])
        gc.collect()


def test_a_port_is_kept_while_nothing_listens() -> None:
    """Only a socket of the proxy can bind it again."""
    with _bind(0) as holder:
        port = holder.getsockname()[1]
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection((HOST, port))
        with socket.socket() as other, pytest.raises(OSError, match="in use"):
            other.bind((HOST, port))
        with _bind(port) as listener:
            listener.listen()
            socket.create_connection((HOST, port)).close()
