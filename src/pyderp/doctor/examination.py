"""A whole run of doctor: all checks of all nodes of some regions."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass
from typing import Any, Final

from pyderp.doctor import http, maps, names, relay, stun, tcp, tls
from pyderp.doctor import region as regions
from pyderp.doctor.finding import Check, Finding
from pyderp.doctor.region import RegionVisit
from pyderp.doctor.runner import run_checks
from pyderp.doctor.visit import Settings, Subject, Visit
from pyderp.maps.derpmap import DERPMap
from pyderp.tasks import run_together

__all__ = ["Examination", "Region", "checks_of"]

_NODES_AT_ONCE: Final = 8
"""How many nodes are checked at the same time: few, as they share the network of this machine and
would distort each other's measurements."""
_MAP: Final = "map"


@dataclass(frozen=True)
class Region:
    """The nodes of one region, or a single relay."""

    name: str
    subjects: tuple[Subject, ...]

    @property
    def has_several(self) -> bool:
        """Whether the region has several relays, which must then form a mesh."""
        return sum(not each.node.stun_only for each in self.subjects) > 1


def checks_of(subject: Subject, *, deep: bool) -> tuple[Check[Visit], ...]:
    """Return the checks of one node, in the order in which they are printed."""
    base = (*names.CHECKS, *stun.CHECKS)
    if subject.node.stun_only:
        return base
    encrypted = subject.target.tls
    return (
        *names.CHECKS,
        *tcp.CHECKS,
        *(tls.CHECKS if encrypted else ()),
        *http.checks(tls=encrypted),
        *stun.CHECKS,
        *relay.checks(deep=deep),
    )


@dataclass
class Examination:
    """Runs all checks of some regions.

    Args:
        regions: in the order in which they are printed.
        settings: the settings of all checks.
        derp_map: the map that has the regions; it is checked, too. `None`: there is no map.
    """

    regions: Sequence[Region]
    settings: Settings
    derp_map: DERPMap | None = None

    def plan(self) -> list[tuple[str, str]]:
        """Return `Finding.key` of each finding that `run` will report, in the order to print."""
        keys: list[tuple[str, str]] = []
        if self.derp_map is not None:
            keys += [(_MAP, check.name) for check in maps.CHECKS]
        for region in self.regions:
            for subject in region.subjects:
                checks = checks_of(subject, deep=self.settings.deep)
                keys += [(subject.node.name, check.name) for check in checks]
            if region.has_several:
                keys += [(region.name, check.name) for check in regions.CHECKS]
        return keys

    async def run(self, report: Callable[[Finding], None]) -> None:
        """Run all checks once. If it is cancelled, all connections are closed.

        Args:
            report: called with each finding when its check ends, so not in the order of `plan`.
        """
        room = asyncio.Semaphore(_NODES_AT_ONCE)
        limit = self.settings.timeout
        if self.derp_map is not None:
            await run_checks(maps.CHECKS, self.derp_map, _MAP, limit=limit, report=report)
        await _all([self._region(region, room, report) for region in self.regions])

    async def _region(
        self, region: Region, room: asyncio.Semaphore, report: Callable[[Finding], None]
    ) -> None:
        visits = [Visit(subject, self.settings) for subject in region.subjects]
        keep = region.has_several
        try:
            await _all([self._node(visit, room, report, keep=keep) for visit in visits])
            if keep:
                await run_checks(
                    regions.CHECKS,
                    RegionVisit(visits, self.settings),
                    region.name,
                    limit=self.settings.timeout,
                    report=report,
                )
        finally:
            await _close(visits)

    async def _node(
        self,
        visit: Visit,
        room: asyncio.Semaphore,
        report: Callable[[Finding], None],
        *,
        keep: bool,
    ) -> None:
        subject = visit.subject
        async with room:
            await run_checks(
                checks_of(subject, deep=self.settings.deep),
                visit,
                subject.node.name,
                limit=self.settings.timeout,
                report=report,
            )
        if not keep:
            await visit.aclose()


async def _all(work: Sequence[Coroutine[Any, Any, None]]) -> None:
    """Run coroutines at the same time; the first error cancels the others and is raised."""
    await run_together(*(asyncio.create_task(each, name="doctor") for each in work))


async def _close(visits: Sequence[Visit]) -> None:
    """Close all clients, also if the run is cancelled meanwhile. It takes a second at most."""
    closing = asyncio.gather(*(visit.aclose() for visit in visits))
    try:
        await asyncio.shield(closing)
    except asyncio.CancelledError:
        await closing
        raise
