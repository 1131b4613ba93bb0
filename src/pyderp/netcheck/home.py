"""Chooses the home region: the fastest of the last minutes, unless the gain is small.

In Go `netcheck.Client.addReportHistoryAndSetPreferredDERP`. Sans-IO; times are nanoseconds.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from pyderp.netcheck.plan import MS
from pyderp.netcheck.report import Report

__all__ = ["History", "HomeHints"]

_SECOND: Final = 1000 * MS
_KEPT: Final = 305 * _SECOND
"""How long a report counts: five minutes, and the five seconds that a run may take [maxAge]."""
_LEAST_GAIN: Final = 10 * MS
"""A region must be faster by at least this to replace home [preferredDERPAbsoluteDiff]."""
_RECENT_FRAME: Final = 8 * _SECOND
"""A frame from the home relay that is not older than this shows that it works
[PreferredDERPFrameTime]."""
_KEEP_WITHOUT_DATA: Final = 120 * _SECOND
"""If a run has no latencies, home is kept for this long after its relay's last frame."""


@dataclass(frozen=True, kw_only=True)
class HomeHints:
    """What a program that is connected to relays knows besides the measurements."""

    started: int = 0
    """When the run began, nanoseconds since 1970."""
    last_frame: Mapping[int, int] | None = None
    """Region id → when a frame from its relay last arrived, nanoseconds since 1970."""
    forced: int = 0
    """A region that stays home as long as it can be reached; 0: none."""
    scores: Mapping[int, float] | None = None
    """Region id → factor on its latency (`HomeParams.RegionScore`)."""


class History:
    """Keeps the reports of the last minutes, and chooses the home region from them."""

    def __init__(self) -> None:
        self._reports: list[Report] = []
        self.last: Report | None = None
        """The report that was added last, even if it is too old to count."""

    def __len__(self) -> int:
        """Return how many reports are kept."""
        return len(self._reports)

    @property
    def home(self) -> int:
        """The preferred region of the last report; 0: none."""
        return 0 if self.last is None else self.last.preferred_derp

    def home_of(self, report: Report, hints: HomeHints | None = None) -> int:
        """Return the home after an interrupted run, without keeping its report; 0: none.

        An earlier home stays home, as measurements that are missing may only be late.
        """
        return self.home or self._choose([report], report, 0, hints or HomeHints())

    def add(self, report: Report, hints: HomeHints | None = None) -> None:
        """Set `report.preferred_derp`, and keep the report. `report.now` must be set."""
        hints = hints or HomeHints()
        previous = self.home
        self._reports = [r for r in self._reports if report.now - r.now <= _KEPT]
        self._reports.append(report)
        self.last = report
        report.preferred_derp = self._choose(self._reports, report, previous, hints)

    @staticmethod
    def _choose(reports: list[Report], report: Report, previous: int, hints: HomeHints) -> int:
        best = _best(reports, hints.scores or {})
        measured = report.region_latency
        # Only regions of this run may become home, each by its best latency of the last minutes:
        # so a single slow answer does not move home.
        pick = min(measured, key=lambda region: (best[region], region), default=0)
        best_any = best.get(pick, 0)
        now_of_previous = _scaled(measured.get(previous, 0), previous, hints.scores or {})
        if (
            previous
            and pick != previous
            and (now_of_previous or _has_recent_frame(previous, report, hints))
        ):
            # Every change of home costs connections: it must gain 10 ms and a third.
            small_gain = now_of_previous - best_any < _LEAST_GAIN
            if small_gain or best_any > now_of_previous // 3 * 2:
                pick = previous
        if hints.forced and (
            hints.forced in measured or _has_recent_frame(hints.forced, report, hints)
        ):
            pick = hints.forced
        # A run without any answer, such as during an outage, does not take away the home at once.
        if not pick and previous and _frame_age(previous, report, hints) <= _KEEP_WITHOUT_DATA:
            pick = previous
        return pick


def _best(reports: list[Report], scores: Mapping[int, float]) -> dict[int, int]:
    """Return region id → least latency of all reports, multiplied by the region's score."""
    best: dict[int, int] = {}
    for report in reports:
        for region, latency in report.region_latency.items():
            best[region] = min(latency, best.get(region, latency))
    return {region: _scaled(latency, region, scores) for region, latency in best.items()}


def _scaled(latency: int, region: int, scores: Mapping[int, float]) -> int:
    score = scores.get(region, 0.0)
    return int(latency * score) if score > 0 else latency


def _frame_age(region: int, report: Report, hints: HomeHints) -> float:
    frame = (hints.last_frame or {}).get(region)
    return float("inf") if frame is None else report.now - frame


def _has_recent_frame(region: int, report: Report, hints: HomeHints) -> bool:
    """Return whether a recent frame shows that the region's relay works."""
    frame = (hints.last_frame or {}).get(region)
    if frame is None:
        return False
    return frame > hints.started or report.now - frame <= _RECENT_FRAME
