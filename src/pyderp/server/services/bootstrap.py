"""Bootstrap DNS: looks up the addresses of names, and returns them at `/bootstrap-dns`."""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Awaitable, Callable, Sequence
from typing import Final, TypeAlias, TypeVar

from pyderp.config import BootstrapDNSConfig
from pyderp.errors import NameNotFound
from pyderp.extras import needs
from pyderp.net.dns import Resolver, lookup
from pyderp.relay.bootstrap import (
    BootstrapAnswers,
    BootstrapName,
    LastGood,
    percentage,
)
from pyderp.wire.http import Request, Response, page

__all__ = ["BootstrapDNS", "TxtResolver"]

T = TypeVar("T")

log = logging.getLogger("pyderp.bootstrap")

TxtResolver: TypeAlias = Callable[[str], Awaitable[Sequence[str]]]
"""Returns the texts of a name's TXT records. It may raise `OSError`, as `DialError` is one."""

REFRESH: Final = 600.0
"""Seconds from the end of a round of look-ups to the next round."""
LOOKUP_TIMEOUT: Final = 20.0
"""Seconds for one look-up. The system's resolver usually gives up after 10 s per name server."""
KEEP: Final = 24 * 3600.0
"""Seconds for which addresses are returned although new look-ups fail."""
_AT_ONCE: Final = 4
"""Look-ups at once. Each takes a thread of the pool, which other parts of the program need too."""


class BootstrapDNS:
    """Looks up the names regularly, and answers requests with the addresses found.

    Args:
        config: the names; without any, nothing is looked up and the answers are empty.
        resolver: looks up addresses; by default the system's resolver.
        txt: looks up TXT records; by default dnspython with the system's name servers.
        uniform: returns random numbers from [0, 1).
        shuffle: puts published addresses into random order, so that not all clients try the same
            one first.

    Raises:
        ConfigError: an entry is neither NAME nor NAME/TXTNAME.
        MissingExtra: there is a NAME/TXTNAME, and the extra `relay` is not installed.
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
            with needs("relay", "TXT records for bootstrap DNS"):
                from pyderp.server.services.txt import system_txt

            txt = system_txt
        self._resolver = resolver
        self._txt = txt
        self._uniform = uniform
        self._shuffle = shuffle
        self._answers = BootstrapAnswers()
        self.counters = self._answers.counters
        """The counters of the answers; the object changes as they count."""
        self._addresses: LastGood[list[str]] = LastGood(KEEP)
        self._percents: LastGood[int] = LastGood(KEEP)
        self._slots = asyncio.Semaphore(_AT_ONCE)
        self._failing: set[str] = set()
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Start the look-ups, on the running loop."""
        if self._published or self._unpublished:
            self._task = asyncio.create_task(self._run(), name="pyderp bootstrap DNS")

    async def aclose(self) -> None:
        """Stop the look-ups."""
        task, self._task = self._task, None
        if task is not None:
            task.cancel()
            await asyncio.wait([task])

    def answer(self, request: Request) -> Response:
        """Answer a request for `/bootstrap-dns` of any method."""
        name = request.query.get("q", "")
        body = self._answers.answer(name, request.remote, uniform=self._uniform)
        response = page("application/json", body)
        # Clients ask a random relay, once, so an open connection would be of no use.
        response.close = True
        return response

    async def _run(self) -> None:
        names = dict.fromkeys(entry.name for entry in (*self._published, *self._unpublished))
        records = dict.fromkeys(entry.txt for entry in self._unpublished if entry.txt)
        while True:
            await asyncio.gather(
                *(self._refresh(name, name, self._addresses, self._find) for name in names),
                *(
                    self._refresh(name, f"TXT {name}", self._percents, self._ask)
                    for name in records
                ),
            )
            # Also if nothing was found, because known addresses may have become too old.
            self._publish(whole_round=True)
            await asyncio.sleep(REFRESH)

    async def _find(self, name: str) -> list[str]:
        addresses = [str(each) for each in await lookup(name, resolver=self._resolver)]
        if any(name == entry.name for entry in self._published):
            self._shuffle(addresses)
        return addresses

    async def _ask(self, record: str) -> int:
        assert self._txt is not None
        return percentage(await self._txt(record))

    async def _refresh(
        self, name: str, what: str, known: LastGood[T], find: Callable[[str], Awaitable[T]]
    ) -> None:
        """Look up one name and publish the result; raises nothing, so that other names go on."""
        now = asyncio.get_running_loop().time
        try:
            async with self._slots, asyncio.timeout(LOOKUP_TIMEOUT):
                answer = await find(name)
        except OSError as e:
            if isinstance(e, NameNotFound):
                known.gone(name)
            if what not in self._failing:
                self._failing.add(what)
                why = str(e) or f"no answer within {LOOKUP_TIMEOUT:g} s"
                kept = "" if known.get(name, now()) is None else "; what was found last stays"
                log.warning(
                    "bootstrap DNS: %s: %s%s; asked again each %g s", what, why, kept, REFRESH
                )
        except Exception:
            log.exception(
                "bootstrap DNS: %s failed unexpectedly; asked again in %g s", name, REFRESH
            )
            return
        else:
            known.found(name, answer, now())
            if what in self._failing:
                self._failing.remove(what)
                log.info("bootstrap DNS: %s is found again", what)
        self._publish()

    def _publish(self, *, whole_round: bool = False) -> None:
        now = asyncio.get_running_loop().time()
        published = {
            entry.name: addresses
            for entry in self._published
            if (addresses := self._addresses.get(entry.name, now)) is not None
        }
        unpublished = {
            entry.name: (
                addresses,
                (self._percents.get(entry.txt, now) or 0) if entry.txt else 100,
            )
            for entry in self._unpublished
            if (addresses := self._addresses.get(entry.name, now)) is not None
        }
        if published or (self._published and whole_round):
            self._answers.publish(published)
        self._answers.keep_for_askers(unpublished)
