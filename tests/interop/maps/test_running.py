"""Running relays, Go's and pyderp's: the node that is made for them is the one that they log."""

from __future__ import annotations

import asyncio
import dataclasses
from pathlib import Path

import pytest

from pyderp.mapio.online import lint_online
from pyderp.mapio.sources import MapWays, load_map
from pyderp.maps.formats import MapKind
from pyderp.net.settings import NetworkSettings
from pyderp.net.tlscontext import TLSConfig
from tests.interop.relays import KINDS, Kind, running

DIRECT = NetworkSettings()


@pytest.mark.parametrize("kind", KINDS)
def test_a_pinned_relay_is_described_with_its_pin(kind: Kind, tmp_path: Path) -> None:
    """The map works: it is tried as a client would."""

    async def main(url: str, port: int) -> None:
        ways = MapWays(settings=DIRECT, timeout=20, stun_port=port)
        loaded = await load_map(url, ways=ways)
        (node,) = loaded.map.regions[900].nodes
        assert loaded.kind is MapKind.RELAY
        assert (node.host_name, node.derp_port) == ("127.0.0.1", port)
        assert node.cert_name == relay.pin
        assert await lint_online(loaded.map, ways=ways) == []
        wrong = dataclasses.replace(node, cert_name="sha256-raw:" + "0" * 64)
        region = dataclasses.replace(loaded.map.regions[900], nodes=(wrong,))
        derp_map = dataclasses.replace(loaded.map, regions={900: region})
        (finding,) = await lint_online(derp_map, ways=ways)
        assert finding.rule == "certificate"

    with running(kind, "pinned", tmp_path) as relay:
        # No server answers STUN on the UDP port of that number.
        asyncio.run(main(f"https://127.0.0.1:{relay.port}", relay.port))


@pytest.mark.parametrize("kind", KINDS)
def test_a_relay_with_a_trusted_certificate_is_described_without_a_pin(
    kind: Kind, tmp_path: Path
) -> None:
    async def main(url: str, port: int) -> None:
        assert relay.ca is not None
        tls = TLSConfig(extra_roots=(relay.ca,))
        ways = MapWays(settings=DIRECT, timeout=20, stun_port=port, tls=tls)
        loaded = await load_map(url, ways=ways)
        (node,) = loaded.map.regions[900].nodes
        assert (node.host_name, node.derp_port, node.cert_name) == ("localhost", port, "")

    with running(kind, "named", tmp_path) as relay:
        asyncio.run(main(f"https://localhost:{relay.port}", relay.port))
