"""The shell around `core`: sockets, names, TLS and tasks; and the memory between two runs."""

from __future__ import annotations

import asyncio
import logging
import socket
import time
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Final, Self

from pyderp.addresses import ip_literal
from pyderp.client.config import ClientConfig
from pyderp.defaults import STUN_PORT
from pyderp.errors import ConfigError, DerpError, DialError
from pyderp.maps.derpmap import DERPMap
from pyderp.maps.region import DERPNode, DERPRegion
from pyderp.net.dns import Resolver, lookup
from pyderp.net.settings import NetworkSettings
from pyderp.net.stunclient import StunAnswer, StunClient
from pyderp.net.tlscontext import TLSConfig
from pyderp.netcheck.commands import (
    CheckCaptive,
    Command,
    MeasureHTTPS,
    MeasureICMP,
    RunOptions,
    SendProbe,
)
from pyderp.netcheck.core import Run, is_full_due
from pyderp.netcheck.home import History, HomeHints
from pyderp.netcheck.icmp import NotPermitted, Pinger
from pyderp.netcheck.interfaces import host_network, os_has_ipv6
from pyderp.netcheck.latency import finds_captive_portal, https_latency
from pyderp.netcheck.plan import Family, Probe
from pyderp.netcheck.report import Report
from pyderp.tasks import cancel_and_wait

__all__ = ["Netcheck", "NetcheckConfig"]

log = logging.getLogger("pyderp.netcheck")

_AT_ONCE: Final = 64
"""Commands that are carried out in one turn of the loop."""
_LOOKUPS: Final = 32
"""Host names that are looked up at once; each takes a thread."""
_CONNECTIONS: Final = 64
"""HTTPS measurements at once."""
_HTTPS_TIMEOUT: Final = 5.0
_MAX_NOTES: Final = 50
"""A map may have 10,000 regions, and each may fail."""
_MAX_PORT: Final = 65535
_FAMILIES: Final = {Family.V4: socket.AF_INET, Family.V6: socket.AF_INET6}


@dataclass(frozen=True, kw_only=True)
class NetcheckConfig:
    """How to measure."""

    bind_host: str = ""
    """IP address that STUN leaves from; empty: any. The other family then has no socket."""
    bind_port: int = 0
    """UDP port of both families; 0: any free one."""
    tls: TLSConfig = field(default_factory=TLSConfig)
    network: NetworkSettings | None = None
    """Proxies and socket options of TCP; `None`: what the environment says."""
    resolver: Resolver | None = None
    """For the names of nodes; by default the system's."""
    only_stun: bool = False
    only_tcp_443: bool = False
    verbose: bool = False
    """Wait for more regions, and always finish the check for a captive portal."""

    def __post_init__(self) -> None:
        """Refuse what contradicts itself.

        Raises:
            ConfigError: STUN only and HTTPS only at once, or an address or port that is none.
        """
        if self.only_stun and self.only_tcp_443:
            raise ConfigError("only_stun and only_tcp_443 exclude each other")
        if self.bind_host and ip_literal(self.bind_host) is None:
            raise ConfigError(f'invalid bind address: "{self.bind_host}"')
        if not 0 <= self.bind_port <= _MAX_PORT:
            raise ConfigError(f"invalid bind port number: {self.bind_port}")


