"""The node of a running relay, found by asking the relay: the same as its own."""

from __future__ import annotations

import asyncio
import dataclasses
import ipaddress
import socket
from pathlib import Path

import pytest

from pyderp import ManualTLS, Relay, RelayConfig
from pyderp.addresses import IPAddress
from pyderp.errors import ConfigError, ConnectError, DerpError, InvalidMap
from pyderp.mapio.running import describe_relay
from pyderp.maps.region import DERPNode
from pyderp.net.settings import NetworkSettings
from pyderp.net.tlscontext import TLSConfig
from tests.server.certificates import write_pair

from .serving import raw_server, serving

DIRECT = NetworkSettings()
NAME = "relay.example.com"


async def loopback(_host: str, _family: socket.AddressFamily) -> list[IPAddress]:
    return [ipaddress.ip_address("127.0.0.1")]


def described(
    config: RelayConfig, host: str, tls: TLSConfig | None = None
) -> tuple[DERPNode, list[str], DERPNode]:
    """Node and warnings of a running relay, found from outside, and the relay's own node."""

    async def main() -> tuple[DERPNode, list[str], DERPNode]:
        async with Relay(config) as relay:
            stun = relay.stun_addresses[0][1] if relay.stun_addresses else relay.address[1]
            # A TLS port is not a port for HTTP.
            http = relay.http_address[1] if relay.http_address is not None else relay.address[1]
            node, warnings = await describe_relay(
                f"https://{host}:{relay.address[1]}",
                tls=tls,
                settings=DIRECT,
                resolver=loopback,
                stun_port=stun,
                http_port=http,
            )
            assert relay.map_node is not None
            return node, warnings, relay.map_node

    return asyncio.run(main())


def test_a_pinned_relay_is_described_as_it_describes_itself(tmp_path: Path) -> None:
    config = RelayConfig(tls=ManualTLS(certdir=tmp_path, hostname="127.0.0.1"), stun_port=0)
    node, warnings, own = described(config, "127.0.0.1")
    assert node == own
    assert node.cert_name.startswith("sha256-raw:")
    (warning,) = warnings
    assert "the pin of the one that was presented just now" in warning


def test_a_trusted_certificate_needs_no_pin(tmp_path: Path) -> None:
    """Port 80 is found as well."""
    write_pair(tmp_path, NAME)
    trusted = TLSConfig(extra_roots=(tmp_path / f"{NAME}.crt",))
    tls = ManualTLS(certdir=tmp_path, hostname=NAME, http_port=0)
    node, warnings, own = described(RelayConfig(tls=tls, stun_port=0), NAME, trusted)
    assert node == dataclasses.replace(own, can_port_80=True)
    assert (node.host_name, node.cert_name, warnings) == (NAME, "", [])


def test_a_relay_without_stun_has_a_warning(tmp_path: Path) -> None:
    config = RelayConfig(tls=ManualTLS(certdir=tmp_path, hostname="127.0.0.1"))
    node, warnings, own = described(config, "127.0.0.1")
    assert node == own
    assert (node.stun_port, node.can_port_80) == (-1, False)
    assert warnings[1].startswith("no answer to STUN from 127.0.0.1, UDP port ")


@pytest.mark.parametrize(
    ("url", "kind", "error"),
    [
        ("http://127.0.0.1:1/derp", InvalidMap, "with TLS, and http:// has none"),
        ("https://", ConfigError, "want https://HOST"),
        ("https://127.0.0.1:99999", ConfigError, "Port out of range"),
    ],
)
def test_a_url_without_a_relay_is_an_error(url: str, kind: type[DerpError], error: str) -> None:
    with pytest.raises(kind, match=error):
        asyncio.run(describe_relay(url, settings=DIRECT))


def test_a_server_without_tls_is_an_error() -> None:
    with raw_server(lambda c: c.sendall(b"HTTP/1.1 400 no\r\n\r\n")) as url:
        where = url.replace("http:", "https:").removesuffix("/map")
        with pytest.raises(ConnectError, match=r"the server does not speak TLS on this port"):
            asyncio.run(describe_relay(where, settings=DIRECT))


def test_a_port_without_a_server_is_an_error() -> None:
    with serving() as server:
        url = server.url.replace("http:", "https:").removesuffix("/map")
    with pytest.raises(ConnectError) as caught:
        asyncio.run(describe_relay(url, settings=DIRECT))
    assert str(caught.value).startswith(f"{url}: ")
    assert len(caught.value.attempts) == 1
