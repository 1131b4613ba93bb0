"""Whether the nodes of a map answer: relays that do, and servers that do not."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import ipaddress
import socket
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from pyderp import ManualTLS, Relay, RelayConfig
from pyderp.addresses import IPAddress
from pyderp.errors import NameNotFound
from pyderp.mapio.online import lint_online
from pyderp.mapio.sources import MapWays
from pyderp.maps.derpmap import DERPMap
from pyderp.maps.lint import Finding
from pyderp.maps.region import DERPNode, DERPRegion
from pyderp.net.settings import NetworkSettings
from pyderp.net.tlscontext import TLSConfig
from tests.mapio.serving import serving
from tests.server.certificates import write_pair

DIRECT = NetworkSettings()
NAME = "relay.example.com"
NODE = 'Regions["900"].Nodes[0]'


async def only_ipv4(_host: str, family: socket.AddressFamily) -> list[IPAddress]:
    if family == socket.AF_INET6:
        raise NameNotFound("no such record")
    return [ipaddress.ip_address("127.0.0.1")]


async def both_families(_host: str, family: socket.AddressFamily) -> list[IPAddress]:
    return [ipaddress.ip_address("::1" if family == socket.AF_INET6 else "127.0.0.1")]


def map_of(*nodes: DERPNode) -> DERPMap:
    return DERPMap(regions={900: DERPRegion(region_id=900, nodes=nodes)})


def findings_of(config: RelayConfig, ways: MapWays, **changes: Any) -> list[Finding]:
    """Findings about a map with the node of a running relay and the changes of the test."""

    async def main() -> list[Finding]:
        async with Relay(config) as relay:
            node = relay.map_node
            assert node is not None
            return await lint_online(map_of(dataclasses.replace(node, **changes)), ways=ways)

    return asyncio.run(main())


def rules_and_places(found: list[Finding]) -> list[tuple[str, str]]:
    return [(finding.rule, finding.path) for finding in found]


@pytest.fixture
def pinned(tmp_path: Path) -> RelayConfig:
    return RelayConfig(tls=ManualTLS(certdir=tmp_path, hostname="127.0.0.1"), stun_port=0)


WAYS = MapWays(settings=DIRECT, timeout=20)


def test_a_healthy_relay_has_no_findings(pinned: RelayConfig) -> None:
    assert findings_of(pinned, WAYS) == []


def test_another_pin_is_found(pinned: RelayConfig) -> None:
    (finding,) = findings_of(pinned, WAYS, cert_name="sha256-raw:" + "ab" * 32)
    assert rules_and_places([finding]) == [("certificate", f"{NODE}.CertName")]
    assert "cert hash does not match" in finding.text


def test_a_name_that_the_certificate_is_not_for_is_found(tmp_path: Path) -> None:
    write_pair(tmp_path, NAME)
    trusted = TLSConfig(extra_roots=(tmp_path / f"{NAME}.crt",))
    ways = MapWays(settings=DIRECT, timeout=20, tls=trusted, resolver=only_ipv4)
    config = RelayConfig(tls=ManualTLS(certdir=tmp_path, hostname=NAME), stun_port=0)
    assert findings_of(config, ways) == []
    (finding,) = findings_of(config, ways, cert_name="other.example.com")
    assert rules_and_places([finding]) == [("certificate", f"{NODE}.CertName")]


def test_a_family_that_does_not_answer_is_found(tmp_path: Path) -> None:
    """The name has an address of each family, and the relay listens on one."""
    write_pair(tmp_path, NAME)
    trusted = TLSConfig(extra_roots=(tmp_path / f"{NAME}.crt",))
    ways = MapWays(settings=DIRECT, timeout=20, tls=trusted, resolver=both_families)
    tls = ManualTLS(certdir=tmp_path, hostname=NAME)
    (finding,) = findings_of(RelayConfig(tls=tls), ways)
    assert rules_and_places([finding]) == [("family-silent", f"{NODE}.HostName")]
    assert finding.text.startswith("IPv6 does not work: ::1 port ")
    assert finding.advice == "let the relay answer by IPv6, or write 'none' in IPv6"


@contextlib.contextmanager
def free_port() -> Iterator[int]:
    """A port that refuses connections: bound, so that no other process gets it."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        yield sock.getsockname()[1]


def test_a_port_without_a_server_is_found() -> None:
    with free_port() as port:
        node = DERPNode(
            name="a", region_id=900, host_name="127.0.0.1", derp_port=port, stun_port=-1
        )
        (finding,) = asyncio.run(lint_online(map_of(node), ways=WAYS))
    assert rules_and_places([finding]) == [("node-silent", f"{NODE}.HostName")]
    assert f"127.0.0.1 port {port}: " in finding.text


