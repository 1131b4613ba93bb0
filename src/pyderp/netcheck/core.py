"""One run of netcheck without I/O: takes events and times, and returns commands.

A shell carries out the commands and calls `Run` with the results. In Go this is
`netcheck.Client.GetReport`:

    start ─ SendProbe… ─ answers ─┬─ enough ──────────────────────┬─ captive check ─ finished
                                  └─ no UDP: MeasureHTTPS and     │  (if it has begun)
                                     MeasureICMP, then ───────────┘

Times are nanoseconds of a monotonic clock, passed to each method. Nothing here waits.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable
from enum import Enum, auto
from functools import partial
from typing import Final

from pyderp.addresses import IPAddress, format_address
from pyderp.maps.derpmap import DERPMap
from pyderp.maps.region import DERPRegion
from pyderp.netcheck.captive import captive_endpoints
from pyderp.netcheck.commands import (
    CheckCaptive,
    Command,
    MeasureHTTPS,
    MeasureICMP,
    RunOptions,
    SendProbe,
    StopICMP,
)
from pyderp.netcheck.plan import MS, Family, Probe, SetKey, make_plan
from pyderp.netcheck.report import Report, Way

__all__ = ["Run", "is_full_due"]

OVERALL: Final = 5000 * MS
"""The most that a whole run takes [overallProbeTimeout]."""
STUN_PHASE: Final = 3000 * MS
"""The most that a run waits for answers to STUN [stunProbeTimeout]."""
ICMP_PHASE: Final = 1000 * MS
"""The most that a run waits for ICMP echoes [icmpProbeTimeout]."""
HTTPS_PHASE: Final = 5000 * MS
"""The most that HTTPS to one region takes, within the run [httpsProbeTimeout]."""
CAPTIVE_DELAY: Final = 200 * MS
"""When the check for a captive portal starts [captivePortalDelay]. Most runs have their STUN
answers before that, and skip the check."""
ENOUGH_REGIONS: Final = 3
"""Answers of so many regions start the end of the STUN phase [enoughRegions]."""
ENOUGH_REGIONS_VERBOSE: Final = 100
FULL_INTERVAL: Final = 300_000 * MS
"""A full run is due if the last one began longer ago than this."""


def is_full_due(last: Report | None, last_full: int | None, now: int) -> bool:
    """Return whether the next run must measure all regions.

    Args:
        last: the report of the previous run; `None`: there was none.
        last_full: when the last full run began, on the clock of `now`.
    """
    if last is None or last_full is None or now - last_full > FULL_INTERVAL:
        return True
    # A captive portal may have blocked the answers that the last run would have had.
    return not last.udp and last.captive_portal is True


class _Phase(Enum):
    STUN = auto()
    FALLBACK = auto()
    CAPTIVE = auto()
    """Everything else is measured; the run waits for the check for a captive portal."""
    FINISHED = auto()


class Run:
    """One run, which fills `report`.

    Call `start`, then an `on_…` method for each event, and `on_time` at `next_time`. After each
    call carry out the commands that `take` returns. When `finished` is true, cancel the commands
    that are still under way; `report` is then complete except for `now` and `preferred_derp`.

    Args:
        last: the report of the previous run, for an incremental run; `None`: a full run.
        home: the preferred region of the previous run, also for a full run; 0: none.
    """

    def __init__(
        self, derp_map: DERPMap, options: RunOptions, *, last: Report | None = None, home: int = 0
    ) -> None:
        self.report = Report(os_has_ipv6=options.os_has_ipv6)
        self.stopped_at_deadline = False
        """The run ended by its time limit, with measurements under way."""
        self._map = derp_map
        self._options = options
        self._incremental = last is not None
        self._home = home
        self._plan = {}
        if not options.only_tcp_443:
            self._plan = dict(
                make_plan(
                    derp_map,
                    last=last,
                    home=home,
                    have_v4=options.have_v4,
                    have_v6=options.have_v6,
                )
            )
        self._phase = _Phase.STUN
        self._open: set[SetKey] = set(self._plan)
        """Sets of probes that still wait for an answer. Without any, the STUN phase ends."""
        self._https: set[int] = set()
        self._icmp: set[int] = set()
        self._captive_wanted = False
        self._captive_under_way = False
        self._timers: list[tuple[int, int, Callable[[int], None]]] = []
        self._serial = 0
        self._commands: list[Command] = []
        self._deadline = 0

    @property
    def finished(self) -> bool:
        """Whether the report is complete."""
        return self._phase is _Phase.FINISHED

    @property
    def next_time(self) -> int | None:
        """When the caller must call `on_time`; `None`: no time limit is running."""
        return self._timers[0][0] if self._timers and not self.finished else None

    @property
    def planned_regions(self) -> int:
        """How many regions this run measures."""
        return len({region for region, _ in self._plan}) or len(self._https | self._icmp)

    def take(self) -> list[Command]:
        """Return the commands to carry out now; each command is returned once."""
        commands, self._commands = self._commands, []
        return commands

    def start(self, now: int) -> None:
        """Start the run: set its time limits and issue the first probes."""
        self._deadline = now + OVERALL
        for probes in self._plan.values():
            for probe in probes:
                self._at(now + probe.delay, partial(self._send, probe))
        if not self._incremental and not self._options.only_stun:
            if self._options.have_interface:
                self._captive_wanted = True
                self._at(now + CAPTIVE_DELAY, self._check_captive)
            else:
                self.report.captive_portal = False
        self._at(now + STUN_PHASE, self._end_stun)
        self._at(self._deadline, self._on_deadline)
        self._check_sets(now)
        self.on_time(now)

    def on_time(self, now: int) -> None:
        """Run the timers that are due."""
        while self._timers and self._timers[0][0] <= now and not self.finished:
            _, _, act = heapq.heappop(self._timers)
            act(now)

    def on_sent(self, probe: Probe) -> None:
        """Record that the kernel accepted a request; on Linux it may accept and then drop it."""
        if probe.family is Family.V4:
            self.report.ipv4_can_send = True
        else:
            self.report.ipv6_can_send = True

    def on_answer(
        self, probe: Probe, address: IPAddress, port: int, latency: int, now: int
    ) -> None:
        """Record that a STUN server answered a request.

        Args:
            address, port: the source of the request as the server saw it.
            latency: nanoseconds of the round trip.
        """
        if self.finished:
            return
        self.on_sent(probe)
        self._record_mapping(probe.family, format_address(str(address), port))
        self._record_stun(probe, latency, now)
        self._close_set(probe.set_key, now)

    def on_https(self, region: DERPRegion, latency: int | None, version: int, now: int) -> None:
        """Record the result of an HTTPS request to a region's relay.

        Args:
            latency: nanoseconds; `None`: the request failed.
            version: IP version of the connection, 4 or 6.
        """
        if latency is not None:
            self._record_fallback(region, latency, Way.HTTPS)
            if version == Family.V4:
                self.report.ipv4 = True
            else:
                self.report.ipv6 = True
        self._https.discard(region.region_id)
        self._check_fallback(now)

    def on_icmp(self, region: DERPRegion, latency: int | None, now: int) -> None:
        """Record the result of an ICMP echo; `latency` is `None` without an answer."""
        if latency is not None and region.region_id in self._icmp:
            self._record_fallback(region, latency, Way.ICMP)
            self.report.icmpv4 = self.report.ipv4 = True
        self._icmp.discard(region.region_id)
        self._check_fallback(now)

    def on_captive(self, found: bool | None, now: int) -> None:
        """Record the result of the check for a captive portal; `None`: it could not be made."""
        self._captive_under_way = False
        self.report.captive_portal = found
        if self._phase is _Phase.CAPTIVE:
            self._finish(now)

    def _at(self, time: int, act: Callable[[int], None]) -> None:
        self._serial += 1
        heapq.heappush(self._timers, (time, self._serial, act))

    # STUN

    def _send(self, probe: Probe, now: int) -> None:
        if self._phase is not _Phase.STUN or probe.set_key not in self._open:
            return
        if self._would_help(probe):
            self._commands.append(SendProbe(probe))
        else:
            self._close_set(probe.set_key, now)

    def _would_help(self, probe: Probe) -> bool:
        report = self.report
        if probe.node.region_id not in report.region_latency:
            return True
        # The region has a latency: another probe can only show that IPv6 works, or, by a second
        # IPv4 answer, whether the mapping varies.
        if probe.family is Family.V6:
            return not report.region_v6_latency
        return report.mapping_varies_by_dest_ip is None

    def _record_mapping(self, family: Family, mapped: str) -> None:
        report = self.report
        if family is Family.V6:
            report.ipv6 = True
            report.global_v6 = mapped
            counters = report.global_v6_counters
        else:
            report.ipv4 = True
            counters = report.global_v4_counters
            if not report.global_v4:
                report.global_v4 = mapped
            elif mapped != report.global_v4:
                report.mapping_varies_by_dest_ip = True
            elif report.mapping_varies_by_dest_ip is None:
                report.mapping_varies_by_dest_ip = False
        counters[mapped] = counters.get(mapped, 0) + 1

    def _record_stun(self, probe: Probe, latency: int, now: int) -> None:
        report = self.report
        region = probe.node.region_id
        report.udp = True
        by_family = (
            report.region_v4_latency if probe.family is Family.V4 else report.region_v6_latency
        )
        for latencies in (report.region_latency, by_family):
            latencies[region] = min(latency, latencies.get(region, latency))
        report.ways.setdefault(region, set()).add(Way.STUN)
        more = self._options.verbose or self._options.all_regions
        enough = ENOUGH_REGIONS_VERBOSE if more else ENOUGH_REGIONS
        if len(report.region_latency) == enough:
            # Regions that are not much slower than these get the time to answer.
            wait = max(report.region_latency.values()) * (1 if self._incremental else 2)
            self._at(now + wait, self._end_stun_with_answers)

    def _close_set(self, key: SetKey, now: int) -> None:
        self._open.discard(key)
        self._check_sets(now)

    def _check_sets(self, now: int) -> None:
        if not self._open and self._phase is _Phase.STUN:
            if self.report.udp:
                self._end_stun_with_answers(now)
            else:
                self._end_stun(now)

    def _end_stun_with_answers(self, now: int) -> None:
        # UDP works, so there is no captive portal: a check that has not begun is not made.
        if self._phase is _Phase.STUN and not self._options.verbose:
            self._captive_wanted = False
        self._end_stun(now)

    def _end_stun(self, now: int) -> None:
        if self._phase is not _Phase.STUN:
            return
        self._phase = _Phase.FALLBACK
        if not self.report.udp and not self._options.only_stun:
            self._fall_back(now)
        self._check_fallback(now)

    # Without UDP: HTTPS and ICMP

    def _fall_back(self, now: int) -> None:
        # The faster of HTTPS and ICMP counts; ICMP has a shorter time limit, as many hosts drop it.
        for region in self._map.regions.values():
            if (
                region.region_id in self.report.region_latency
                or region.avoid
                or region.no_measure_no_home
                or all(node.stun_only for node in region.nodes)
            ):
                continue
            self._https.add(region.region_id)
            self._commands.append(MeasureHTTPS(region))
            if not self._options.only_tcp_443 and region.nodes[0].stun_port >= 0:
                self._icmp.add(region.region_id)
                self._commands.append(MeasureICMP(region))
        if self._icmp:
            self._at(now + ICMP_PHASE, self._stop_icmp)

    def _record_fallback(self, region: DERPRegion, latency: int, way: Way) -> None:
        latencies = self.report.region_latency
        latencies[region.region_id] = min(latency, latencies.get(region.region_id, latency))
        self.report.ways.setdefault(region.region_id, set()).add(way)

    def _stop_icmp(self, now: int) -> None:
        if self._icmp:
            self._icmp.clear()
            self._commands.append(StopICMP())
            self._check_fallback(now)

    def _check_fallback(self, now: int) -> None:
        if self._phase is _Phase.FALLBACK and not self._https and not self._icmp:
            self._phase = _Phase.CAPTIVE
            if not self._captive_under_way and not self._captive_wanted:
                self._finish(now)

    # Captive portal, and the end of the run

    def _check_captive(self, now: int) -> None:
        if not self._captive_wanted:
            return
        self._captive_wanted = False
        endpoints = captive_endpoints(self._map, self._home)
        if endpoints:
            self._captive_under_way = True
            self._commands.append(CheckCaptive(endpoints))
        elif self._phase is _Phase.CAPTIVE:
            self._finish(now)

    def _on_deadline(self, now: int) -> None:
        self.stopped_at_deadline = True
        self._finish(now)

    def _finish(self, now: int) -> None:
        self._phase = _Phase.FINISHED
        self._timers.clear()
