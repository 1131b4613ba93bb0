"""Any order of sends, receives, breaks, failed connects and closes keeps the client's promises."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Coroutine
from typing import Any, TypeVar

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from pyderp import (
    Client,
    ClientClosed,
    ConnectError,
    ConnectionClosed,
    Message,
    ReceivedPacket,
)
from pyderp.wire.buffer import FrameBuffer
from pyderp.wire.frames import FrameType

from .fakes import PEER, Links, LoginLink, packet_frame

T = TypeVar("T")

LOSSES = st.sampled_from(
    [None, ConnectionResetError("reset"), BrokenPipeError("broken"), TimeoutError("late")]
)


class ClientMachine(RuleBasedStateMachine):
    """One receiver, several senders, a relay that may do anything; no sockets and no time."""

    def __init__(self) -> None:
        super().__init__()
        self.loop = asyncio.new_event_loop()
        self.links = Links()
        self.client: Client = self.run(self.make())
        self.lost: set[int] = set()
        self.fed: dict[int, list[int]] = {}
        self.received: list[tuple[int, int]] = []
        """Generation and number of each message."""
        self.receiver: asyncio.Task[tuple[Message, int]] | None = None
        self.receiver_errors: Counter[int] = Counter()
        self.senders: dict[asyncio.Task[None], tuple[int, bool]] = {}
        """Number of the packet, and whether all connections were lost when the send began."""
        self.sent: list[int] = []
        self.send_errors: Counter[int] = Counter()
        self.numbers = 0
        self.highest = 0
        self.closed = False

    async def make(self) -> Client:
        return self.links.client()

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        return self.loop.run_until_complete(work)

    def number(self) -> int:
        self.numbers += 1
        return self.numbers

    def live(self) -> list[LoginLink]:
        """Links that neither side has closed."""
        return [
            link
            for generation, link in enumerate(self.links.all, 1)
            if generation not in self.lost and not link.aborted and not link.closed
        ]

    # Events

    @rule(turns=st.integers(1, 4))
    def time_goes_on(self, turns: int) -> None:
        async def go() -> None:
            for _ in range(turns):
                await asyncio.sleep(0)

        self.run(go())
        self.collect()

    @rule()
    def connect(self) -> None:
        async def go() -> None:
            try:
                await self.client.connect()
            except ConnectError:
                assert self.links.error is not None
            except ClientClosed:
                assert self.closed
            else:
                assert self.client.connected

        self.run(go())

    @rule(wait=st.booleans())
    def send(self, wait: bool) -> None:
        number = self.number()
        task = self.loop.create_task(self.client.send(PEER, number.to_bytes(4, "big") * 5000))
        self.senders[task] = (number, not self.live())
        if wait:
            self.time_goes_on(2)

    @precondition(lambda self: self.receiver is None)
    @rule()
    def receive(self) -> None:
        self.receiver = self.loop.create_task(self.client.recv_with_generation())

    @precondition(lambda self: self.receiver is not None)
    @rule()
    def cancel_receiver(self) -> None:
        assert self.receiver is not None
        self.receiver.cancel()
        self.time_goes_on(2)

    @precondition(lambda self: self.live())
    @rule(count=st.integers(1, 3))
    def relay_says(self, count: int) -> None:
        (link,) = self.live()
        numbers = [self.number() for _ in range(count)]
        self.fed.setdefault(len(self.links.all), []).extend(numbers)
        link.feed(*(packet_frame(number.to_bytes(4, "big")) for number in numbers))

    @precondition(lambda self: self.live())
    @rule(error=LOSSES)
    def breaks(self, error: Exception | None) -> None:
        (link,) = self.live()
        self.lost.add(len(self.links.all))
        link.lose(error)

    @precondition(lambda self: self.live())
    @rule(error=LOSSES, times=st.integers(1, 3))
    def breaks_under_a_sender(self, error: Exception | None, times: int) -> None:
        """The sender sees the break, and may have connected anew, before the receiver runs."""

        async def go() -> None:
            (link,) = self.live()
            self.lost.add(len(self.links.all))
            link.lose(error)
            for _ in range(times):
                number = self.number()
                try:
                    await self.client.send(PEER, number.to_bytes(4, "big"))
                except ConnectionClosed as e:
                    self.sender_failed(e, first=True)
                except ConnectError:
                    assert self.links.error is not None

        self.run(go())
        self.time_goes_on(2)

    @precondition(lambda self: self.live())
    @rule(full=st.booleans())
    def kernel(self, full: bool) -> None:
        (link,) = self.live()
        if full:
            link.pending_bytes = 1 << 20
        else:
            link.took_all()

    @rule(works=st.booleans())
    def network(self, works: bool) -> None:
        self.links.error = None if works else OSError("no way")

    @rule()
    @precondition(lambda self: not self.closed and self.numbers > 10)
    def close(self) -> None:
        self.closed = True
        task = self.loop.create_task(self.client.aclose())
        self.time_goes_on(2)
        self.links.finish()
        self.run(task_of(task))
        self.time_goes_on(3)

    # Promises

    def collect(self) -> None:
        """Check the calls that are done."""
        if self.receiver is not None and self.receiver.done():
            task, self.receiver = self.receiver, None
            if not task.cancelled():
                self.receiver_is_done(task)
        for sender in [task for task in self.senders if task.done()]:
            number, without = self.senders.pop(sender)
            self.sender_is_done(sender, number, without)

    def receiver_is_done(self, task: asyncio.Task[tuple[Message, int]]) -> None:
        error = task.exception()
        if error is None:
            message, generation = task.result()
            assert isinstance(message, ReceivedPacket)
            number = int.from_bytes(message.data, "big")
            assert number in self.fed[generation]
            # In order, nothing twice, never back to an older connection.
            assert not self.received or self.received[-1] < (generation, number)
            # Nothing is left out, and nothing comes after the connection's error.
            before = [n for g, n in self.received if g == generation]
            assert before == self.fed[generation][: len(before)]
            assert self.fed[generation][len(before)] == number
            assert not self.receiver_errors[generation]
            # A receiver that began on a connection gets the error of its end.
            for earlier, _ in self.received[-1:]:
                assert earlier == generation or self.receiver_errors[earlier] == 1
            self.received.append((generation, number))
        elif isinstance(error, ClientClosed):
            assert self.closed
        elif isinstance(error, ConnectionClosed):
            generation = error.generation
            assert generation in self.lost
            self.receiver_errors[generation] += 1
            assert self.receiver_errors[generation] == 1
            # All that came was received before, unless its owner closed the client meanwhile.
            got = [n for g, n in self.received if g == generation]
            fed = self.fed.get(generation, [])
            assert got == (fed[: len(got)] if self.closed else fed)
        else:
            assert isinstance(error, ConnectError)

    def sender_is_done(self, task: asyncio.Task[None], number: int, without: bool) -> None:
        error = task.exception()
        if error is None:
            self.sent.append(number)
        elif isinstance(error, ConnectionClosed):
            self.sender_failed(error, first=without)
        else:
            assert isinstance(error, ConnectError)

    def sender_failed(self, error: ConnectionClosed, *, first: bool) -> None:
        if isinstance(error, ClientClosed):
            assert self.closed
            return
        assert error.generation in self.lost
        if first:
            # A send that began after the break gets its error; only the first one does.
            self.send_errors[error.generation] += 1
            assert self.send_errors[error.generation] == 1

    @invariant()
    def one_connection(self) -> None:
        assert len(self.live()) <= 1
        assert self.client.connected <= len(self.live())

    @invariant()
    def generations_grow(self) -> None:
        assert self.client.generation >= self.highest
        self.highest = self.client.generation
        assert self.client.generation == len(self.links.all)

    @invariant()
    def nothing_is_sent_twice(self) -> None:
        seen: Counter[bytes] = Counter()
        for link in self.links.all:
            buffer = FrameBuffer(1 << 20)
            for kind, payload in buffer.receive_data(b"".join(link.written)):
                if kind == FrameType.SEND_PACKET:
                    seen[payload[32:36]] += 1
        assert all(count == 1 for count in seen.values())

    def teardown(self) -> None:
        try:
            if not self.closed:
                self.goes_on()
                self.close()
            self.time_goes_on(5)
            assert not self.senders
            assert self.receiver is None
            assert self.client.connection_state == "closed"
            assert not asyncio.all_tasks(self.loop)
        finally:
            for task in asyncio.all_tasks(self.loop):
                task.cancel()
            self.run(asyncio.sleep(0))
            self.loop.close()

    def goes_on(self) -> None:
        """A receiver that goes on gets all messages, and then waits for more."""
        self.links.error = None
        for link in self.live():
            link.took_all()
        for _ in range(self.numbers + 10):
            if self.receiver is None:
                self.receive()
            self.time_goes_on(3)
            if self.receiver is not None:
                break
        current = len(self.links.all)
        assert self.client.connected
        mine = [n for g, n in self.received if g == current]
        assert mine == self.fed.get(current, [])


async def task_of(task: asyncio.Task[T]) -> T:
    return await task


TestClientMachine = ClientMachine.TestCase
TestClientMachine.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)


def test_of_two_senders_on_an_ended_connection_one_gets_its_error() -> None:
    """Found by the machine: the kernel was full, and the receiver had not run yet."""
    state = ClientMachine()
    state.send(wait=True)
    state.kernel(full=True)
    state.send(wait=True)
    state.kernel(full=False)
    state.receive()
    state.relay_says(count=1)
    state.breaks(error=None)
    state.send(wait=False)
    state.send(wait=True)
    state.teardown()
    assert state.send_errors == {1: 1}
