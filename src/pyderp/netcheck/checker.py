"""`Netcheck`: measures repeatedly, and keeps sockets and reports between two runs."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from types import TracebackType
from typing import Self

from pyderp.addresses import ip_literal
from pyderp.errors import ConfigError
from pyderp.maps.derpmap import DERPMap
from pyderp.net.stunclient import StunClient
from pyderp.netcheck.commands import RunOptions
from pyderp.netcheck.config import NetcheckConfig
from pyderp.netcheck.core import Run, is_full_due
from pyderp.netcheck.home import History, HomeHints
from pyderp.netcheck.interfaces import host_network, os_has_ipv6
from pyderp.netcheck.plan import Family
from pyderp.netcheck.report import Report
from pyderp.netcheck.shell import FAMILIES, Shell

__all__ = ["Netcheck"]

log = logging.getLogger("pyderp.netcheck")


class Netcheck:
    """Measures a network once or repeatedly; use it in `async with`.

    It keeps its UDP sockets between runs, and the reports of the last five minutes: they make later
    runs shorter, and keep the home region from changing for a small gain.

    Raises:
        ConfigError: on entering, if no socket can be bound to the address and port in `config`.
    """

    def __init__(self, config: NetcheckConfig | None = None) -> None:
        self.config = config or NetcheckConfig()
        self.history = History()
        self.on_progress: Callable[[str], None] | None = None
        """Called with a few words of progress, such as `3 of 20` regions."""
        self._sockets: dict[Family, StunClient] = {}
        self._last_full: int | None = None
        self._current: Shell | None = None
        self._hints = HomeHints()

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
        for family, number in FAMILIES.items():
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
        """Return what the current or last run has measured so far, with the home that results.

        Returns `None` if no run has begun.
        """
        if self._current is None:
            return None
        report = self._current.run.report
        if not report.now:
            report.now = time.time_ns()
            report.preferred_derp = self.history.home_of(report, self._hints)
        return report

    async def run(self, derp_map: DERPMap) -> Report:
        """Measure once, in 5 s at most.

        The first run is full, and then one run every five minutes; the others measure only the
        fastest regions and home.

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
            all_regions=self.config.all_regions,
            verbose=self.config.verbose,
        )
        scores = derp_map.home_params.region_score if derp_map.home_params else None
        self._hints = HomeHints(started=began_wall, scores=scores)
        run = Run(derp_map, options, last=last, home=self.history.home)
        self._current = Shell(run, self.config, self._sockets, self.on_progress)
        await self._current.drive()
        report = run.report
        report.now = time.time_ns()
        self.history.add(report, self._hints)
        return report
