"""A network in virtual time, in which `Run` is driven without sleeping."""

from __future__ import annotations

import heapq
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from ipaddress import ip_address

from pyderp.maps.derpmap import DERPMap
from pyderp.netcheck.commands import (
    CheckCaptive,
    Command,
    MeasureHTTPS,
    MeasureICMP,
    RunOptions,
    SendProbe,
    StopICMP,
)
from pyderp.netcheck.core import Run
from pyderp.netcheck.plan import MS, Family, Probe
from pyderp.netcheck.report import Report

OURS = {Family.V4: "198.51.100.7", Family.V6: "2001:db8:ffff::7"}


@dataclass
class VirtualNetwork:
    """Which node answers what, and after how many milliseconds.

    Requests that are not in a mapping get no answer.
    """

    stun: Mapping[tuple[str, Family], float] = field(default_factory=dict)
    """By name of the node and family."""
    https: Mapping[int, float] = field(default_factory=dict)
    """By region; negative: it fails after this time."""
    icmp: Mapping[int, float] = field(default_factory=dict)
    captive: tuple[float, bool] | None = None
    """When the check for a portal ends, counted from its begin, and with which outcome."""
    mapped_port: Callable[[Probe, int], int] = lambda _probe, _number: 40_000
    """The port from which a server sees the nth request."""
    lost: Callable[[Probe, int], bool] = lambda _probe, _number: False
    """Which requests get lost on the way, by their number."""
    now: int = 0
    log: list[str] = field(default_factory=list)
    """`time what`, in milliseconds."""
    sent: int = 0
    _events: list[tuple[int, int, Callable[[], None]]] = field(default_factory=list)

    def run(
        self,
        derp_map: DERPMap,
        options: RunOptions | None = None,
        *,
        last: Report | None = None,
        home: int = 0,
    ) -> Report:
        """Play a run to its end."""
        began = self.now
        run = Run(derp_map, options or RunOptions(have_v6=False), last=last, home=home)
        run.start(self.now)
        while not run.finished:
            for command in run.take():
                self._carry_out(run, command)
            times = [time for time in (self._next(), run.next_time) if time is not None]
            assert times, "nothing can happen any more, and the run is not finished"
            self.now = max(self.now, min(times))
            while self._events and self._events[0][0] <= self.now:
                heapq.heappop(self._events)[2]()
            run.on_time(self.now)
        self.took = (self.now - began) / MS
        self._events.clear()
        return run.report

    def said(self, what: str) -> list[str]:
        """The lines of the log with this word."""
        return [line for line in self.log if what in line]

    def _next(self) -> int | None:
        return self._events[0][0] if self._events else None

    def _after(self, milliseconds: float, act: Callable[[], None]) -> None:
        time = self.now + round(milliseconds * MS)
        heapq.heappush(self._events, (time, len(self.log) + len(self._events), act))

    def _carry_out(self, run: Run, command: Command) -> None:
        match command:
            case SendProbe(probe):
                self._say(f"stun {probe.node.name} v{probe.family.value}")
                self._answer_stun(run, probe)
            case MeasureHTTPS(region):
                self._say(f"https {region.region_id}")
                delay = self.https.get(region.region_id)
                if delay is not None:
                    latency = None if delay < 0 else round(delay * MS)
                    self._after(abs(delay), lambda: run.on_https(region, latency, 4, self.now))
            case MeasureICMP(region):
                self._say(f"icmp {region.region_id}")
                echo = self.icmp.get(region.region_id)
                if echo is not None:
                    self._after(echo, lambda: run.on_icmp(region, round(echo * MS), self.now))
            case StopICMP():
                self._say("icmp stops")
            case CheckCaptive(endpoints):
                self._say("captive " + " ".join(each.address for each in endpoints))
                if self.captive is not None:
                    after, found = self.captive
                    self._after(after, lambda: run.on_captive(found, self.now))

    def _answer_stun(self, run: Run, probe: Probe) -> None:
        self.sent += 1
        number = self.sent
        run.on_sent(probe)
        delay = self.stun.get((probe.node.name, probe.family))
        if delay is None or self.lost(probe, number):
            return
        address = ip_address(OURS[probe.family])
        port = self.mapped_port(probe, number)
        self._after(
            delay,
            lambda: run.on_answer(probe, address, port, round(delay * MS), self.now),
        )

    def _say(self, what: str) -> None:
        self.log.append(f"{self.now / MS:g} {what}")
