"""Which nodes relay packets: a good relay, one that refuses connections, one that loses packets."""

from __future__ import annotations

import asyncio
import dataclasses
import socket

import pytest

from pyderp.client.config import ClientConfig
from pyderp.config import AdmissionConfig, RelayConfig
from pyderp.maps.derpmap import DERPMap
from pyderp.maps.region import DERPNode, DERPRegion
from pyderp.net.settings import NetworkSettings
from pyderp.netcheck import relaying
from pyderp.netcheck.relaying import check_relaying
from pyderp.netcheck.report import RelayResult
from pyderp.testing import RelayThread

CONFIG = ClientConfig(network=NetworkSettings(use_derp_http=True))


def numbered(region: DERPRegion, number: int) -> DERPRegion:
    nodes = tuple(
        dataclasses.replace(node, region_id=number, name=f"{number}a") for node in region.nodes
    )
    return dataclasses.replace(region, region_id=number, nodes=nodes)


def check(*regions: DERPRegion) -> dict[int, RelayResult]:
    found: dict[int, RelayResult] = {}
    derp_map = DERPMap(regions={each.region_id: each for each in regions})
    asyncio.run(check_relaying(derp_map, CONFIG, on_result=found.__setitem__))
    return found


def test_a_good_relay_relays_and_a_missing_one_is_an_error() -> None:
    with RelayThread() as relay, socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        good = numbered(relay.region, 1)
        port = closed.getsockname()[1]
        dead = dataclasses.replace(good.nodes[0], region_id=2, name="2a", derp_port=port)
        stun = dataclasses.replace(dead, region_id=3, name="3a", stun_only=True)
        found = check(
            good,
            DERPRegion(region_id=2, nodes=(dead,)),
            DERPRegion(region_id=3, nodes=(stun,)),
        )
    assert set(found) == {1, 2}
    assert found[1].relays
    assert found[1].latency > 0
    assert not found[2].relays
    assert "refused" in found[2].error
    assert "derphttp" not in found[2].error


def test_a_relay_that_loses_all_packets_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its logins work, and it answers pings; only a packet shows it."""
    monkeypatch.setattr(relaying, "TIMEOUT", 1.0)
    with RelayThread() as relay:
        relay.loss = 1.0
        found = check(numbered(relay.region, 1))
    assert found[1] == RelayResult("1a", relays=False, error="no packet came through within 1 s")


def test_a_relay_that_does_not_admit_new_keys_is_no_fault() -> None:
    """Its operator may want that, so the text differs from that of a fault."""
    config = RelayConfig(admission=AdmissionConfig(decide=lambda _key, _address: False))
    with RelayThread(config) as relay:
        found = check(numbered(relay.region, 1))
    assert not found[1].relays
    assert found[1].error.startswith("it does not admit a new key: ")


def test_a_relay_that_hangs_before_the_login_loses_no_packet(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """No packet was sent."""
    monkeypatch.setattr(relaying, "TIMEOUT", 1.0)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        node = DERPNode(
            name="1a",
            region_id=1,
            host_name="127.0.0.1",
            ipv4="127.0.0.1",
            derp_port=listener.getsockname()[1],
        )
        found = check(DERPRegion(region_id=1, nodes=(node,)))
    assert not found[1].relays
    assert found[1].error.startswith("no answer within 0.8 s, ")
