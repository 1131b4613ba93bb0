"""The shell: real sockets on loopback, names, limits, and no leftovers."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from ipaddress import ip_address
from pathlib import Path
from typing import Any, TypeAlias

import pytest

from pyderp.addresses import IPAddress
from pyderp.errors import ConfigError, NameNotFound, RemoteProtocolError
from pyderp.maps.derpmap import DERPMap
from pyderp.net.link import link_over_socket
from pyderp.net.settings import NetworkSettings
from pyderp.netcheck import shell
from pyderp.netcheck.checker import Netcheck
from pyderp.netcheck.config import NetcheckConfig
from pyderp.netcheck.latency import exchange
from pyderp.netcheck.report import Way
from pyderp.server.services.stun import StunServer, stun_sockets
from tests.server.certificates import write_pair
from tests.server.ways import NAME

from .maps import map_of, node, region

Run: TypeAlias = Callable[[Coroutine[Any, Any, None]], None]


@contextlib.asynccontextmanager
async def stun_server() -> AsyncIterator[int]:
    server = StunServer(stun_sockets("127.0.0.1", 0))
    server.start()
    try:
        yield server.addresses[0][1]
    finally:
        await server.aclose()


def local(number: int, port: int, **more: Any) -> DERPMap:
    values: dict[str, Any] = {"ipv4": "127.0.0.1", "ipv6": "none"}
    values |= {"stun_port": port, "stun_only": True}
    return map_of(region(number, node(number, **(values | more))))


async def test_one_server_on_loopback_is_measured() -> None:
    """Go's TestBasic, and the second run, which is incremental."""
    async with stun_server() as port, Netcheck(NetcheckConfig(only_stun=True)) as check:
        derp_map = local(1, port)
        for _ in range(2):
            report = await check.run(derp_map)
            assert report.udp
            assert report.ipv4
            assert report.now > 0
            assert set(report.region_latency) == {1}
            assert report.preferred_derp == 1
            assert list(report.global_v4_counters) == [report.global_v4]
            assert report.global_v4.startswith("127.0.0.1:")
        assert check.history.home == 1


async def test_names_are_looked_up_once_a_family() -> None:
    """Go's TestNodeAddrResolve: a host with IPv4 only has no IPv6."""
    asked: list[tuple[str, socket.AddressFamily]] = []

    async def resolver(host: str, family: socket.AddressFamily) -> Sequence[IPAddress]:
        asked.append((host, family))
        if family == socket.AF_INET6:
            raise NameNotFound(host)
        return [ip_address("127.0.0.1")]

    config = NetcheckConfig(only_stun=True, resolver=resolver)
    async with stun_server() as port, Netcheck(config) as check:
        # A test node is asked on a host with any addresses.
        derp_map = map_of(
            region(1, node(1, ipv4="", ipv6="", stun_port=port)),
            region(2, node(2, ipv4="127.0.0.1", ipv6="", stun_port=port)),
        )
        report = await check.run(derp_map)
        assert 2 in report.region_latency
        assert not report.ipv6
        assert len(asked) == len(set(asked))
        assert ("derp2a.example.com", socket.AF_INET6) in asked