class Netcheck:
    """Measures a network again and again; use it in `async with`.

    It keeps its UDP sockets from run to run, and the reports of five minutes, by which the later
    runs are shorter and the home region changes only for a reason.

    Raises:
        ConfigError: on entering: no socket can be bound as `config` wants.
    """

    def __init__(self, config: NetcheckConfig | None = None) -> None:
        self.config = config or NetcheckConfig()
        self.history = History()
        self.on_progress: Callable[[str], None] | None = None
        """Called with what is done at the moment, a few words."""
        self._sockets: dict[Family, StunClient] = {}
        self._last_full: int | None = None
        self._current: _Running | None = None

    async def __aenter__(self) -> Self:
        if not self.config.only_tcp_443:
            self._open_sockets()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        for each in self._sockets.values():
            each.close()
        self._sockets.clear()

    def _open_sockets(self) -> None:
        literal = ip_literal(self.config.bind_host) if self.config.bind_host else None
        problems: list[str] = []
        for family, number in _FAMILIES.items():
            if literal is not None and literal.version != family:
                continue
            try:
                self._sockets[family] = StunClient(
                    number, host=self.config.bind_host, port=self.config.bind_port
                )
            except ConfigError as e:
                problems.append(str(e))
        if not self._sockets:
            raise ConfigError("; ".join(problems))
        for problem in problems:
            log.info("%s", problem)

    def partial_report(self) -> Report | None:
        """What the current or last run has measured so far, without a home."""
        if self._current is None:
            return None
        report = self._current.run.report
        report.now = report.now or time.time_ns()
        return report

    async def run(self, derp_map: DERPMap) -> Report:
        """Measure once. It takes 5 s at most, and a check for a captive portal that runs then.

        The first run is full, then one every five minutes; others ask the fastest regions only.

        Raises:
            RuntimeError: a run is under way.
        """
        if self._current is not None and not self._current.ended:
            raise RuntimeError("a run of this Netcheck is under way")
        began, began_wall = time.monotonic_ns(), time.time_ns()
        last = self.history.last
        if is_full_due(last, self._last_full, began):
            self._last_full, last = began, None
        host = host_network()
        options = RunOptions(
            have_v4=host.have_v4,
            have_v6=host.have_v6,
            os_has_ipv6=os_has_ipv6(),
            have_interface=host.have_interface,
            only_stun=self.config.only_stun,
            only_tcp_443=self.config.only_tcp_443,
            verbose=self.config.verbose,
        )
        run = Run(derp_map, options, last=last, home=self.history.home)
        self._current = _Running(run, self.config, self._sockets, self.on_progress)
        await self._current.drive()
        report = run.report
        report.now = time.time_ns()
        scores = derp_map.home_params.region_score if derp_map.home_params else None
        self.history.add(report, HomeHints(started=began_wall, scores=scores))
        return report


