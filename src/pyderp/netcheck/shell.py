"""Carries out the commands of `core`: it has the sockets, look-ups, TLS connections and tasks."""

from __future__ import annotations

import asyncio
import logging
import socket
import time
from collections.abc import Callable, Coroutine, Mapping
from typing import Any, Final

from pyderp.addresses import ip_literal
from pyderp.client.config import ClientConfig
from pyderp.defaults import STUN_PORT
from pyderp.errors import DerpError, DialError
from pyderp.maps.region import DERPNode, DERPRegion
from pyderp.net.dns import lookup
from pyderp.net.settings import NetworkSettings
from pyderp.net.stunclient import StunAnswer, StunClient
from pyderp.netcheck.captive import Endpoint
from pyderp.netcheck.commands import (
    CheckCaptive,
    Command,
    MeasureHTTPS,
    MeasureICMP,
    SendProbe,
)
from pyderp.netcheck.config import NetcheckConfig
from pyderp.netcheck.core import Run
from pyderp.netcheck.icmp import NotPermitted, Pinger
from pyderp.netcheck.latency import finds_captive_portal, https_latency
from pyderp.netcheck.plan import Family, Probe
from pyderp.tasks import cancel_and_wait

__all__ = ["FAMILIES", "Shell"]

log = logging.getLogger("pyderp.netcheck")

FAMILIES: Final = {Family.V4: socket.AF_INET, Family.V6: socket.AF_INET6}
LOOKUPS: Final = 32
"""How many host names are looked up at the same time; each takes a thread."""
_AT_ONCE: Final = 64
"""How many commands are carried out in one turn of the loop; between turns answers are read."""
_CONNECTIONS: Final = 64
"""How many HTTPS measurements run at the same time."""
_HTTPS_TIMEOUT: Final = 5.0
_MAX_NOTES: Final = 50
"""The most notes of a report: a map may have 10,000 regions, and each may fail."""
_MAX_PORT: Final = 65535


class Shell:
    """Carries out the commands of one run."""

    def __init__(
        self,
        run: Run,
        config: NetcheckConfig,
        sockets: Mapping[Family, StunClient],
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
        self._lookups = asyncio.Semaphore(LOOKUPS)
        self._connections = asyncio.Semaphore(_CONNECTIONS)
        self._pinger: Pinger | None = None
        self._no_pings = ""

    async def drive(self) -> None:
        """Carry out the run until it is finished. All tasks end then, also if this is cancelled."""
        try:
            self.run.start(time.monotonic_ns())
            while not self.run.finished:
                self._changed.clear()
                await self._carry_out(self.run.take())
                await self._wait()
                self.run.on_time(time.monotonic_ns())
            if self.run.stopped_at_deadline:
                self._note("stopped after 5 s: regions that had not answered have no latency")
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
                    self._report_progress("UDP seems blocked; measuring by HTTPS")
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

    def _report_progress(self, text: str) -> None:
        if self._on_progress is not None:
            self._on_progress(text)

    def _note(self, text: str) -> None:
        notes = self.run.report.notes
        if len(notes) < _MAX_NOTES and text not in notes:
            notes.append(text)
            if len(notes) == _MAX_NOTES:
                notes.append("further notes are left out")
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
            return  # the run handles it like a request that is lost
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
        """Return the first address of a family as text; empty if there is none."""
        async with self._lookups:
            try:
                found = await lookup(host, family=FAMILIES[family], resolver=self._config.resolver)
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
                    f"from {answer.asked[0]}, which was asked: many firewalls drop such answers"
                )
            self._report_progress(
                f"{len(self.run.report.region_latency)} of {self.run.planned_regions}"
            )
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
            if isinstance(e, DialError) and isinstance(e.__cause__, DialError):
                e = e.__cause__  # The outer error begins with the name of a Go function.
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

    async def _captive(self, endpoints: tuple[Endpoint, ...]) -> None:
        found = await finds_captive_portal(endpoints, self._settings)
        self.run.on_captive(found, time.monotonic_ns())
        self._changed.set()


def _literal(node: DERPNode, family: Family) -> str | None:
    """Return the address of a node in its map.

    Empty: the node has none of this family; `None`: its name must be looked up.
    """
    text = node.stun_test_ip or (node.ipv4 if family is Family.V4 else node.ipv6)
    literal = ip_literal(text or node.host_name)
    if literal is not None:
        return str(literal) if literal.version == family else ""
    return "" if text else None
