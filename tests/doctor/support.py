"""Run checks against relays and networks of the tests, and look at the findings."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass, replace
from ipaddress import ip_address
from pathlib import Path
from typing import Any

from pyderp import ManualTLS, NetworkSettings, Relay, RelayConfig
from pyderp.addresses import IPAddress
from pyderp.doctor.examination import Examination, Region
from pyderp.doctor.finding import Finding, Result
from pyderp.doctor.target import Single, relay_region
from pyderp.doctor.visit import Settings, Subject
from pyderp.net.tls import TLSConfig
from tests.interop.certificates import write_localhost

OK, WARN, FAIL, SKIP = Result.OK, Result.WARN, Result.FAIL, Result.SKIP
BOUND = 30.0
LIMIT = 20.0
"""Seconds for a check that is to end by itself, on a busy machine."""
SOON = 0.5
"""Seconds for a check that is to time out."""

Handler = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]
Found = dict[str, Finding]


def run(main: Coroutine[Any, Any, None]) -> None:
    """Run a coroutine; an error that only the loop caught fails the test."""
    caught: list[dict[str, Any]] = []

    async def bounded() -> None:
        asyncio.get_running_loop().set_exception_handler(lambda _, context: caught.append(context))
        async with asyncio.timeout(BOUND):
            await main

    asyncio.run(bounded())
    assert not caught


def no_network(**more: Any) -> Settings:
    """Settings without those of the environment."""
    return Settings(**{"timeout": LIMIT, "idle": 0.2, "network": NetworkSettings(), **more})


async def look(
    region: Region,
    settings: Settings | None = None,
    *,
    then: Mapping[str, Callable[[], object]] | None = None,
) -> Found:
    """All findings about the nodes of a region; names of checks must not repeat.

    Args:
        then: what to do once a check has ended, before those that come after it.
    """
    found: Found = {}

    def report(finding: Finding) -> None:
        assert finding.check not in found
        found[finding.check] = finding
        if then is not None and finding.check in then:
            then[finding.check]()

    examination = Examination([region], settings or no_network())
    await examination.run(report)
    assert sorted(found) == sorted(check for _, check in examination.plan())
    return found


async def look_at(url: str, settings: Settings | None = None, **single: Any) -> Found:
    """All findings about one relay, by default without STUN."""
    return await look(relay_region(url, Single(**{"stun_port": -1, **single})), settings)


def results(found: Found, group: str = "") -> dict[str, str]:
    """Results by check, of one group or of all."""
    return {name: f.result.value for name, f in found.items() if name.startswith(group)}


def troubles(found: Found) -> list[str]:
    """The checks that warn or fail."""
    return sorted(name for name, f in found.items() if f.result in (WARN, FAIL))


def assert_fine(found: Found) -> None:
    """Check that nothing warns or fails."""
    assert not troubles(found), [found[name].seen for name in troubles(found)]


def resolving(**names: Sequence[str] | Exception) -> Any:
    """A resolver of these names, where `_` stands for a dot, and of `localhost`."""
    known = {name.replace("_", "."): value for name, value in names.items()}

    async def resolve(host: str, family: socket.AddressFamily) -> list[IPAddress]:
        value = known.get(host)
        if isinstance(value, Exception):
            raise value
        if value is None:
            raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
        wanted = {socket.AF_INET: (4,), socket.AF_INET6: (6,)}.get(family, (4, 6))
        return [ip for ip in map(ip_address, value) if ip.version in wanted]

    return resolve


LOCALHOST = resolving(localhost=["127.0.0.1"])


@dataclass(frozen=True)
class TLSFiles:
    """A certificate for `localhost`, and how both sides use it."""

    directory: Path
    ca: Path

    @property
    def relay(self) -> ManualTLS:
        return ManualTLS(certdir=self.directory, hostname="localhost")

    def settings(self, **more: Any) -> Settings:
        """Settings that trust the certificate and resolve the name."""
        trust = TLSConfig(system_roots=False, builtin_roots=False, extra_roots=(self.ca,))
        return no_network(**{"tls": trust, "resolver": LOCALHOST, **more})

    def server(self) -> ssl.SSLContext:
        """The context of a server that is not a relay."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(self.ca, self.directory / "localhost.key")
        return context


