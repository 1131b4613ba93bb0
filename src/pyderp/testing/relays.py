"""Relays and clients that are ready for use: on this event loop, or in a thread of their own."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import ssl
import threading
from collections.abc import AsyncIterator, Callable, Coroutine
from pathlib import Path
from typing import Any, Concatenate, Final, ParamSpec, TypeVar

from pyderp.client.client import Client
from pyderp.client.config import ClientConfig
from pyderp.config import RelayConfig
from pyderp.errors import LocalProtocolError
from pyderp.keys import NodePublic
from pyderp.maps.region import DERPRegion
from pyderp.net.settings import NetworkSettings
from pyderp.relay.counters import Counters
from pyderp.server.app.relay import Relay
from pyderp.testing.faults import FaultyRelay
from pyderp.testing.pipe import FaultCounters
from pyderp.text import counted
from pyderp.wire.messages import ServerInfo

__all__ = ["RelayThread", "client_pair", "relay"]

P = ParamSpec("P")
T = TypeVar("T")

_BOUND: Final = 30.0
"""Seconds that a call into the thread may take before it counts as hanging."""
_POLL: Final = 0.002
"""Seconds between two looks at the number of clients."""


def _in_thread(
    method: Callable[Concatenate[FaultyRelay, P], T],
) -> Callable[Concatenate[RelayThread, P], T]:
    """Returns a method of `FaultyRelay` as one that any thread may call."""

    @functools.wraps(method)
    def call(relay: RelayThread, /, *args: P.args, **kwargs: P.kwargs) -> T:
        return relay.call(lambda faulty: method(faulty, *args, **kwargs))

    return call


class RelayThread:
    """A `FaultyRelay` with an event loop and a thread of its own.

    Use it as `with RelayThread() as relay:`. Attributes and methods are those of
    `FaultyRelay`, which documents them; they may be used from any thread. When a method returns,
    its work is done. Clients may run in any thread and on any event loop.

    Args:
        config: settings of the relay.
        seed: seed of all random decisions.
        tls: serve TLS, with a certificate that is made for this relay.
    """

    def __init__(
        self, config: RelayConfig | None = None, *, seed: int = 0, tls: bool = False
    ) -> None:
        self._faulty = FaultyRelay(config, seed=seed, tls=tls)
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Start the thread, listen and serve; returns when the relay accepts connections.

        Raises:
            LocalProtocolError: it was started before.
        """
        if self._thread is not None:
            raise LocalProtocolError("this relay was started before; make a new one")
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(
            target=self._loop.run_forever, name="pyderp-relay", daemon=True
        )
        self._thread.start()
        try:
            self._wait(self._faulty.start())
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Stop at once, and wait until the thread has ended."""
        loop, self._loop = self._loop, None
        if loop is None or self._thread is None:
            return
        try:
            asyncio.run_coroutine_threadsafe(self._faulty.aclose(), loop).result(_BOUND)
        finally:
            loop.call_soon_threadsafe(loop.stop)
            self._thread.join(_BOUND)
            loop.close()

    def __enter__(self) -> RelayThread:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _wait(self, work: Coroutine[Any, Any, T]) -> T:
        if self._loop is None:
            work.close()
            raise LocalProtocolError("the relay is not started")
        try:
            return asyncio.run_coroutine_threadsafe(work, self._loop).result(_BOUND)
        except TimeoutError as e:
            if str(e):
                raise  # an error of the work itself
            raise TimeoutError(f"the relay's thread did not answer within {_BOUND:g} s") from None

    def call(self, function: Callable[[FaultyRelay], T]) -> T:
        """Run a function in the relay's thread; returns what it returns."""

        async def work() -> T:
            return function(self._faulty)

        return self._wait(work())

    # Properties of the relay

    @property
    def address(self) -> tuple[str, int]:
        """Host and port for clients; the port stays the same."""
        return self._faulty.address

    @property
    def url(self) -> str:
        """The URL for clients."""
        return self._faulty.url

    @property
    def ca_file(self) -> Path:
        """With TLS, a file with the authority that signed the relay's certificate, in PEM form."""
        return self._faulty.ca_file

    def ssl_context(self) -> ssl.SSLContext:
        """With TLS, a new context for clients that trusts the relay's authority and no other."""
        return self._faulty.ssl_context()

    @property
    def region(self) -> DERPRegion:
        """A region with this relay only."""
        return self._faulty.region

    @property
    def public_key(self) -> NodePublic:
        """The key of the relay."""
        return self._faulty.public_key

    @property
    def counters(self) -> FaultCounters:
        """Counters of the faults so far; the object is live."""
        return self._faulty.counters

    @property
    def relay_counters(self) -> Counters:
        """Counters of the relay behind the proxy; another object after `restart`."""
        return self._faulty.relay.counters

    @property
    def clients(self) -> int:
        """Connections that are logged in."""
        return self._faulty.relay.clients

    def wait_for_clients(self, count: int, *, timeout: float = 10.0) -> None:
        """Wait until exactly so many connections are logged in.

        Raises:
            TimeoutError: after `timeout` seconds it is still another number.
        """

        async def work() -> None:
            async with asyncio.timeout(timeout):
                while self.clients != count:  # noqa: ASYNC110 (there is no event)
                    await asyncio.sleep(_POLL)

        try:
            self._wait(work())
        except TimeoutError:
            there = counted(self.clients, "client")
            raise TimeoutError(f"{there} logged in after {timeout:g} s, not {count}") from None

    # Faults

    @property
    def latency(self) -> float:
        """Seconds by which all bytes are delayed, each way."""
        return self._faulty.latency

    @latency.setter
    def latency(self, seconds: float) -> None:
        self._faulty.latency = seconds

    @property
    def jitter(self) -> float:
        """The largest random delay of a frame, in seconds, in addition to `latency`."""
        return self._faulty.jitter

    @jitter.setter
    def jitter(self, seconds: float) -> None:
        self._faulty.jitter = seconds

    @property
    def loss(self) -> float:
        """The probability that a packet is lost, from 0 to 1, each way."""
        return self._faulty.loss

    @loss.setter
    def loss(self, probability: float) -> None:
        self._faulty.loss = probability

    drop_next = _in_thread(FaultyRelay.drop_next)
    cut = _in_thread(FaultyRelay.cut)
    cut_after = _in_thread(FaultyRelay.cut_after)
    freeze = _in_thread(FaultyRelay.freeze)
    thaw = _in_thread(FaultyRelay.thaw)
    refuse = _in_thread(FaultyRelay.refuse)
    accept = _in_thread(FaultyRelay.accept)

    def restart(self, *, new_key: bool = False, announce: bool = True) -> None:
        """Stop the relay and start a new one behind the same port; see `FaultyRelay.restart`."""
        self._wait(self._faulty.restart(new_key=new_key, announce=announce))

    wrong_key = _in_thread(FaultyRelay.wrong_key)
    http_status = _in_thread(FaultyRelay.http_status)
    junk = _in_thread(FaultyRelay.junk)
    inject = _in_thread(FaultyRelay.inject)


