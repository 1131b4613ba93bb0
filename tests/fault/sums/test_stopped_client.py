"""A client whose process is stopped and continued."""

from __future__ import annotations

import asyncio
import json
import signal
import sys
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from pyderp.keys import NodePrivate

from .conftest import Sums
from .packets import Count
from .peer import BOUND
from .relays import ROOT
from .run import Run
from .steps import until_dropped, until_nothing_waits


@asynccontextmanager
async def client_process(run: Run, secret: bytes) -> AsyncIterator[Process]:
    """A client in its own process that is logged in."""
    port = run.relay.address[1]
    command = ["-m", "tests.fault.sums.client", run.kind, str(port), secret.hex()]
    client = await asyncio.create_subprocess_exec(
        sys.executable, *command, stdin=PIPE, stdout=PIPE, cwd=ROOT
    )
    try:
        assert client.stdout is not None
        async with asyncio.timeout(BOUND):
            assert await client.stdout.readline() == b"ready\n"
        yield client
    finally:
        if client.returncode is None:
            client.kill()
        await client.wait()


async def leave_and_record(run: Run, client: Process) -> None:
    """Let it leave, and record what it got."""
    assert client.stdin is not None
    assert client.stdout is not None
    client.stdin.close()
    async with asyncio.timeout(BOUND):
        found = json.loads(await client.stdout.readline())
        await client.wait()
    assert (found["problems"], found["end"]) == ([], "eof")
    run.ledger.delivered += Count(found["packets"], found["bytes"])
    run.ledger.delivered_disco += found["disco"]


def test_a_client_that_is_stopped_and_continued_adds_up(sums: Sums) -> None:
    """SIGSTOP until packets were dropped for it, and SIGCONT."""

    async def scenario(run: Run) -> None:
        secret = run.rng.randbytes(32)
        private = NodePrivate.generate(secret)
        async with run.canaries(), client_process(run, secret) as client:
            senders = await run.some_peers(2)
            for _ in run.rounds(1):
                client.send_signal(signal.SIGSTOP)
                await until_dropped(run, senders, [private.public], 20)
                client.send_signal(signal.SIGCONT)
                await until_nothing_waits(run)
            await leave_and_record(run, client)
        await run.end()

    sums(scenario, "--tcp-write-timeout=30")