def tls_files(directory: Path) -> TLSFiles:
    """Make them."""
    return TLSFiles(directory, write_localhost(directory))


@contextlib.asynccontextmanager
async def tls_relay(files: TLSFiles, **config: Any) -> AsyncIterator[tuple[Relay, str]]:
    """A relay with TLS, and its URL."""
    async with Relay(RelayConfig(tls=files.relay, **config)) as relay:
        yield relay, f"https://localhost:{relay.address[1]}/derp"


@contextlib.asynccontextmanager
async def serving(handle: Handler, *, tls: ssl.SSLContext | None = None) -> AsyncIterator[int]:
    """A server on 127.0.0.1 that handles each connection with the function; yields its port."""
    running: set[asyncio.Task[None]] = set()

    async def on_connection(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        running.add(task)
        try:
            with contextlib.suppress(OSError, asyncio.IncompleteReadError):
                await handle(reader, writer)
        except asyncio.CancelledError:
            pass  # or asyncio would report it
        finally:
            running.discard(task)
            writer.transport.abort()

    server = await asyncio.start_server(on_connection, "127.0.0.1", 0, ssl=tls)
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        server.close()
        for task in running:
            task.cancel()
        if running:
            await asyncio.wait(running)


async def head_of(reader: asyncio.StreamReader) -> str:
    """A request's head."""
    return (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")


def front(
    port: int,
    answer: Callable[[str], bytes | None] = lambda _: None,
    change: Callable[[str], str] = lambda head: head,
) -> Handler:
    """A proxy in front of a relay.

    Args:
        port: of the relay, without TLS.
        answer: its own answer to a request's head; `None`: it passes the head on.
        change: the head that it passes on instead.
    """

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await head_of(reader)
        own = answer(head)
        if own is not None:
            writer.write(own)
            await writer.drain()
            writer.close()
            await writer.wait_closed()
            return
        inner_reader, inner_writer = await asyncio.open_connection("127.0.0.1", port)
        inner_writer.write(change(head).encode("latin-1"))
        try:
            await asyncio.gather(_pump(reader, inner_writer), _pump(inner_reader, writer))
        finally:
            inner_writer.transport.abort()

    return handle


async def _pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while data := await reader.read(65536):
        writer.write(data)
        await writer.drain()
    writer.close()


def page(status: str, body: str = "", *headers: str) -> bytes:
    """An answer over HTTP."""
    lines = [f"HTTP/1.1 {status}", f"Content-Length: {len(body)}", "Connection: close", *headers]
    return ("\r\n".join(lines) + f"\r\n\r\n{body}").encode()


def headscale(port: int) -> Handler:
    """Like headscale's embedded relay: TLS of the control server, no /generate_204, no mesh."""

    def answer(head: str) -> bytes | None:
        path = head.split(" ")[1].partition("?")[0]
        known = path in ("/derp", "/derp/probe", "/derp/latency-check")
        return None if known else page("404 Not Found", "404 page not found")

    return front(port, answer)


def hyper_derp(port: int) -> Handler:
    """Like Hyper-DERP's relay: the upgrade to DERP and the probe only."""

    def answer(head: str) -> bytes | None:
        path = head.split(" ")[1].partition("?")[0]
        if path == "/derp/latency-check":
            return page("200 OK", "", "Access-Control-Allow-Origin: *")
        if path != "/derp" or "websocket" in head.lower():
            return page("404 Not Found")
        return None

    return front(port, answer)


def with_node(region: Region, **changes: Any) -> Region:
    """The same region with another node in it."""
    (subject,) = region.subjects
    names = {f for f in ("http_port", "wants_port_80") if f in changes}
    outer = {name: changes.pop(name) for name in names}
    return Region(region.name, (replace(subject, node=replace(subject.node, **changes), **outer),))


def subject_of(region: Region) -> Subject:
    """The only subject of a region."""
    (subject,) = region.subjects
    return subject
