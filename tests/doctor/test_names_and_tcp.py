"""Groups `names` and `tcp`: families, addresses in the map, and addresses that do not answer."""

from __future__ import annotations

import asyncio
import errno
import socket
from typing import Any

import pytest

from pyderp import Relay
from pyderp.doctor.examination import Region
from pyderp.doctor.target import Single, regions_of, relay_region
from pyderp.doctor.visit import Settings
from pyderp.maps.derpmap import DERPMap

from .support import (
    FAIL,
    OK,
    SKIP,
    SOON,
    WARN,
    look,
    no_network,
    resolving,
    results,
    run,
    with_node,
)

NAME = "derp.example"
BOTH = ["127.0.0.1", "::1"]


def region(port: int = 1, **node: Any) -> Region:
    return with_node(relay_region(f"http://{NAME}:{port}", Single(stun_port=-1)), **node)


def settings(*addresses: str, timeout: float = SOON) -> Settings:
    return no_network(resolver=resolving(derp_example=addresses), timeout=timeout)


def test_each_family_is_looked_up() -> None:
    async def main() -> None:
        found = await look(region(), settings(*BOTH))
        assert (found["names.ipv4"].seen.text, found["names.ipv6"].seen.text) == tuple(BOTH)
        assert found["names.any"].result is OK

    run(main())


def test_ipv6_alone_is_a_warning_and_ipv4_alone_is_not() -> None:
    async def main() -> None:
        six = await look(region(), settings("::1"))
        assert (six["names.ipv4"].result, six["names.any"].result) == (SKIP, WARN)
        four = await look(region(), settings("127.0.0.1"))
        assert (four["names.ipv6"].result, four["names.any"].result) == (SKIP, OK)

    run(main())


def test_an_unknown_name_fails_and_later_checks_are_skipped() -> None:
    async def main() -> None:
        found = await look(region(), settings())
        assert found["names.any"].result is FAIL
        assert NAME in found["names.any"].seen.text
        others = {result for name, result in results(found).items() if name != "names.any"}
        assert others == {"skip"}

    run(main())


def test_a_failing_name_server_is_not_an_unknown_name() -> None:
    async def main() -> None:
        broken = socket.gaierror(socket.EAI_AGAIN, "Temporary failure in name resolution")
        found = await look(region(), no_network(resolver=resolving(derp_example=broken)))
        for family in ("names.ipv4", "names.ipv6"):
            assert found[family].result is FAIL
            assert "name server" in found[family].seen.advice

    run(main())


def test_a_name_server_that_hangs_delays_its_family_only() -> None:
    async def resolve(host: str, family: socket.AddressFamily) -> list[object]:
        if family == socket.AF_INET6:
            await asyncio.Event().wait()
        return await resolving(derp_example=["127.0.0.1"])(host, family)  # type: ignore[no-any-return]

    async def main() -> None:
        async with Relay() as relay:
            slow = no_network(resolver=resolve, timeout=3)
            found = await look(region(relay.address[1]), slow)
        assert found["names.ipv6"].result is FAIL
        assert "not finished within 3 s" in found["names.ipv6"].seen.text
        assert found["tcp.ipv4"].result is OK
        assert found["tcp.any"].seen.text == "1 of 1 address answers"

    run(main())


@pytest.mark.parametrize(
    ("fields", "check", "result", "text"),
    [
        ({"ipv4": "127.0.0.1"}, "names.ipv4", OK, "127.0.0.1, from the map"),
        (
            {"ipv4": "127.0.0.9"},
            "names.ipv4",
            WARN,
            "127.0.0.9, from the map, but DNS has 127.0.0.1",
        ),
        ({"ipv6": "none"}, "names.ipv6", SKIP, "switched off in the map: IPv6 is none"),
        ({"ipv6": "nothing"}, "names.ipv6", WARN, "IPv6 is 'nothing'"),
        ({"ipv4": "::1"}, "names.ipv4", WARN, "IPv4 is '::1'"),
        ({"ipv4": "none", "ipv6": "none"}, "names.any", FAIL, "no address"),
    ],
)
def test_addresses_of_the_map_are_used(
    fields: dict[str, Any], check: str, result: object, text: str
) -> None:
    async def main() -> None:
        found = await look(region(**fields), settings("127.0.0.1"))
        assert found[check].result is result
        assert text in found[check].seen.text

    run(main())


def test_an_address_that_refuses_is_a_failure_and_the_others_are_used() -> None:
    """Each address of a name must work, as clients use any of them."""

    async def main() -> None:
        async with Relay() as relay:
            found = await look(region(relay.address[1]), settings("127.0.0.1", "127.0.0.9"))
        assert found["tcp.ipv4"].result is FAIL
        assert found["tcp.ipv4"].seen.text.startswith("1 of 2 addresses: connect to 127.0.0.9:")
        assert "nothing listens" in found["tcp.ipv4"].seen.advice
        assert found["relay.packet"].result is OK

    run(main())


def test_an_address_that_drops_packets_times_out() -> None:
    """A listener whose queue is full does not answer."""

    async def main() -> None:
        with socket.socket() as full, socket.socket() as other:
            full.bind(("127.0.0.1", 0))
            full.listen(0)
            other.setblocking(False)
            other.connect_ex(full.getsockname())
            with socket.socket() as third:
                third.setblocking(False)
                third.connect_ex(full.getsockname())
                found = await look(region(full.getsockname()[1]), settings("127.0.0.1"))
        assert found["tcp.ipv4"].result is FAIL
        assert "no answer within" in found["tcp.ipv4"].seen.text

    run(main())


def test_a_machine_without_any_network_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each family may be missing, but not both."""

    async def main() -> None:
        async def no_way(sock: socket.socket, address: tuple[str, int]) -> None:
            raise OSError(errno.ENETUNREACH, "Network is unreachable")

        monkeypatch.setattr(asyncio.get_running_loop(), "sock_connect", no_way)
        found = await look(region(), settings(*BOTH))
        assert (found["tcp.ipv4"].result, found["tcp.ipv6"].result) == (SKIP, SKIP)
        assert found["tcp.any"].result is FAIL
        assert "no route to any address" in found["tcp.any"].seen.text

    run(main())


def test_a_machine_without_the_family_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        loop = asyncio.get_running_loop()
        connect = loop.sock_connect

        async def no_ipv6(sock: socket.socket, address: tuple[str, int]) -> None:
            if sock.family == socket.AF_INET6:
                raise OSError(errno.ENETUNREACH, "Network is unreachable")
            await connect(sock, address)

        monkeypatch.setattr(loop, "sock_connect", no_ipv6)
        async with Relay() as relay:
            found = await look(region(relay.address[1]), settings(*BOTH))
        assert (found["tcp.ipv4"].result, found["tcp.ipv6"].result) == (OK, SKIP)
        assert "this machine has no IPv6" in found["tcp.ipv6"].seen.text

    run(main())


@pytest.mark.parametrize("port", [-5, 70_000])
def test_an_invalid_port_in_the_map_fails(port: int) -> None:
    async def main() -> None:
        node = {"Name": "900a", "RegionID": 900, "HostName": "127.0.0.1", "DERPPort": port}
        region = {"RegionID": 900, "Nodes": [node | {"STUNPort": -1}]}
        derp_map = DERPMap.from_json({"Regions": {"900": region}})
        (made,) = regions_of(derp_map, None, http_port=1)
        found = await look(made)
        assert found["tcp.ipv4"].result is FAIL
        assert found["tcp.ipv4"].seen.text == f"DERPPort {port} is not a port number"
        assert found["tcp.ipv4"].seen.advice == "correct the map"

    run(main())