@contextlib.asynccontextmanager
async def relay(config: RelayConfig | None = None) -> AsyncIterator[Relay]:
    """Yields a relay that serves; by default plain HTTP, a new key, a free port of 127.0.0.1."""
    async with Relay(config) as running:
        yield running


@contextlib.asynccontextmanager
async def client_pair(
    relay: Relay | FaultyRelay | str, *, config: ClientConfig | None = None
) -> AsyncIterator[tuple[Client, Client]]:
    """Yields two clients that are logged in, so that they can reach each other at once.

    Their first messages, ServerInfo, were read already. Leaving the block closes them.

    Args:
        relay: a relay, or the URL of one. The clients must trust its certificate, except that of
            `FaultyRelay(tls=True)`, whose pin they take from its region.
        config: settings of both clients; by default settings that ignore the environment.

    Raises:
        ConnectError: the relay cannot be reached, or refuses a client.
        ConnectionClosed: the relay closed a connection after the login.
    """
    async with _client(relay, config) as one, _client(relay, config) as other:
        for client in (one, other):
            # The relay sends this after it has registered the client.
            while not isinstance(await client.recv(), ServerInfo):
                pass
        yield one, other


def _client(relay: Relay | FaultyRelay | str, config: ClientConfig | None) -> Client:
    config = config or ClientConfig(network=NetworkSettings())
    if isinstance(relay, str):
        return Client.for_url(relay, config=config)
    if isinstance(relay, FaultyRelay) and relay.region.nodes[0].cert_name:
        return Client.for_region(relay.region, config=config)
    return Client.for_url(relay.url, config=config)