async def test_ten_thousand_names_that_hang_take_few_threads(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The run ends in its time, and its look-ups are cancelled."""
    hanging = most = 0

    async def resolver(_host: str, _family: socket.AddressFamily) -> Sequence[IPAddress]:
        nonlocal hanging, most
        hanging += 1
        most = max(most, hanging)
        try:
            await asyncio.Event().wait()
        finally:
            hanging -= 1
        raise AssertionError

    derp_map = map_of(
        *(
            region(n, node(1, name=f"{n}a", region_id=n, host_name=f"h{n}", ipv4="", ipv6=""))
            for n in range(1, 10_001)
        )
    )
    config = NetcheckConfig(only_stun=True, resolver=resolver)
    async with Netcheck(config) as check:
        report = await check.run(derp_map)
    assert not report.udp
    assert hanging == 0
    assert asyncio.all_tasks() == {asyncio.current_task()}
    # Without any address of this host no relay is asked.
    assert most <= shell.LOOKUPS


async def test_ten_thousand_servers_are_measured() -> None:
    async with stun_server() as port, Netcheck(NetcheckConfig(only_stun=True)) as check:
        values: dict[str, Any] = {"ipv4": "127.0.0.1", "ipv6": "none", "stun_port": port}
        derp_map = map_of(
            *(region(n, node(1, name=f"{n}a", region_id=n, **values)) for n in range(1, 10_001))
        )
        report = await check.run(derp_map)
        assert len(report.region_latency) >= 3


async def test_cancelling_leaves_nothing_and_keeps_what_was_measured() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as silent:
        silent.bind(("127.0.0.1", 0))
        async with stun_server() as port, Netcheck() as check:
            answered = asyncio.Event()
            check.on_progress = lambda _: answered.set()
            derp_map = DERPMap(
                regions={
                    **local(1, port).regions,
                    **local(2, silent.getsockname()[1]).regions,
                }
            )
            running = asyncio.create_task(check.run(derp_map))
            await answered.wait()
            with pytest.raises(RuntimeError, match="under way"):
                await check.run(derp_map)
            running.cancel()
            with pytest.raises(asyncio.CancelledError):
                await running
            assert asyncio.all_tasks() == {asyncio.current_task()}
            partial = check.partial_report()
            assert partial is not None
            assert set(partial.region_latency) == {1}


@pytest.mark.parametrize(
    ("values", "text"),
    [
        ({"only_stun": True, "only_tcp_443": True}, "exclude each other"),
        ({"bind_host": "example.com"}, 'invalid bind address: "example.com"'),
        ({"bind_port": 65536}, "invalid bind port number: 65536"),
        ({"bind_port": -1}, "invalid bind port number: -1"),
    ],
)
def test_unusable_settings_are_refused(values: dict[str, Any], text: str) -> None:
    with pytest.raises(ConfigError, match=text):
        NetcheckConfig(**values)


async def test_an_address_that_cannot_be_bound_is_an_error() -> None:
    with pytest.raises(ConfigError, match=r"cannot bind UDP to 192\.0\.2\.77:0"):
        async with Netcheck(NetcheckConfig(bind_host="192.0.2.77")):
            pass


@pytest.mark.parametrize(
    "answer",
    [
        pytest.param(b"", id="nothing"),
        pytest.param(b"SSH-2.0-OpenSSH\r\n", id="another_protocol"),
        pytest.param(b"HTTP/1.1 200 OK\r\n" + b"X: y\r\n" * 100_000, id="endless_head"),
        pytest.param(b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nx", id="cut_short"),
    ],
)
async def test_a_hostile_http_server_is_an_error(answer: bytes) -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        with contextlib.suppress(OSError):
            writer.write(answer)
            await writer.drain()
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    sock = socket.create_connection(server.sockets[0].getsockname())
    sock.setblocking(False)
    link = await link_over_socket(sock)
    with pytest.raises((RemoteProtocolError, ConnectionError)):
        await exchange(link, "127.0.0.1", "/")
    link.abort()
    server.close()
    await server.wait_closed()


@contextlib.asynccontextmanager
async def https_server(directory: Path, answer: bytes) -> AsyncIterator[DERPMap]:
    """A TLS server with one answer to every request, and a map of it."""
    write_pair(directory, NAME)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(directory / f"{NAME}.crt", directory / f"{NAME}.key")
    writers: list[asyncio.StreamWriter] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writers.append(writer)
        with contextlib.suppress(OSError, asyncio.IncompleteReadError):
            await reader.readuntil(b"\r\n\r\n")
            writer.write(answer)
            await writer.drain()
            await reader.read()

    server = await asyncio.start_server(serve, "127.0.0.1", 0, ssl=context)
    port = server.sockets[0].getsockname()[1]
    values: dict[str, Any] = {"ipv4": "127.0.0.1", "ipv6": "none", "derp_port": port}
    try:
        yield map_of(region(1, node(1, insecure_for_tests=True, **values)))
    finally:
        for writer in writers:
            writer.transport.abort()
        server.close()
        await server.wait_closed()


ONLY_HTTPS = NetcheckConfig(only_tcp_443=True, network=NetworkSettings())


def test_latency_is_measured_over_https(tmp_path: Path) -> None:
    async def main() -> None:
        answer = b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"
        async with https_server(tmp_path, answer) as derp_map, Netcheck(ONLY_HTTPS) as check:
            report = await check.run(derp_map)
        assert set(report.region_latency) == {1}
        assert report.ways == {1: {Way.HTTPS}}
        assert report.ipv4
        assert not report.udp
        assert report.preferred_derp == 1

    asyncio.run(main())


def test_a_relay_that_cannot_be_reached_has_a_note() -> None:
    """With region and reason, without names of Go's functions."""

    async def main() -> None:
        with socket.socket() as closed:
            closed.bind(("127.0.0.1", 0))
            derp_map = local(1, 0, stun_only=False, derp_port=closed.getsockname()[1])
            async with Netcheck(ONLY_HTTPS) as check:
                report = await check.run(derp_map)
        (note,) = report.notes
        assert note.startswith("HTTPS to region r1: ")
        assert "refused" in note
        assert "dialRegion" not in note

    asyncio.run(main())


@pytest.mark.parametrize(
    ("answer", "note"),
    [
        pytest.param(b"", "stopped after 5 s: regions that had not answered", id="silence"),
        pytest.param(b"\0" * 100_000, "HTTPS to region r1: the answer is not HTTP: ", id="junk"),
        pytest.param(
            b"HTTP/1.1 200 OK\r\n" + b"X: y\r\n" * 100_000,
            "HTTPS to region r1: the answer is not HTTP: its head does not end",
            id="endless_head",
        ),
        pytest.param(
            b"HTTP/1.1 500 No\r\nContent-Length: 0\r\n\r\n",
            "HTTPS to region r1: /derp/latency-check is answered with 500",
            id="error",
        ),
    ],
)
def test_a_hostile_relay_has_no_latency(tmp_path: Path, answer: bytes, note: str) -> None:
    """The run ends in its time, and its notes name the error."""

    async def main() -> None:
        async with https_server(tmp_path, answer) as derp_map, Netcheck(ONLY_HTTPS) as check:
            report = await check.run(derp_map)
        assert report.region_latency == {}
        assert report.preferred_derp == 0
        (note_text,) = report.notes
        assert note_text.startswith(note)

    asyncio.run(main())