def test_stun_and_port_80_that_do_not_answer_are_found(
    pinned: RelayConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A client takes a refused port 80 for no captive portal."""
    with free_port() as port:
        monkeypatch.setattr("pyderp.mapio.online._HTTP", port)
        ways = dataclasses.replace(WAYS, timeout=1.0)
        found = findings_of(pinned, ways, stun_port=port, can_port_80=True, ipv4="127.0.0.1")
    assert rules_and_places(found) == [
        ("stun-silent", f"{NODE}.STUNPort"),
        ("port-80-silent", f"{NODE}.CanPort80"),
    ]
    assert "refused" in found[1].text
    assert "take that for" not in found[1].text


@pytest.mark.parametrize(
    "answer",
    [
        {"status": 404},
        {"status": 302, "headers": {"Location": "http://127.0.0.1:1/login"}},
        {"status": 200, "body": b"log in" * 10_000},
        {"status": 204},
        {"status": 204, "headers": {"X-Tailscale-Response": "response x"}},
    ],
)
def test_port_80_that_clients_take_for_a_captive_portal_is_found(
    pinned: RelayConfig, monkeypatch: pytest.MonkeyPatch, answer: dict[str, Any]
) -> None:
    with serving(**answer) as server:
        port = int(server.url.split(":")[2].removesuffix("/map"))
        monkeypatch.setattr("pyderp.mapio.online._HTTP", port)
        (finding,) = findings_of(pinned, WAYS, can_port_80=True, ipv4="127.0.0.1")
    assert rules_and_places([finding]) == [("port-80-captive", f"{NODE}.CanPort80")]
    assert "clients take that for a captive portal" in finding.text


def test_port_80_of_a_relay_is_fine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tls = ManualTLS(certdir=tmp_path, hostname="127.0.0.1", http_port=0)

    async def main() -> list[Finding]:
        async with Relay(RelayConfig(tls=tls, stun_port=0)) as relay:
            assert relay.http_address is not None
            assert relay.map_node is not None
            monkeypatch.setattr("pyderp.mapio.online._HTTP", relay.http_address[1])
            node = dataclasses.replace(relay.map_node, can_port_80=True, ipv4="127.0.0.1")
            return await lint_online(map_of(node), ways=WAYS)

    assert asyncio.run(main()) == []


def test_port_80_is_only_asked_at_the_ipv4_address_of_the_map(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As clients do: not by name, and not by IPv6."""
    write_pair(tmp_path, NAME)
    trusted = TLSConfig(extra_roots=(tmp_path / f"{NAME}.crt",))
    ways = MapWays(settings=DIRECT, timeout=20, tls=trusted, resolver=only_ipv4)
    config = RelayConfig(tls=ManualTLS(certdir=tmp_path, hostname=NAME), stun_port=0)
    with free_port() as port:
        monkeypatch.setattr("pyderp.mapio.online._HTTP", port)
        assert findings_of(config, ways, can_port_80=True) == []
        found = findings_of(config, ways, can_port_80=True, ipv4="127.0.0.1")
    assert rules_and_places(found) == [("port-80-silent", f"{NODE}.CanPort80")]


def test_a_right_pin_with_a_wrong_name_is_found(pinned: RelayConfig) -> None:
    """HostName does not match the certificate."""
    ways = dataclasses.replace(WAYS, resolver=only_ipv4)
    (finding,) = findings_of(
        pinned, ways, host_name="relay.example.org", ipv4="127.0.0.1", ipv6="none"
    )
    assert rules_and_places([finding]) == [("certificate", f"{NODE}.HostName")]
    assert "it is for 127.0.0.1" in finding.text
    assert finding.advice.startswith("write a name that the certificate is for")


def test_a_certificate_that_clients_do_not_trust_is_found(pinned: RelayConfig) -> None:
    (finding,) = findings_of(pinned, WAYS, cert_name="")
    assert rules_and_places([finding]) == [("certificate", f"{NODE}.HostName")]
    assert "its pin in CertName" in finding.advice


def test_a_machine_without_any_route_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """Hints alone would look as if all were well."""
    monkeypatch.setattr("pyderp.mapio.online._has_route", lambda _address: False)
    nodes = [DERPNode(name=n, region_id=900, host_name=n, ipv4="192.0.2.1") for n in "ab"]

    async def unroutable(_host: str, _family: socket.AddressFamily) -> list[IPAddress]:
        return [ipaddress.ip_address("2001:db8::1")]

    ways = dataclasses.replace(WAYS, resolver=unroutable)
    found = asyncio.run(lint_online(map_of(*nodes), ways=ways))
    assert [f.rule for f in found if f.rule != "not-tried"] == ["nothing-tried"]
    assert len(found) == 5


def test_a_name_without_an_address_is_found() -> None:
    async def none(_host: str, _family: socket.AddressFamily) -> list[IPAddress]:
        raise NameNotFound("no such name")

    node = DERPNode(name="a", region_id=900, host_name=NAME)
    found = asyncio.run(lint_online(map_of(node), ways=dataclasses.replace(WAYS, resolver=none)))
    assert rules_and_places(found) == [("node-silent", f"{NODE}.HostName")]
    assert "has no address" in found[0].text


def test_a_relay_that_never_answers_is_bounded_in_time() -> None:
    """It accepts the connection and stays silent."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        node = DERPNode(
            name="a", region_id=900, host_name="127.0.0.1", derp_port=port, stun_port=-1
        )
        ways = dataclasses.replace(WAYS, timeout=0.2)
        (finding,) = asyncio.run(lint_online(map_of(node), ways=ways))
    assert finding.text.endswith(f"127.0.0.1 port {port}: no answer within 0.2 s")


def test_progress_is_reported_for_each_node() -> None:
    with free_port() as port:
        nodes = [
            DERPNode(
                name=f"{n}", region_id=900, host_name="127.0.0.1", derp_port=port, stun_port=-1
            )
            for n in range(100)
        ]
        seen: list[tuple[int, int, str]] = []

        def on_progress(done: int, total: int, found: Sequence[Finding]) -> None:
            seen.extend((done, total, finding.path) for finding in found)

        found = asyncio.run(lint_online(map_of(*nodes), ways=WAYS, on_progress=on_progress))
    assert [(done, total) for done, total, _ in seen] == [(n, 100) for n in range(1, 101)]
    assert sorted(path for _, _, path in seen) == sorted(finding.path for finding in found)
