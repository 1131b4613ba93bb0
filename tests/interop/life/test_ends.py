"""A relay that is killed, and one that stops while its clients read nothing."""

from __future__ import annotations

import asyncio
import signal
from contextlib import AsyncExitStack
from pathlib import Path

import pytest

from tests.server.certificates import trusting_nobody, write_pair
from tests.server.dial import Via, connect

from .support import Service, Talker, service, talking, until_received


def test_a_killed_relay_can_start_again_on_the_same_port(tmp_path: Path) -> None:
    """Clients reconnect by themselves; nothing hinders the new process."""

    async def main(relay: Service) -> None:
        url = f"http://127.0.0.1:{relay.port}/derp"
        flags[1] = f"127.0.0.1:{relay.port}"
        talkers = [Talker(url) for _ in range(4)]
        async with talking(talkers):
            await until_received(talkers)
            relay.popen.kill()
            await relay.ends()
            with service(*flags, log=tmp_path / "log") as again:
                await asyncio.to_thread(lambda: again.port)
                await until_received(talkers)
                assert again.text().split("relay key ")[1][:80] == key
        assert all(talker.client.generation >= 2 for talker in talkers)
        assert not any(talker.restarting for talker in talkers)

    flags = ["-a", "127.0.0.1:0", "-c", str(tmp_path / "relay.json"), "--no-stun"]
    with service(*flags, log=tmp_path / "first.log") as relay:
        relay.wait_for("admits every client")
        key = relay.text().split("relay key ")[1][:80]
        asyncio.run(main(relay))


@pytest.mark.parametrize(("loop", "tls"), [("asyncio", True), ("uvloop", True), ("uvloop", False)])
def test_clients_that_read_nothing_do_not_delay_a_stop(
    loop: str, tls: bool, tmp_path: Path
) -> None:
    """Neither their full sockets nor their queues."""

    async def main(relay: Service) -> None:
        address = ("127.0.0.1", relay.port)
        via = Via(tls=trusting_nobody(), server_name="localhost") if tls else Via()
        async with AsyncExitStack() as stack:
            deaf = [await connect(address, via=via) for _ in range(8)]
            talker = await connect(address, via=via)
            for client in (*deaf, talker):
                stack.push_async_callback(client.aclose)
            for client in deaf:
                client.writer.transport.pause_reading()  # type: ignore[attr-defined]
            for _ in range(120):  # more than kernels and queues hold
                for client in deaf:
                    talker.send(client, bytes(60_000))
                await talker.ping()
            relay.signal(signal.SIGTERM)
            assert await relay.ends() == 0
            assert relay.text().endswith("stopped\n")

    flags = ["-a", "127.0.0.1:0", "--no-stun", "--drain=0.5", f"--loop={loop}"]
    flags += ["-c", str(tmp_path / "relay.json"), "--tcp-write-timeout=0"]
    if tls:
        write_pair(tmp_path, "localhost")
        flags += [f"--certdir={tmp_path}", "--certmode=manual", "--hostname=localhost"]
        flags += ["--http-port=-1"]
    with service(*flags, log=tmp_path / "log") as relay:
        asyncio.run(main(relay))
