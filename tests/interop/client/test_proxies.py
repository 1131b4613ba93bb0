"""Clients behind real proxies: tinyproxy (CONNECT) and microsocks (SOCKS5), with passwords."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import replace

import pytest

from pyderp import Client, ConnectError, NetworkSettings, ProxyError
from pyderp.net.websocket import WebSocketLink
from tests.interop.relays import KINDS, Kind, Relay, Setup, running

from .programs import PASSWORD, USER, Program, microsocks, tinyproxy
from .support import (
    EACH_KIND_ONCE,
    GetRelay,
    clients,
    config,
    deliver,
    node,
    plain_region,
    region,
    url,
)

pytestmark = EACH_KIND_ONCE

NAME = "derp.example"
"""Resolved by the proxies only, to 127.0.0.1; loopback itself is never reached by proxy."""

Relays = dict[tuple[Kind, Setup], Relay]


@pytest.fixture(scope="module")
def named(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Relays]:
    """Relays whose certificates are for `NAME`, and without TLS."""
    with ExitStack() as stack:
        found: Relays = {}
        for kind in KINDS:
            for setup in ("named", "plain"):
                directory = tmp_path_factory.mktemp(f"{kind}-{setup}")
                found[kind, setup] = stack.enter_context(
                    running(kind, setup, directory, hostname=NAME)
                )
        yield found


@pytest.fixture(scope="module")
def http_proxy(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Program]:
    with tinyproxy(tmp_path_factory.mktemp("tinyproxy"), [NAME]) as program:
        yield program


@pytest.fixture(scope="module")
def socks_proxy(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Program]:
    with microsocks(tmp_path_factory.mktemp("microsocks"), [NAME]) as program:
        yield program


def http(program: Program, password: str = PASSWORD) -> str:
    return f"http://{USER}:{password}@127.0.0.1:{program.port}"


def socks(program: Program, password: str = PASSWORD) -> str:
    return f"socks5://{USER}:{password}@127.0.0.1:{program.port}"


def by_region(relay: Relay, network: NetworkSettings | None, *, ipv4: str = "") -> Client:
    if network is not None and relay.setup == "plain":
        network = replace(network, use_derp_http=True)
    there = node(relay, host_name=NAME, ipv4=ipv4)
    return Client.for_region(region(there), config=config(relay, network=network))


def by_url(relay: Relay, network: NetworkSettings, *, websocket: bool = False) -> Client:
    scheme = "http" if relay.setup == "plain" else "https"
    settings = config(relay, network=network, websocket=websocket)
    return Client.for_url(f"{scheme}://{NAME}:{relay.port}/derp", config=settings)


def directly(relay: Relay) -> Client:
    network = plain_region() if relay.setup == "plain" else NetworkSettings()
    return by_region(relay, network, ipv4=relay.address)


async def works(client: Client, other: Client) -> None:
    async with clients(client, other):
        await deliver(client, other, bytes(40_000))
        await deliver(other, client, bytes(40_000))
        assert await client.ping() < 5


def connects(program: Program, relay: Relay) -> int:
    """How often tinyproxy was asked to connect to the relay by name."""
    return program.log_text().count(f"CONNECT {NAME}:{relay.port} HTTP/1.1")


def socks_connects(program: Program, relay: Relay, host: str = NAME) -> int:
    return program.log_text().count(f"connected to {host}:{relay.port}")


def requests(http_proxy: Program, socks_proxy: Program) -> tuple[int, int]:
    """How many requests each got; what it logs about their ends may come later."""
    return http_proxy.log_text().count("CONNECT "), socks_proxy.log_text().count("connected to ")


@pytest.mark.parametrize("setup", ["named", "plain"])
@pytest.mark.parametrize("address", ["", "192.0.2.1"], ids=["by_name", "address_of_its_own"])
async def test_a_region_is_reached_by_https_proxy(
    kind: Kind, setup: Setup, address: str, named: Relays, http_proxy: Program
) -> None:
    """HTTPS_PROXY gets name and `DERPPort` of a node, also without TLS; never its address."""
    relay = named[kind, setup]
    network = NetworkSettings(https_proxy=http(http_proxy))
    before = connects(http_proxy, relay)
    await works(by_region(relay, network, ipv4=address), directly(relay))
    assert connects(http_proxy, relay) == before + 1


async def test_proxies_of_the_environment_are_used(
    kind: Kind, named: Relays, http_proxy: Program, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A client without settings of its own reads the environment."""
    relay = named[kind, "named"]
    for name in ("https_proxy", "no_proxy", "NO_PROXY", "ALL_PROXY", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HTTPS_PROXY", http(http_proxy))
    before = connects(http_proxy, relay)
    await works(by_region(relay, None), directly(relay))
    assert connects(http_proxy, relay) == before + 1


@pytest.mark.parametrize("exempt", [NAME, ".example", "*"])
async def test_hosts_in_no_proxy_are_reached_directly(
    kind: Kind, exempt: str, named: Relays, http_proxy: Program, socks_proxy: Program
) -> None:
    relay = named[kind, "named"]
    network = NetworkSettings(
        https_proxy=http(http_proxy), all_proxy=socks(socks_proxy), no_proxy=exempt
    )
    before = requests(http_proxy, socks_proxy)
    await works(by_region(relay, network, ipv4=relay.address), directly(relay))
    assert requests(http_proxy, socks_proxy) == before


async def test_loopback_is_never_reached_by_proxy(kind: Kind, relays: GetRelay) -> None:
    """Proxies of the environment do not apply to `localhost`: these would not even answer."""
    relay = relays(kind, "named")
    network = NetworkSettings(https_proxy="http://127.0.0.1:1", all_proxy="socks5://127.0.0.1:1")
    settings = config(relay, network=network)
    by_node = Client.for_region(region(node(relay)), config=settings)
    await works(by_node, Client.for_url(url(relay), config=settings))


@pytest.mark.parametrize("way", ["region", "url"])
@pytest.mark.parametrize("scheme", ["http", "socks5"])
async def test_a_wrong_password_is_refused_and_not_shown(
    kind: Kind,
    scheme: str,
    way: str,
    named: Relays,
    http_proxy: Program,
    socks_proxy: Program,
) -> None:
    """The error has the proxy's refusal, and neither user nor password."""
    relay = named[kind, "named"]
    wrong = "pa55word"
    proxy = http(http_proxy, wrong) if scheme == "http" else socks(socks_proxy, wrong)
    network = NetworkSettings(proxy=proxy)

    make = by_region if way == "region" else by_url
    async with make(relay, network) as client:
        with pytest.raises(ConnectError) as caught:
            await client.connect()
    (error,) = caught.value.attempts
    assert isinstance(error, ProxyError)
    if scheme == "http":
        # 407 would be right; tinyproxy sends it only when there is no password at all.
        assert f"on CONNECT to {NAME}:{relay.port}: 401" in str(error)
    for text in (
        str(caught.value),
        str(error),
        repr(error),
        repr(error.__cause__),
        str(client),
    ):
        assert wrong not in text
        assert USER not in text
    assert "***@127.0.0.1" in str(error)


@pytest.mark.parametrize("setup", ["named", "plain"])
@pytest.mark.parametrize("way", ["region", "url"])
async def test_all_proxy_carries_regions_and_urls(
    kind: Kind, setup: Setup, way: str, named: Relays, socks_proxy: Program
) -> None:
    """It resolves their names."""
    relay = named[kind, setup]
    network = NetworkSettings(all_proxy=socks(socks_proxy))
    make = by_region if way == "region" else by_url
    before = socks_connects(socks_proxy, relay)
    await works(make(relay, network), directly(relay))
    assert socks_connects(socks_proxy, relay) == before + 1


async def test_all_proxy_gets_the_address_of_a_node(
    kind: Kind, named: Relays, socks_proxy: Program
) -> None:
    """Unlike a CONNECT proxy, a SOCKS5 proxy is asked for the node's own address."""
    relay = named[kind, "named"]
    network = NetworkSettings(all_proxy=socks(socks_proxy), https_proxy="")
    # One that is not loopback, which would be exempt, and still ends on this machine.
    await works(by_region(relay, network, ipv4="0.0.0.0"), directly(relay))
    assert socks_connects(socks_proxy, relay, "0.0.0.0")


@pytest.mark.parametrize(
    ("scheme", "setup", "websocket"),
    [
        ("http", "named", False),
        ("http", "named", True),
        ("http", "plain", True),
        ("socks5", "named", False),
        ("socks5", "plain", True),
    ],
)
async def test_an_explicit_proxy_is_used_for_urls(
    kind: Kind,
    scheme: str,
    setup: Setup,
    websocket: bool,
    named: Relays,
    http_proxy: Program,
    socks_proxy: Program,
) -> None:
    """For any scheme."""
    relay = named[kind, setup]
    count, program, proxy = (
        (connects, http_proxy, http(http_proxy))
        if scheme == "http"
        else (socks_connects, socks_proxy, socks(socks_proxy))
    )
    before = count(program, relay)
    client = by_url(relay, NetworkSettings(proxy=proxy, no_proxy="*"), websocket=websocket)
    await works(client, directly(relay))
    assert count(program, relay) == before + 1


@pytest.mark.parametrize("setup", ["named", "plain"])
async def test_a_websocket_uses_the_proxy_of_its_scheme(
    kind: Kind, setup: Setup, named: Relays, http_proxy: Program
) -> None:
    """HTTP_PROXY is for ws, and HTTPS_PROXY for wss; the other one would not answer."""
    relay = named[kind, setup]
    dead = "http://127.0.0.1:1"
    network = NetworkSettings(http_proxy=http(http_proxy), https_proxy=dead)
    if setup == "named":
        network = NetworkSettings(http_proxy=dead, https_proxy=http(http_proxy))
    before = connects(http_proxy, relay)

    client = by_url(relay, network, websocket=True)
    async with client:
        await client.connect()
        assert isinstance(client._life.require().link, WebSocketLink)
        await works(client, directly(relay))
    assert connects(http_proxy, relay) == before + 1


async def test_urls_do_not_use_https_proxy(kind: Kind, relays: GetRelay, named: Relays) -> None:
    """Without a websocket, HTTPS_PROXY is for regions only: the client resolves the name."""
    relay = named[kind, "named"]
    network = NetworkSettings(https_proxy="http://127.0.0.1:1")

    async with by_url(relay, network) as client:
        with pytest.raises(ConnectError, match=f"{NAME}:[0-9]+/derp: look-up: "):
            await client.connect()