class _Running:
    """Carries out the commands of one run."""

    def __init__(
        self,
        run: Run,
        config: NetcheckConfig,
        sockets: dict[Family, StunClient],
        on_progress: Callable[[str], None] | None,
    ) -> None:
        self.run = run
        self.ended = False
        self._config = config
        self._settings = config.network or NetworkSettings.from_environment()
        self._client = ClientConfig(
            tls=config.tls, network=self._settings, connect_timeout=_HTTPS_TIMEOUT
        )
        self._sockets = sockets
        self._on_progress = on_progress
        self._tasks: set[asyncio.Task[None]] = set()
        self._pings: set[asyncio.Task[None]] = set()
        self._addresses: dict[tuple[str, Family], asyncio.Task[str]] = {}
        self._changed = asyncio.Event()
        self._lookups = asyncio.Semaphore(_LOOKUPS)
        self._connections = asyncio.Semaphore(_CONNECTIONS)
        self._pinger: Pinger | None = None
        self._no_pings = ""

    async def drive(self) -> None:
        """Until the run is finished; nothing is left behind, also if this is cancelled."""
        try:
            self.run.start(time.monotonic_ns())
            while not self.run.finished:
                self._changed.clear()
                await self._carry_out(self.run.take())
                await self._wait()
                self.run.on_time(time.monotonic_ns())
        finally:
            self.ended = True
            for each in self._sockets.values():
                each.forget()
            await cancel_and_wait([*self._tasks, *self._addresses.values()])
            self._addresses.clear()
            if self._pinger is not None:
                self._pinger.close()

    async def _wait(self) -> None:
        due = self.run.next_time
        if due is None or self.run.finished:
            return
        delay = (due - time.monotonic_ns()) / 1e9
        try:
            async with asyncio.timeout(max(delay, 0)):
                await self._changed.wait()
        except TimeoutError:
            pass

    async def _carry_out(self, commands: list[Command]) -> None:
        for number, command in enumerate(commands, 1):
            match command:
                case SendProbe(probe):
                    self._probe(probe)
                case MeasureHTTPS(region):
                    self._tell("UDP seems blocked; measuring by HTTPS")
                    self._start(self._https(region))
                case MeasureICMP(region):
                    self._pings.add(self._start(self._icmp(region)))
                case CheckCaptive(endpoints):
                    self._start(self._captive(endpoints))
                case _:
                    for task in self._pings:
                        task.cancel()
            if number % _AT_ONCE == 0:
                await asyncio.sleep(0)

    def _tell(self, text: str) -> None:
        if self._on_progress is not None:
            self._on_progress(text)

    def _note(self, text: str) -> None:
        notes = self.run.report.notes
        if len(notes) < _MAX_NOTES and text not in notes:
            notes.append(text)
            if len(notes) == _MAX_NOTES:
                notes.append("more of the kind is left out")
            log.info("%s", text)

    def _start(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.create_task(work, name="pyderp netcheck")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        task.add_done_callback(self._pings.discard)
        return task

    # STUN

    def _probe(self, probe: Probe) -> None:
        node = probe.node
        port = node.stun_port or STUN_PORT
        if not 0 < port <= _MAX_PORT or probe.family not in self._sockets:
            return  # as a request that is lost
        address = _literal(node, probe.family)
        if address is None:
            self._start(self._probe_by_name(probe, port))
        elif address:
            self._send(probe, address, port)

    async def _probe_by_name(self, probe: Probe, port: int) -> None:
        key = probe.node.host_name, probe.family
        task = self._addresses.get(key)
        if task is None:
            looking = self._look_up(*key)
            task = self._addresses[key] = asyncio.create_task(looking, name="pyderp netcheck DNS")
        await asyncio.wait((task,))
        if not task.cancelled() and (address := task.result()):
            self._send(probe, address, port)

    async def _look_up(self, host: str, family: Family) -> str:
        """The first address of a family; empty: none."""
        async with self._lookups:
            try:
                found = await lookup(host, family=_FAMILIES[family], resolver=self._config.resolver)
            except DialError as e:
                log.info("%s", e)
                return ""
        return next((str(ip) for ip in found if ip.version == family), "")

    def _send(self, probe: Probe, address: str, port: int) -> None:
        def on_answer(answer: StunAnswer) -> None:
            latency = max(round(answer.round_trip * 1e9), 1)
            now = time.monotonic_ns()
            self.run.on_answer(probe, answer.address, answer.port, latency, now)
            log.info("node %s: STUN answer after %.1f ms", probe.node.name, answer.round_trip * 1e3)
            if not answer.from_asked_address:
                self._note(
                    f"node {probe.node.name}: the STUN answer came from {answer.source[0]}, not "
                    f"from {answer.asked[0]} that was asked: many firewalls drop such answers"
                )
            self._tell(f"{len(self.run.report.region_latency)} of {self.run.planned_regions}")
            self._changed.set()

        try:
            self._sockets[probe.family].send(address, port, on_answer)
        except OSError as e:
            log.info("node %s: cannot send to %s: %s", probe.node.name, address, e.strerror or e)
        else:
            self.run.on_sent(probe)

    # Without UDP

    async def _https(self, region: DERPRegion) -> None:
        latency, version = None, 0
        try:
            async with self._connections:
                latency, version = await https_latency(region, self._client)
        except (DerpError, OSError) as e:
            label = region.region_code or region.region_id
            self._note(f"HTTPS to region {label}: {e}")
        self.run.on_https(region, latency, version, time.monotonic_ns())
        self._changed.set()

    async def _icmp(self, region: DERPRegion) -> None:
        latency = None
        try:
            latency = await self._ping(region.nodes[0])
        except NotPermitted as e:
            self._no_pings = str(e)
            self._note(f"no ICMP: {e}")
        except (DerpError, OSError) as e:
            log.info("ICMP to region %s: %s", region.region_code or region.region_id, e)
        self.run.on_icmp(region, latency, time.monotonic_ns())
        self._changed.set()

    async def _ping(self, node: DERPNode) -> int | None:
        address = _literal(node, Family.V4)
        if address is None:
            address = await self._look_up(node.host_name, Family.V4)
        if not address or self._no_pings:
            return None
        if self._pinger is None:
            self._pinger = Pinger()
        return await self._pinger.ping(address, node.name.encode())

    async def _captive(self, endpoints: Any) -> None:
        found = await finds_captive_portal(endpoints, self._settings)
        self.run.on_captive(found, time.monotonic_ns())
        self._changed.set()


def _literal(node: DERPNode, family: Family) -> str | None:
    """The address of a node that its map has; empty: none of this family; `None`: look it up."""
    text = node.stun_test_ip or (node.ipv4 if family is Family.V4 else node.ipv6)
    literal = ip_literal(text or node.host_name)
    if literal is not None:
        return str(literal) if literal.version == family else ""
    return "" if text else None
