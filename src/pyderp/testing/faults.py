"""A relay that misbehaves on demand, and in the same way each time (by a seed)."""

from __future__ import annotations

import dataclasses
import math
import ssl
import tempfile
from http import HTTPStatus
from pathlib import Path
from typing import Final, get_args

from pyderp.addresses import format_address
from pyderp.arguments import check_type
from pyderp.certs import ServerContexts, meta_certificate
from pyderp.certs.manual import ManualCertificates, certificate_paths
from pyderp.config import RelayConfig
from pyderp.errors import ConfigError, LocalProtocolError
from pyderp.keys import NodePublic
from pyderp.maps.region import DERPNode, DERPRegion
from pyderp.server.app.relay import Relay
from pyderp.testing.authority import issue
from pyderp.testing.pipe import CutAfter, FaultCounters, FaultPlan, Junk, Way, make_junk
from pyderp.testing.proxy import HOST, ProxiedConnection, Proxy

__all__ = ["FaultyRelay"]

_REGION: Final = 900


class FaultyRelay:
    """A relay on this event loop behind a proxy that drops, delays, cuts and falsifies.

    Use it as `async with FaultyRelay() as relay:`. Without faults it behaves as any other relay.
    Faults can be changed at any time, from the event loop's thread.

    The proxy ends TLS and reads frames. The same seed and the same frames lead to the same
    faults, however the frames were cut into reads. A websocket is passed on unread: it can be
    delayed, frozen and cut, but none of its frames is dropped or inserted.

    Args:
        config: settings of the relay; its address is replaced.
        seed: seed of all random decisions.
        tls: serve TLS, with a certificate that is made for this relay: `region` has its pin,
            `ca_file` the authority that signed it.

    Raises:
        ConfigError: `config` has TLS.
    """

    def __init__(
        self, config: RelayConfig | None = None, *, seed: int = 0, tls: bool = False
    ) -> None:
        check_type("config", config, RelayConfig, type(None))
        check_type("seed", seed, int)
        check_type("tls", tls, bool)
        config = RelayConfig() if config is None else config
        if config.tls is not None:
            raise ConfigError("the proxy ends TLS, not the relay: use FaultyRelay(tls=True)")
        self._config = dataclasses.replace(config, address=f"{HOST}:0")
        self._plan = FaultPlan(seed)
        self._junk = self._plan.random("junk")
        self._relay: Relay | None = None
        self._tls = tls
        self._certificates: ManualCertificates | None = None
        self._contexts: ServerContexts | None = None
        self._certdir: tempfile.TemporaryDirectory[str] | None = None
        self._proxy: Proxy | None = None

    # Starting and stopping

    async def start(self) -> None:
        """Listen and serve.

        Raises:
            LocalProtocolError: it was started before.
        """
        if self._proxy is not None:
            raise LocalProtocolError("this relay was started before; make a new one")
        self._proxy = Proxy(
            self._plan,
            target=lambda: self.relay.address,
            tls=lambda: None if self._contexts is None else self._contexts.context(HOST),
        )
        try:
            if self._tls:
                self._certdir = tempfile.TemporaryDirectory(prefix="pyderp-")
                names = [HOST, "localhost"]
                issue(self.ca_file, *certificate_paths(Path(self._certdir.name), HOST), names)
            await self._start_relay(self._config)
            self._proxy.accept()
        except BaseException:
            await self.aclose()
            raise

    async def aclose(self) -> None:
        """Stop at once: connections are cut, and bytes that are under way are dropped."""
        if self._proxy is not None:
            await self._proxy.aclose()
        if self._relay is not None:
            await self._relay.aclose(drain=0)
        if self._certdir is not None:
            self._certdir.cleanup()

    async def __aenter__(self) -> FaultyRelay:
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()

    async def _start_relay(self, config: RelayConfig) -> None:
        relay = Relay(config)
        await relay.start()
        self._relay = relay
        if self._certdir is not None:
            self._certificates = ManualCertificates(Path(self._certdir.name), HOST)
            self._contexts = ServerContexts(self._certificates, meta_certificate(relay.public_key))

    # Properties of the relay

    @property
    def address(self) -> tuple[str, int]:
        """Host and port for clients; the port stays the same."""
        return HOST, self._running().port

    @property
    def url(self) -> str:
        """The URL for clients."""
        scheme = "https" if self._tls else "http"
        return f"{scheme}://{format_address(*self.address)}/derp"

    @property
    def ca_file(self) -> Path:
        """With TLS, a file with the authority that signed the relay's certificate, in PEM form.

        It is for programs that take a URL. The file is removed when the relay is closed.

        Raises:
            LocalProtocolError: the relay is not started, or has no TLS.
        """
        if self._certdir is None:
            raise LocalProtocolError("no authority: the relay is not started, or has no tls=True")
        return Path(self._certdir.name) / "ca.pem"

    def ssl_context(self) -> ssl.SSLContext:
        """With TLS, a new context for clients that trusts the relay's authority and no other.

        Raises:
            LocalProtocolError: as `ca_file`.
        """
        return ssl.create_default_context(cafile=self.ca_file)

    @property
    def region(self) -> DERPRegion:
        """A region with this relay only. Without TLS it needs `NetworkSettings.use_derp_http`."""
        node = DERPNode(
            name=f"{_REGION}a",
            region_id=_REGION,
            host_name=HOST,
            cert_name="" if self._certificates is None else self._certificates.cert_name,
            ipv4=HOST,
            ipv6="none",
            stun_port=-1,
            derp_port=self.address[1],
        )
        return DERPRegion(
            region_id=_REGION, region_code="faulty", region_name="Faulty", nodes=(node,)
        )

    @property
    def relay(self) -> Relay:
        """The relay behind the proxy; another one after `restart`."""
        if self._relay is None:
            raise LocalProtocolError("the relay is not started")
        return self._relay

    @property
    def public_key(self) -> NodePublic:
        """The key of the relay."""
        return self.relay.public_key

    @property
    def counters(self) -> FaultCounters:
        """Counters of the faults so far; the object is live."""
        return self._plan.counters

    @property
    def connections(self) -> int:
        """Number of open TCP connections from clients."""
        return len(self._running().connections)

    # Slow and lossy

    @property
    def latency(self) -> float:
        """Seconds by which all bytes are delayed, each way; their order is kept."""
        return self._plan.latency

    @latency.setter
    def latency(self, seconds: float) -> None:
        self._plan.latency = _seconds("latency", seconds)

    @property
    def jitter(self) -> float:
        """The largest random delay of a frame, in seconds, in addition to `latency`."""
        return self._plan.jitter

    @jitter.setter
    def jitter(self, seconds: float) -> None:
        self._plan.jitter = _seconds("jitter", seconds)

    @property
    def loss(self) -> float:
        """The probability that a packet is lost, from 0 to 1; drawn once up and once down."""
        return self._plan.loss

    @loss.setter
    def loss(self, probability: float) -> None:
        if not 0 <= probability <= 1:
            raise ConfigError(f"loss is {probability}; want 0 to 1")
        self._plan.loss = probability

    def drop_next(self, count: int = 1, *, way: Way = "up") -> None:
        """Drop exactly the next `count` packets of any connections, in addition to `loss`."""
        self._plan.drop_next[_way(way)] = _whole("count", count)

    # Cut and frozen

    def cut(self, *, reset: bool = False, client: NodePublic | None = None) -> int:
        """End connections now; bytes that are under way are lost.

        Args:
            reset: end them with RST; otherwise with FIN.
            client: only connections that logged in with this key.

        Returns:
            the number of connections.
        """
        found = self._of(client)
        for connection in found:
            connection.cut(reset=reset)
        return len(found)

    def cut_after(self, nbytes: int, *, way: Way = "down", reset: bool = False) -> None:
        """End one connection after so many more bytes in one direction, also within a frame.

        The bytes of all connections count together: those of HTTP, too, but not those that TLS
        adds. The connection to which the last of them belongs is cut. A new call replaces an
        earlier one.
        """
        self._plan.cut_after = CutAfter(_whole("nbytes", nbytes, least=1), _way(way), reset)

    def freeze(self) -> None:
        """Pass nothing on, not even the end of a connection, until `thaw`.

        Connections stay open, new ones are accepted, and the kernels accept bytes until their
        buffers are full. For a client, this looks like a network that stopped working.
        """
        self._plan.frozen = True
        for connection in self._of(None):
            connection.update()

    def thaw(self) -> None:
        """Pass on all bytes that came since `freeze`, and all that follow."""
        self._plan.frozen = False
        for connection in self._of(None):
            connection.thaw()

    # Unreachable and back

    def refuse(self) -> None:
        """Refuse new connections, until `accept`; those that are open stay."""
        self._running().refuse()

    def accept(self) -> None:
        """Accept new connections again, on the same port."""
        self._running().accept()

    async def restart(self, *, new_key: bool = False, announce: bool = True) -> None:
        """Stop the relay and start a new one behind the same port.

        When this returns, the new relay serves, without clients. Old connections still get the
        bytes that were under way to them, and end. Faults stay as they are.

        Args:
            new_key: the new relay has a new key.
            announce: the relay sends each client a Restarting frame first; otherwise the
                connections are cut.
        """
        proxy = self._running()
        listening = proxy.listening
        proxy.refuse()
        if not announce:
            self.cut()
        key = None if new_key else self.relay.private_key
        await self.relay.aclose(drain=0)
        await self._start_relay(dataclasses.replace(self._config, private_key=key))
        self._plan.counters.restarts += 1
        if listening:
            proxy.accept()

    # Wrong answers

    def wrong_key(self, logins: int = 1) -> None:
        """Seal the answer to the next logins with another key than the announced one.

        The client cannot open it.
        """
        self._plan.wrong_keys = _whole("logins", logins)

    def http_status(self, status: int, *, count: int = 1) -> None:
        """Answer the next requests for an upgrade with an HTTP error, and close the connection.

        Args:
            status: 300 or more; a lower one is no refusal.
            count: number of requests.

        Raises:
            ConfigError: the status is not one of HTTP, or below 300.
        """
        try:
            HTTPStatus(status)
        except ValueError:
            raise ConfigError(f"{status} is no HTTP status") from None
        if status < HTTPStatus.MULTIPLE_CHOICES:
            raise ConfigError(f"HTTP status {status} is not an error; want 300 or more")
        self._plan.statuses.extend([status] * _whole("count", count))

    def junk(self, kind: Junk = "garbage", *, client: NodePublic | None = None) -> bytes:
        """Send bytes that a relay should not send, to all clients or one.

        Returns:
            what was sent; it depends on the seed and the earlier calls only.
        """
        data = make_junk(kind, self._junk)
        self.inject(data, client=client)
        return data

    def inject(self, data: bytes, *, client: NodePublic | None = None) -> int:
        """Send these bytes between two frames, to all clients or one.

        Returns:
            the number of connections to which they were sent.
        """
        return sum(connection.inject(data) for connection in self._of(client))

    def _of(self, client: NodePublic | None) -> list[ProxiedConnection]:
        return [
            connection
            for connection in self._running().connections.values()
            if client is None or connection.client_key == client
        ]

    def _running(self) -> Proxy:
        if self._proxy is None:
            raise LocalProtocolError("the relay is not started")
        return self._proxy


def _seconds(name: str, value: float) -> float:
    if not 0 <= value < math.inf:
        raise ConfigError(f"{name} is {value}; want seconds, 0 or more")
    return value


def _whole(name: str, value: int, *, least: int = 0) -> int:
    # `isinstance` would accept a bool, too.
    if type(value) is not int or value < least:
        raise ConfigError(f"{name} is {value!r}; want a whole number, {least} or more")
    return value


def _way(way: Way) -> Way:
    if way not in get_args(Way):
        raise ConfigError(f"there is no way {way!r}; want 'up' or 'down'")
    return way
