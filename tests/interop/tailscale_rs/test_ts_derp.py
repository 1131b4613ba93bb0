"""Tailscale's Rust client, which ends on an unknown frame, stays connected to pyderp's relay."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

import pytest

import pyderp
import pyderp.relay.health
from pyderp import HealthRecipients, ManualTLS, NodePrivate, RelayConfig
from pyderp.wire.messages import Health, Restarting
from tests.interop.peers import need
from tests.server.certificates import write_pair
from tests.server.dial import BOUND, Client, connect
from tests.server.ways import NAME, over_tls


@dataclass
class Scene:
    """A relay, the Rust client, and two clients of pyderp."""

    relay: pyderp.Relay
    directory: Path
    rust: NodePrivate
    program: asyncio.subprocess.Process
    witness: Client
    """Gets reports of problems."""
    talker: Client

    async def says(self) -> str:
        """The next line of the Rust program."""
        assert self.program.stdout is not None
        async with asyncio.timeout(BOUND):
            return (await self.program.stdout.readline()).decode().strip()

    async def echoes(self, packet: bytes) -> None:
        """Check that the Rust client answers."""
        self.talker.send(self.rust.public, packet)
        while await self.talker.packet() != packet:
            pass

    def login(self) -> int:
        """The number of the Rust client's only connection."""
        connections = self.relay._running().router.registry.connections()
        (number,) = [
            each.number
            for each in connections
            if each.key == self.rust.public.raw and not each.takes_health
        ]
        return number


@contextlib.asynccontextmanager
async def scene(directory: Path, health: HealthRecipients) -> AsyncIterator[Scene]:
    program = need("tsderpecho")
    write_pair(directory, NAME, days=60)
    rates = directory / "rates.json"
    rates.write_text("{}")
    tls = ManualTLS(certdir=directory, hostname=NAME)
    rust = NodePrivate.generate()
    config = RelayConfig(tls=tls, health=health, rate_config=rates)
    async with contextlib.AsyncExitStack() as stack:
        relay = await stack.enter_async_context(pyderp.Relay(config))
        witness = await connect(relay.address, via=over_tls())
        stack.push_async_callback(witness.aclose)
        talker = await connect(relay.address, via=over_tls())
        stack.push_async_callback(talker.aclose)
        arguments = [str(relay.address[1]), rust.to_text(), str(talker.key)]
        process = await asyncio.create_subprocess_exec(
            program, *arguments, stdout=asyncio.subprocess.PIPE
        )
        stack.push_async_callback(end, process)
        made = Scene(relay, directory, rust, process, witness, talker)
        assert await made.says() == str(rust.public)
        assert await made.says() == "login"
        await made.echoes(b"before")
        yield made


async def end(process: asyncio.subprocess.Process) -> None:
    with contextlib.suppress(ProcessLookupError):
        process.kill()
    await process.wait()


# Events that the relay reports in Health frames


async def a_certificate_expires_soon(it: Scene) -> None:
    assert it.relay._parts is not None
    write_pair(it.directory, NAME, days=3)
    it.relay._look_at_certificates(it.relay._parts)
    await it.witness.wait_for(Health)


async def two_connections_take_turns(it: Scene) -> None:
    twin = await connect(it.relay.address, private=it.rust, via=over_tls())
    try:
        message: object = None
        while not isinstance(message, Health):
            twin.session.send_ping(
                b"my turn!"
            )  # and then it is the turn of the Rust client, which sends by itself
            twin.write()
            message = await twin.receive()
    finally:
        await twin.aclose()


async def a_rate_is_exceeded(it: Scene) -> None:
    rates = it.directory / "rates.json"
    rates.write_text(json.dumps({"PerClientRateLimitBytesPerSec": 30_000}))
    it.relay.reload()
    for number in range(2):
        it.talker.send(it.rust.public, bytes([number]) * 60_000)
        it.witness.send(it.talker, bytes(60_000))
    await it.witness.wait_for(Health)
    while (await it.talker.packet())[:1] != b"\1":
        pass


Trigger: TypeAlias = Callable[[Scene], Awaitable[None]]
TRIGGERS = [a_certificate_expires_soon, two_connections_take_turns, a_rate_is_exceeded]


@pytest.fixture(autouse=True)
def short_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pyderp.relay.health, "WAIT_WINDOW", 1.0)


@pytest.mark.parametrize("trigger", TRIGGERS)
async def test_the_client_stays_while_health_goes_to_others_only(
    tmp_path: Path, trigger: Trigger
) -> None:
    async with scene(tmp_path, HealthRecipients.KNOWN) as it:
        login = it.login()
        await trigger(it)
        await it.echoes(b"after")
        assert it.login() == login
        assert it.program.returncode is None


@pytest.mark.parametrize("trigger", TRIGGERS)
async def test_the_client_ends_if_health_goes_to_all(tmp_path: Path, trigger: Trigger) -> None:
    """Otherwise the test above could not fail."""
    async with scene(tmp_path, HealthRecipients.ALL) as it:
        with contextlib.suppress(TimeoutError):
            await trigger(it)
        assert "unexpected DERP frame type" in await it.says()
        assert await it.program.wait() == 1


async def test_the_client_comes_back_after_a_restart(tmp_path: Path) -> None:
    async with scene(tmp_path, HealthRecipients.KNOWN) as it:
        host, port = it.relay.address
        await it.relay.aclose(drain=0)
        await it.witness.wait_for(Restarting)
        config = RelayConfig(address=f"{host}:{port}", tls=it.relay.config.tls)
        private = it.talker.private
        async with pyderp.Relay(config) as relay:
            assert await it.says() == "login"
            it.talker = await connect(relay.address, private=private, via=over_tls())
            try:
                await it.echoes(b"after")
            finally:
                await it.talker.aclose()
