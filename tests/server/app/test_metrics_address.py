"""`/debug/` on a separate address is served there only."""

from __future__ import annotations

import pytest

import pyderp
from pyderp import ManualTLS, RelayConfig
from pyderp.errors import ConfigError
from tests.server.dial import clients
from tests.server.ways import NAME, over_tls

from .test_relay import ask, get


async def test_debug_pages_are_served_on_metrics_address_only(tls: ManualTLS) -> None:
    beside = ManualTLS(certdir=tls.certdir, hostname=NAME, http_port=0)
    config = RelayConfig(tls=beside, metrics_address="127.0.0.1:0")
    async with pyderp.Relay(config) as relay, clients(relay, 1, via=over_tls()):
        assert relay.metrics_address is not None
        assert relay.http_address is not None
        check = await ask(relay.metrics_address, get("/debug/check"))
        assert check.startswith(b"HTTP/1.1 200 ")
        varz = await ask(relay.metrics_address, get("/debug/varz"))
        assert b"\nderp_current_connections 1\n" in varz
        for target in ("/derp", "/"):
            answer = await ask(relay.metrics_address, get(target))
            assert answer.startswith(b"HTTP/1.1 404 ")
        assert (await ask(relay.http_address, get("/debug/varz"))).startswith(b"HTTP/1.1 404 ")
        home = await ask(relay.http_address, get("/"))
        assert b"/debug/" not in home


async def test_with_metrics_address_the_main_port_has_no_debug_pages() -> None:
    async with pyderp.Relay(RelayConfig(metrics_address="127.0.0.1:0")) as relay:
        assert (await ask(relay.address, get("/debug/"))).startswith(b"HTTP/1.1 404 ")
        assert b"/debug/" not in await ask(relay.address, get("/"))


@pytest.mark.parametrize("address", ["here", "unix:/tmp/debug"])
def test_an_invalid_metrics_address_is_refused(address: str) -> None:
    with pytest.raises(ConfigError):
        RelayConfig(metrics_address=address)
