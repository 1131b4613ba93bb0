"""haproxy and nginx in front of a relay: TLS that they terminate, and TLS that passes through."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AsyncExitStack, contextmanager
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal, TypeAlias

import pytest

from pyderp import Client, ClientConfig, NodePublic, ServerInfo
from pyderp.wire.metacert import make_meta_certificate
from tests.interop.relays import Kind, Relay
from tests.net.certificates import to_pem
from tests.server.certificates import write_pair
from tests.waiting import until

from .programs import Program, haproxy, nginx
from .recorder import recording
from .support import (
    DIRECT,
    EACH_KIND_ONCE,
    NO_ROOTS,
    GetRelay,
    clients,
    config,
    deliver,
    next_of,
    url,
    within,
)

pytestmark = EACH_KIND_ONCE

Software: TypeAlias = Literal["haproxy", "nginx"]


def write_pem(directory: Path, *rest: bytes) -> Path:
    """A certificate for localhost, what follows it in the chain, and its key, in one file."""
    write_pair(directory, "localhost")
    path = directory / "localhost.pem"
    path.write_bytes(
        (directory / "localhost.crt").read_bytes()
        + b"".join(map(to_pem, rest))
        + (directory / "localhost.key").read_bytes()
    )
    return path


def trusting(directory: Path) -> ClientConfig:
    tls = replace(NO_ROOTS, extra_roots=(directory / "localhost.crt",))
    return ClientConfig(network=DIRECT, tls=tls)


@contextmanager
def frontend(software: Software, relay_port: int, directory: Path) -> Iterator[Program]:
    """HTTPS in front of a plain relay, set up as for websockets."""
    pem = write_pem(directory)
    if software == "haproxy":
        with haproxy(
            directory,
            lambda port: (
                f"listen derp\n mode http\n bind 127.0.0.1:{port} ssl crt {pem}\n"
                f" server relay 127.0.0.1:{relay_port}\n"
            ),
        ) as program:
            yield program
        return
    with nginx(
        directory,
        lambda port: (
            f" server {{\n  listen 127.0.0.1:{port} ssl;\n"
            f"  ssl_certificate {pem};\n  ssl_certificate_key {pem};\n"
            f"  location / {{\n   proxy_pass http://127.0.0.1:{relay_port};\n"
            "   proxy_http_version 1.1;\n   proxy_set_header Host $http_host;\n"
            "   proxy_set_header Upgrade $http_upgrade;\n"
            '   proxy_set_header Connection "upgrade";\n  }\n }\n'
        ),
    ) as program:
        yield program


@pytest.mark.parametrize("websocket", [False, True], ids=["derp", "websocket"])
@pytest.mark.parametrize("software", ["haproxy", "nginx"])
async def test_packets_pass_a_proxy_that_terminates_tls(
    kind: Kind, software: Software, websocket: bool, relays: GetRelay, tmp_path: Path
) -> None:
    """The relay itself gets the upgrade of the client."""
    relay = relays(kind, "plain")

    async with AsyncExitStack() as stack:
        recorder = await stack.enter_async_context(recording(relay.port))
        front = stack.enter_context(frontend(software, recorder.port, tmp_path))
        settings = replace(trusting(tmp_path), websocket=websocket)
        address = f"https://localhost:{front.port}/derp"
        a = Client.for_url(address, config=settings)
        b = Client.for_url(url(relay), config=config(relay))
        async with clients(a, b):
            assert a.tls_state is not None
            assert a.server_public_key == b.server_public_key
            await deliver(a, b, bytes(50_000))
            await deliver(b, a, bytes(50_000))
        request = bytes(recorder.passages[-1].sent).partition(b"\r\n\r\n")[0].lower()
    assert (b"upgrade: websocket" in request) is websocket
    assert (b"upgrade: derp" in request) is not websocket
    assert b"derp-fast-start" not in request


async def server_key(relay: Relay) -> NodePublic:
    """The key in the relay's own greeting."""
    async with Client.for_url(url(relay), config=config(relay)) as client:
        await client.connect()
        assert client.server_public_key is not None
        return client.server_public_key


@pytest.mark.parametrize("version", ["TLSv1.2", "TLSv1.3"])
async def test_the_meta_certificate_is_used_in_tls13_only(
    kind: Kind, version: str, relays: GetRelay, tmp_path: Path
) -> None:
    """With the same chain, fast start is used only where the certificates were encrypted."""
    relay = relays(kind, "plain")
    meta = make_meta_certificate(await server_key(relay), now=datetime.now(UTC))
    pem = write_pem(tmp_path, meta)

    async with AsyncExitStack() as stack:
        recorder = await stack.enter_async_context(recording(relay.port))
        front = stack.enter_context(
            haproxy(
                tmp_path,
                lambda port: (
                    f"listen derp\n mode tcp\n bind 127.0.0.1:{port} ssl crt {pem}"
                    f" ssl-min-ver {version} ssl-max-ver {version}\n"
                    f" server relay 127.0.0.1:{recorder.port}\n"
                ),
            )
        )
        a = Client.for_url(f"https://localhost:{front.port}/derp", config=trusting(tmp_path))
        b = Client.for_url(url(relay), config=config(relay))
        async with clients(a, b):
            assert a.tls_state is not None
            assert a.tls_state.version == version
            assert a.tls_state.peer_chain[-1] == meta
            await deliver(a, b)
            await deliver(b, a)
        passage = recorder.passages[-1]
    fast = version == "TLSv1.3"
    assert (b"Derp-Fast-Start: 1" in passage.sent) is fast
    assert passage.received.startswith(b"HTTP/1.1 101") is not fast


async def test_fast_start_works_through_a_tcp_proxy(
    kind: Kind, relays: GetRelay, tmp_path: Path
) -> None:
    """TLS passes through: the certificate is the relay's own, and the client waits for no
    answer."""
    relay = relays(kind, "named")

    def sections(port: int) -> str:
        return (
            f"listen derp\n mode tcp\n bind 127.0.0.1:{port}\n"
            f" server relay 127.0.0.1:{relay.port}\n"
        )

    async with AsyncExitStack() as stack:
        front = stack.enter_context(haproxy(tmp_path, sections))
        recorder = await stack.enter_async_context(recording(front.port, hold=True))
        a = Client.for_url(url(relay, port=recorder.port), config=config(relay))
        b = Client.for_url(url(relay), config=config(relay))
        async with a, clients(b):
            await within(a.connect())
            await until(lambda: recorder.passages[0].held)
            await deliver(a, b, b"before any answer")
            recorder.release()
            await next_of(a, ServerInfo)
            await deliver(b, a)
