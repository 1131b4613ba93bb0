"""Bootstrap DNS: keeps the addresses of some names at hand, and tells them at `/bootstrap-dns`."""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Awaitable, Callable, Sequence
from typing import Final, TypeAlias, TypeVar

from pyderp.aio.routes import page
from pyderp.config import BootstrapDNSConfig
from pyderp.net.resolve import Resolver, lookup
from pyderp.relay.bootstrap import BootstrapAnswers, BootstrapCounters, BootstrapName, percentage
from pyderp.wire.http import Request, Response

__all__ = ["BootstrapDNS", "TxtResolver"]

T = TypeVar("T")

log = logging.getLogger("pyderp.bootstrap")

TxtResolver: TypeAlias = Callable[[str], Awaitable[Sequence[str]]]
"""Gives the texts of a name's TXT records. It may raise `OSError`, which `DialError` is."""

REFRESH: Final = 600.0
"""Seconds from the end of a round to the next."""
LIST_TIMEOUT: Final = 60.0
"""Seconds that the names of one list may take together."""


class BootstrapDNS:
    """Looks the names up, again and again, and answers requests from what it found.

    Args:
        config: the names; without any there is nothing to do and the answers are empty.
        resolver: for addresses; by default the system's.
        txt: for TXT records; by default dnspython with the system's name servers.
        uniform: gives random numbers from [0, 1).
        shuffle: puts published addresses into random order, so that not all clients take the
            same one first.

    Raises:
        ConfigError: an entry is neither NAME nor NAME/TXTNAME.
    """

    def __init__(
        self,
        config: BootstrapDNSConfig,
        *,
        resolver: Resolver | None = None,
        txt: TxtResolver | None = None,
        uniform: Callable[[], float] = random.random,
        shuffle: Callable[[list[str]], None] = random.shuffle,
    ) -> None:
        self._published = [BootstrapName.parse(text) for text in config.published]
        self._unpublished = [BootstrapName.parse(text) for text in config.unpublished]
        if txt is None and any(entry.txt for entry in self._unpublished):
            from pyderp.aio.txt import system_txt

            txt = system_txt
        self._resolver = resolver
        self._txt = txt
        self._uniform = uniform
        self._shuffle = shuffle
        self._answers = BootstrapAnswers()
        self._failing: set[str] = set()
        self._task: asyncio.Task[None] | None = None

    @property
    def counters(self) -> BootstrapCounters:
        """What it has counted so far; the object is live."""
        return self._answers.counters

    def start(self) -> None:
        """Begin to look names up, on the running loop."""
        if self._published or self._unpublished:
            self._task = asyncio.create_task(self._run(), name="pyderp bootstrap DNS")

    async def aclose(self) -> None:
        """Stop looking names up."""
        task, self._task = self._task, None
        if task is not None:
            task.cancel()
            await asyncio.wait([task])

    def answer(self, request: Request) -> Response:
        """The answer to a request for `/bootstrap-dns`, of any method."""
        name = request.query.get("q", "")
        body = self._answers.answer(name, request.remote, uniform=self._uniform)
        response = page("application/json", body)
        # A client asks once, and not this relay in particular.
        response.close = True
        return response

    async def _run(self) -> None:
        while True:
            try:
                await self._refresh()
            except Exception:
                log.exception("bootstrap DNS failed in an unforeseen way; again in %g s", REFRESH)
            await asyncio.sleep(REFRESH)

    async def _refresh(self) -> None:
        # What is not found now is unknown until the next round: an old address may be somebody
        # else's by then.
        if self._published:
            deadline = _deadline()
            published: dict[str, list[str]] = {}
            for entry in self._published:
                addresses = await self._addresses(entry.name, deadline)
                if addresses is not None:
                    self._shuffle(addresses)
                    published[entry.name] = addresses
            self._answers.publish(published)
        if self._unpublished:
            deadline = _deadline()
            unpublished: dict[str, tuple[list[str], int]] = {}
            for entry in self._unpublished:
                addresses = await self._addresses(entry.name, deadline)
                if addresses is not None:
                    unpublished[entry.name] = addresses, await self._percent(entry, deadline)
            self._answers.keep_for_askers(unpublished)

    async def _addresses(self, name: str, deadline: float) -> list[str] | None:
        found = await self._ask(name, deadline, lambda: lookup(name, resolver=self._resolver))
        return None if found is None else [str(address) for address in found]

    async def _percent(self, entry: BootstrapName, deadline: float) -> int:
        txt = self._txt
        if not entry.txt or txt is None:
            return 100
        return percentage(
            await self._ask(f"TXT {entry.txt}", deadline, lambda: txt(entry.txt)) or ()
        )

    async def _ask(self, what: str, deadline: float, ask: Callable[[], Awaitable[T]]) -> T | None:
        try:
            async with asyncio.timeout_at(deadline):
                answer = await ask()
        except OSError as e:
            if what not in self._failing:
                self._failing.add(what)
                why = str(e) or f"the list took longer than {LIST_TIMEOUT:g} s"
                log.warning("bootstrap DNS: %s: %s; asked again each %g s", what, why, REFRESH)
            return None
        if what in self._failing:
            self._failing.remove(what)
            log.info("bootstrap DNS: %s is found again", what)
        return answer


def _deadline() -> float:
    return asyncio.get_running_loop().time() + LIST_TIMEOUT
