"""Checks whether a relay could listen on its ports, for `--check`.

A port counts as free if the relay with the same key listens on it, because the new relay replaces
that one.
"""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from pyderp.addresses import parse_address, unix_path
from pyderp.cli.relay.holders import port_sockets, unix_sockets
from pyderp.cli.relay.layers import Settings
from pyderp.cli.relay.plan import StartPlan
from pyderp.cli.relay.running import RunningRelay
from pyderp.config import RelayConfig
from pyderp.errors import ConfigError
from pyderp.server.app.listeners import listen_beside, stun_host
from pyderp.server.conn.sockets import is_left_over, listen
from pyderp.server.services.stun import stun_sockets

__all__ = ["check_ports"]

_RUNS: Final = "the relay with this key runs there already"


@dataclass(frozen=True)
class _Port:
    """A port that the relay would listen on.

    Args:
        line: the line of `--check` for it: service and address.
        open: opens the sockets as the relay does, or raises `ConfigError`.
        held: returns the inodes of the sockets that listen there now; empty: unknown.
        main: whether it is the relay's own address (`-a`).
        optional: whether the relay starts if this port is taken.
    """

    line: str
    open: Callable[[], list[socket.socket]]
    held: Callable[[], frozenset[int]]
    main: bool = False
    optional: bool = False


def check_ports(
    plan: StartPlan, settings: Settings, check_folder: Callable[[Path], None]
) -> tuple[list[str], list[str]]:
    """Check each port.

    Args:
        settings: what is wrong is added to their problems.
        check_folder: raises `ConfigError` if the Unix socket cannot be made.

    Returns:
        a line for each port that is fine, and a warning for each that may be fine.
    """
    lines: list[str] = []
    doubts: list[str] = []
    if "address" in plan.missing:
        return lines, doubts
    running = RunningRelay(plan.config, plan.key_file)
    # All sockets stay open until the last is opened, as a relay's do: two may have the same port.
    with contextlib.ExitStack() as opened:
        for port in _ports(plan, check_folder):
            with settings.collect():
                try:
                    for sock in port.open():
                        opened.enter_context(sock)
                    lines.append(port.line)
                except ConfigError as e:
                    found = running.has(port.held(), main=port.main)
                    if found:
                        lines.append(f"{port.line}: {_RUNS}")
                    elif found is None:
                        doubts.append(
                            f"{port.line}: {e}. This may be the relay with this key, which runs on "
                            f"{plan.config.address}: run --check as its user or as root to see "
                            "which process has the port"
                        )
                    elif port.optional:
                        doubts.append(f"no STUN: {e}")
                    else:
                        raise
    return lines, doubts


def _ports(plan: StartPlan, check_folder: Callable[[Path], None]) -> Iterator[_Port]:
    config = plan.config
    yield _main(config, check_folder)
    if config.metrics_address:
        yield _tcp(
            f"/debug/ on {config.metrics_address} only", config.metrics_address, config, main=False
        )
    if config.tls is not None and (side := config.tls.http_port) is not None:
        yield _Port(
            f"plain HTTP on port {side}",
            lambda: [listen_beside(config, side)],
            lambda: port_sockets(_main_host(config), side, socket.SOCK_STREAM),
        )
    if (stun := config.stun_port) is not None:
        yield _Port(
            f"STUN on UDP port {stun}",
            lambda: stun_sockets(stun_host(config), stun, reuse_port=config.reuse_port),
            lambda: port_sockets(stun_host(config), stun, socket.SOCK_DGRAM),
            optional=plan.stun_if_free,
        )


def _main_host(config: RelayConfig) -> str:
    return "" if unix_path(config.address) is not None else parse_address(config.address)[0]


def _main(config: RelayConfig, check_folder: Callable[[Path], None]) -> _Port:
    line = f"listening on {config.address}"
    path = unix_path(config.address)
    if path is None:
        return _tcp(line, config.address, config, main=True)

    def examine() -> list[socket.socket]:
        check_folder(path)
        is_left_over(path)
        return []

    return _Port(line, examine, lambda: unix_sockets(path), main=True)


def _tcp(line: str, address: str, config: RelayConfig, *, main: bool) -> _Port:
    host, port = parse_address(address)
    return _Port(
        line,
        lambda: [listen(host, port, reuse_port=config.reuse_port)],
        lambda: port_sockets(host, port, socket.SOCK_STREAM),
        main=main,
    )
