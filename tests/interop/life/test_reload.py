"""SIGHUP: certificates, limits, allowed keys and the mesh of a relay that serves."""

from __future__ import annotations

import asyncio
import hashlib
import json
import signal
from dataclasses import dataclass, replace
from pathlib import Path

import pyderp
from pyderp import Client, ClientConfig, NodePrivate, ReceivedPacket, RelayConfig
from pyderp.errors import ConnectError, ConnectionClosed
from tests.cli.process import BOUND
from tests.interop.client.support import DIRECT, MESH, NO_ROOTS, next_of
from tests.interop.relays import MESH_KEY
from tests.server.certificates import trusting_nobody, write_pair
from tests.waiting import until

from .support import Service, plain_config, service


@dataclass
class Files:
    """The files that an operator may edit while the relay runs."""

    directory: Path
    fingerprint: str = ""
    """Of the certificate."""
    ca: Path = Path()
    """The certificate that clients trust; its name changes, as they read a file once."""

    def certificate(self) -> None:
        der = write_pair(self.directory, "localhost")
        self.fingerprint = hashlib.sha256(der).hexdigest()
        self.ca = self.directory / f"ca-{self.fingerprint[:8]}.crt"
        self.ca.write_bytes((self.directory / "localhost.crt").read_bytes())

    def keys(self, *allowed: NodePrivate) -> None:
        lines = (f"{key.public} someone\n" for key in allowed)
        (self.directory / "keys").write_text("".join(lines))

    def rate(self, bytes_per_second: int) -> None:
        document = {"PerClientRateLimitBytesPerSec": bytes_per_second}
        (self.directory / "rate.json").write_text(json.dumps(document))

    def settings(self, *mesh: str, more: str = "") -> None:
        key = self.directory / "mesh.key"
        key.touch(0o600)
        key.write_text(MESH_KEY)
        lines = {
            "address": "127.0.0.1:0",
            "certmode": "manual",
            "certdir": str(self.directory),
            "hostname": "localhost",
            "http-port": -1,
            "stun": False,
            "key-file": str(self.directory / "relay.json"),
            "mesh-psk-file": str(key),
            "mesh-with": list(mesh),
            "allow-keys-file": str(self.directory / "keys"),
            "rate-config": str(self.directory / "rate.json"),
        }
        # Values of these types are the same in TOML and JSON.
        text = "".join(f"{name} = {json.dumps(value)}\n" for name, value in lines.items())
        (self.directory / "relay.toml").write_text(text + more)


class Served:
    """The relay as clients reach it."""

    def __init__(self, relay: Service, files: Files) -> None:
        self.relay = relay
        self.files = files
        found = relay.text().partition("INFO listening on 127.0.0.1:")[2].partition(",")[0]
        self.port = int(found)

    def client(self, key: NodePrivate) -> Client:
        tls = replace(NO_ROOTS, extra_roots=(self.files.ca,))
        config = ClientConfig(network=DIRECT, tls=tls)
        return Client.for_url(f"https://localhost:{self.port}/derp", private_key=key, config=config)

    async def admits(self, key: NodePrivate) -> bool:
        async with self.client(key) as client:
            try:
                await client.connect()
                await client.ping()
            except (ConnectError, ConnectionClosed):
                return False
            return True

    async def fingerprint(self) -> str:
        """That of the certificate that it serves now."""
        _, writer = await asyncio.open_connection(
            "127.0.0.1", self.port, ssl=trusting_nobody(), server_hostname="localhost"
        )
        der = writer.get_extra_info("ssl_object").getpeercert(binary_form=True)
        writer.close()
        await writer.wait_closed()
        return hashlib.sha256(der).hexdigest()

    async def reload(self, *lines: str) -> None:
        """Send SIGHUP; the log then has one line more with each text."""
        before = [self.relay.text().count(text) for text in lines]
        self.relay.signal(signal.SIGHUP)
        for text, count in zip(lines, before, strict=True):
            await self.relay.logs(text, count + 1)


def test_a_reload_applies_all_that_can_change(tmp_path: Path) -> None:
    """Only connections that are no longer admitted are closed."""
    old, new = NodePrivate.generate(), NodePrivate.generate()
    files = Files(tmp_path)

    async def main(served: Served) -> None:
        config = RelayConfig(mesh_key=MESH)
        async with pyderp.Relay(config) as other, served.client(old) as client:
            await client.connect()
            assert not await served.admits(new)

            before = files.fingerprint
            files.certificate()
            files.keys(old, new)
            files.rate(10_000_000)
            files.settings(other.url)
            await served.reload("settings reloaded", "client-rate=10000000 bytes/sec")
            assert await served.fingerprint() == files.fingerprint != before
            assert await served.admits(new)
            async with Client.for_url(other.url, config=plain_config()) as far:
                await far.connect()
                await far.ping()
                await until(lambda: other.clients == 2)  # the relay itself, and `far`
                await reach(client, far)

            await everything_wrong(served, old)
            assert await client.ping() < BOUND  # still the first connection

            files.keys(new)
            files.settings()
            await served.reload("settings reloaded")
            await until(lambda: not client.connected)
            await until(lambda: other.clients == 0)

    async def everything_wrong(served: Served, key: NodePrivate) -> None:
        good = files.fingerprint
        files.settings(more="drain = \n")
        (tmp_path / "keys").write_text("# mine\nnodekey:zz\n")
        (tmp_path / "rate.json").write_text("{\n\n]")
        (tmp_path / "localhost.crt").write_text("junk")
        await served.reload(
            "settings not reloaded, the old ones stay in use: "
            f"settings file {tmp_path}/relay.toml, line 12",
            f"{tmp_path}/keys, line 2",
            "rate.json, line 3",
            f"{tmp_path}/localhost.crt",
        )
        assert await served.fingerprint() == good

    files.certificate()
    files.keys(old)
    files.rate(5_000_000)
    files.settings()
    with service(f"--config-file={tmp_path}/relay.toml", log=tmp_path / "log") as relay:
        relay.wait_for("to print complete DERP maps")
        asyncio.run(main(Served(relay, files)))


async def reach(source: Client, target: Client) -> None:
    """Send until it arrives: mesh peers learn of a client a moment after its login."""
    async with asyncio.timeout(BOUND):
        waiting = asyncio.ensure_future(next_of(target, ReceivedPacket))
        while not waiting.done():
            await source.send(target.self_public_key, b"over the mesh")
            await asyncio.wait([waiting], timeout=0.1)
        assert waiting.result().data == b"over the mesh"
