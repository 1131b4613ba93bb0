"""The rule that no two services of a relay have the same TCP port."""

from __future__ import annotations

from typing import Final

from pyderp.addresses import parse_address, unix_path
from pyderp.errors import ConfigError

__all__ = ["check_distinct_ports"]

_ALL_ADDRESSES: Final = frozenset({"", "::", "0.0.0.0"})  # noqa: S104 (compared, not listened on)


def check_distinct_ports(address: str, http_port: int | None, metrics_address: str) -> None:
    """Refuse two services on one port.

    With SO_REUSEPORT the kernel would accept both and hand each connection to one of them.

    Args:
        address: `RelayConfig.address`.
        http_port: the port of plain HTTP beside TLS, on the same host; `None` if there is none.
        metrics_address: `RelayConfig.metrics_address`; empty if there is none.

    Raises:
        ConfigError: two have the same port on the same address, or an address cannot be read.
    """
    host, port = "", 0  # beside a Unix socket, the other ports listen on all addresses
    if unix_path(address) is None:
        host, port = parse_address(address)
    taken = [(host, port, "the address of the relay")]
    if http_port is not None:
        _check_free("tls.http_port", host, http_port, taken)
        taken.append((host, http_port, "plain HTTP beside TLS"))
    if metrics_address:
        _check_free("metrics_address", *parse_address(metrics_address), taken)


def _check_free(setting: str, host: str, port: int, taken: list[tuple[str, int, str]]) -> None:
    for other, number, what in taken:
        if number == port != 0 and (host == other or {host, other} & _ALL_ADDRESSES):
            raise ConfigError(
                "{} is port {port}, as is {what}; give each a port of its own",
                settings=(setting,),
                port=port,
                what=what,
            )
