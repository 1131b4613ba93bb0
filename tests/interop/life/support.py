"""A relay as a service manager runs it, and clients that always send and receive."""

from __future__ import annotations

import asyncio
import contextlib
import os
import resource
import signal
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path

from pyderp import Client, ClientConfig, ConnectionClosed, ReceivedPacket, Restarting
from pyderp.errors import ConnectError
from tests.cli.process import BOUND, environment
from tests.interop.client.support import DIRECT
from tests.waiting import until

_POLL = 0.02


class Service:
    """`pyderp relay` with its log in a file.

    Args:
        arguments: flags.
        log: file of the log; it is added to.
        sockets: handed down from descriptor 3 on, as systemd does.
        extra: more environment.
        files: limit of open files, soft and hard.
        before: what the command begins with; it must become the relay by exec.
    """

    def __init__(
        self,
        arguments: Sequence[object],
        log: Path,
        *,
        sockets: Sequence[socket.socket] = (),
        extra: dict[str, str] | None = None,
        files: int | None = None,
        before: Sequence[str] = (),
    ) -> None:
        self.log = log
        self._read_from = log.stat().st_size if log.is_file() else 0
        command = [*before, sys.executable, "-m", "pyderp", "relay", *map(str, arguments)]
        env = environment(**(extra or {}))
        if sockets:
            # The process has to know its own number, so a shell sets it.
            command = ["sh", "-c", 'LISTEN_PID=$$ exec "$@"', "sh", *command]
            env["LISTEN_FDS"] = str(len(sockets))
        with log.open("ab") as output:
            self.popen = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env=env,
                close_fds=not sockets,
                preexec_fn=_before_exec(sockets, files),
            )

    def text(self) -> str:
        """Its log so far; empty if the log is not a file."""
        if not self.log.is_file():
            return ""
        return self.log.read_bytes()[self._read_from :].decode(errors="replace")

    def wait_for(self, text: str, count: int = 1) -> None:
        """Wait until the log has a text this many times."""
        deadline = time.monotonic() + BOUND
        while self.text().count(text) < count:
            code = self.popen.poll()
            assert code is None, f"ended with {code}\n{self.text()}"
            assert time.monotonic() < deadline, f"{text!r} is not in the log:\n{self.text()}"
            time.sleep(_POLL)

    async def logs(self, text: str, count: int = 1) -> None:
        """The same for coroutines."""
        await asyncio.to_thread(self.wait_for, text, count)

    @property
    def port(self) -> int:
        """Wait until it listens; returns the port."""
        self.wait_for("admits every client")
        return int(
            self.text().partition("INFO listening on ")[2].partition(",")[0].rpartition(":")[2]
        )

    def signal(self, number: signal.Signals) -> None:
        self.popen.send_signal(number)

    async def ends(self) -> int:
        """Wait until it has ended; returns its exit code."""
        return await asyncio.to_thread(self.popen.wait, BOUND)

    def check(self) -> None:
        """Fail if it logged an unexpected error."""
        text = self.text()
        assert "Traceback" not in text, text[-4000:]
        assert "never retrieved" not in text, text[-4000:]


def _before_exec(sockets: Sequence[socket.socket], files: int | None) -> Callable[[], None]:
    def prepare() -> None:
        # First move them out of each other's way.
        copies = [os.dup2(sock.fileno(), 100 + i) for i, sock in enumerate(sockets)]
        for i, copy in enumerate(copies):
            os.dup2(copy, 3 + i)
            os.close(copy)
        if files is not None:
            resource.setrlimit(resource.RLIMIT_NOFILE, (files, files))

    return prepare


@contextmanager
def service(*arguments: object, log: Path, **options: object) -> Iterator[Service]:
    """Run one until the block ends, and check its log."""
    run = Service(arguments, log, **options)  # type: ignore[arg-type]  # passed on unchanged
    try:
        yield run
        run.check()
    finally:
        run.popen.kill()
        run.popen.wait()


def plain_config(**changes: object) -> ClientConfig:
    return ClientConfig(network=DIRECT, **changes)  # type: ignore[arg-type]  # any of its fields


class Talker:
    """A client that always receives, over as many connections as needed."""

    def __init__(self, url: str, config: ClientConfig | None = None) -> None:
        self.client = Client.for_url(url, config=config or plain_config())
        self.received: list[tuple[float, bytes]] = []
        """Time and content."""
        self.sent: list[float] = []
        self.restarting: list[Restarting] = []
        self.failures: list[Exception] = []

    async def run(self) -> None:
        """Receive until cancelled."""
        async for message in self.client:
            if isinstance(message, ReceivedPacket):
                self.received.append((time.monotonic(), message.data))
            elif isinstance(message, Restarting):
                self.restarting.append(message)

    async def send_to(self, other: Talker, every: float) -> None:
        """Send the time repeatedly. What cannot be sent now is lost, as usual in DERP."""
        key = other.client.self_public_key
        while True:
            now = time.monotonic()
            try:
                await self.client.send(key, str(now).encode())
                self.sent.append(now)
            except (ConnectionClosed, ConnectError) as e:
                self.failures.append(e)
            await asyncio.sleep(every)


@asynccontextmanager
async def talking(talkers: Sequence[Talker], *, every: float = 0.05) -> AsyncIterator[None]:
    """Each sends to the next one and receives, until the block ends."""
    async with contextlib.AsyncExitStack() as stack:
        for talker in talkers:
            await stack.enter_async_context(talker.client)
            await talker.client.connect()
            await talker.client.ping()
        async with asyncio.TaskGroup() as group:
            tasks = []
            for talker, after in zip(talkers, (*talkers[1:], talkers[0]), strict=True):
                tasks.append(group.create_task(talker.run()))
                tasks.append(group.create_task(talker.send_to(after, every)))
            try:
                yield
            finally:
                for task in tasks:
                    task.cancel()


async def until_received(talkers: Sequence[Talker], since: float | None = None) -> None:
    """Wait until each has received a packet that was sent after a moment; by default now."""
    moment = time.monotonic() if since is None else since
    for talker in talkers:
        await until(lambda t=talker: any(float(d) >= moment for _, d in t.received[-50:]))  # type: ignore[misc]  # mypy infers no type for t
