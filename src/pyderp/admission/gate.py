"""Decides which clients may log in and which must go: asks sources, remembers, checks again."""

from __future__ import annotations

import asyncio
import dataclasses
import logging
import time
from collections.abc import Callable, Coroutine, Iterable
from typing import TYPE_CHECKING, Any, Final, NoReturn

from pyderp.admission.allowlist import AllowList, KeyList
from pyderp.admission.denylist import DenyList
from pyderp.admission.source import AdmissionFunction, Questions, Source
from pyderp.admission.verdict import AdmissionCounters, Cause, ClientIdentity, Memory, Verdict
from pyderp.config import AdmissionConfig
from pyderp.defaults import ADMISSION_CACHE, ADMISSION_RECHECKS, ADMISSION_TIMEOUT
from pyderp.extras import needs
from pyderp.keys import NodePublic
from pyderp.tasks import SingleFlight, cancel_and_wait

if TYPE_CHECKING:
    from pyderp.admission.tailscaled import Tailscaled

__all__ = ["Gate", "recheck_for_ever"]

log = logging.getLogger("pyderp.admission")

_LOOK: Final = 2.0
"""Seconds between two looks at an allow file or deny file. A change counts when two looks in a row
see it."""
_PROBE: Final = 10.0
"""Seconds between two probes of a source. While no client logs in, only a probe notices that the
source fails or works again."""
_SELF_ADDRESS: Final = "::1"
_ALLOWED: Final = Verdict(True)
_CLOSING: Final = Verdict(False, "the relay is stopping", cause=Cause.STOPPING)


class Gate:
    """Asks the sources that an `AdmissionConfig` names, in order, until one says no.

    The order is the deny file, the allow file, tailscaled, the URL and the function. All must
    allow the client. Mesh peers are always allowed and not passed here.

    Args:
        config: which sources are asked, and for how long answers are remembered.
        live: returns the clients that are connected now, without mesh peers.
        revoke: closes the connections of a key from an address, or from all addresses if the
            address is `None`. The last argument says why.
        timeout: seconds for each question.
        look: seconds between two looks at whether one of the files changed.
        probe: seconds between two probes of a source; 0 for none.
        clock: seconds of a monotonic clock.

    Raises:
        MissingExtra: the config names tailscaled or a URL, and the extra `relay` is missing.
    """

    def __init__(
        self,
        config: AdmissionConfig,
        *,
        live: Callable[[], Iterable[ClientIdentity]],
        revoke: Callable[[NodePublic, str | None, str], None],
        timeout: float = ADMISSION_TIMEOUT,
        look: float = _LOOK,
        probe: float = _PROBE,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.counters = AdmissionCounters()
        self._recheck = config.recheck
        self._live = live
        self._revoke = revoke
        self._look = look
        self._probe = probe
        self._clock = clock
        self._list = None if config.keys_file is None else AllowList(config.keys_file)
        self._denied = None if config.deny_file is None else DenyList(config.deny_file)
        self._tailscaled: Tailscaled | None = None
        sources: list[Source] = []
        # Imported here, so that a relay without these sources needs no aiohttp.
        if config.tailscaled:
            with needs("relay", "questions to tailscaled"):
                from pyderp.admission.tailscaled import Tailscaled

            self._tailscaled = Tailscaled(config.tailscaled_socket, self.counters, timeout=timeout)
            sources.append(self._tailscaled)
        if config.url:
            with needs("relay", "questions to an admission URL"):
                from pyderp.admission.url import AdmissionURL

            fail_open = config.url_fail_open
            sources.append(
                AdmissionURL(config.url, self.counters, fail_open=fail_open, timeout=timeout)
            )
        if config.decide is not None:
            sources.append(AdmissionFunction(config.decide, self.counters, timeout=timeout))
        self._sources = [Questions(each, self.counters, timeout=timeout) for each in sources]
        self._remember = config.remember
        self._memory: Memory[ClientIdentity, Verdict] = Memory(config.remember, ADMISSION_CACHE)
        # Logins and rechecks of a client do not share a query. A login may get no turn and fail,
        # and a recheck that shared it would fail too: a client that must go could log in again and
        # again to prevent its recheck.
        self._asking: SingleFlight[tuple[ClientIdentity, bool], Verdict] = SingleFlight()
        self._checks: SingleFlight[str, str] = SingleFlight()
        self._tasks: list[asyncio.Task[None]] = []
        self._closed = False

    async def start(self) -> None:
        """Read the files, and start to watch them and to recheck the connected clients.

        Raises:
            ConfigError: a file cannot be used.
        """
        for keys in self._files():
            keys.load()
        for keys in self._files():
            self._begin(self._look_for_ever(keys), f"pyderp admission: {keys.path}")
        for source in self._sources if self._probe else ():
            self._begin(self._probe_for_ever(source), f"pyderp admission: probe {source.name}")
        if self._sources and self._recheck:
            self._begin(
                recheck_for_ever(self._recheck, self._live, self._check_again),
                "pyderp admission: rechecks",
            )

    def known(self, client: ClientIdentity) -> Verdict | None:
        """Return the verdict if it is known without asking a source, else `None`: use `ask`."""
        verdict = self._listed(client.key)
        if verdict.allowed and self._sources:
            remembered = self._memory.get(client, self._clock())
            if remembered is None:
                return None
            self.counters.cache_hits += 1
            verdict = dataclasses.replace(remembered, label=verdict.label)
        return self._count(verdict)

    async def ask(self, client: ClientIdentity) -> Verdict:
        """Return the verdict of all sources; raises only `CancelledError`."""
        known = self.known(client)
        if known is not None:
            return known
        verdict = await self._query(client)
        # The files are checked again, as they may have changed during the query.
        listed = self._listed(client.key)
        if verdict.allowed:
            verdict = dataclasses.replace(listed, cause=verdict.cause)
        return self._count(dataclasses.replace(verdict, label=listed.label))

    async def check_self(self) -> str | None:
        """Check whether this machine's own tailscaled node would be allowed, as `derper` does.

        Returns:
            what is wrong; `None` if the node is allowed or tailscaled is not a source.
        """
        if self._tailscaled is None or self._closed:
            return None
        tailscaled = self._tailscaled
        wrong = await self._checks.get(
            "self", lambda: self._check_self(tailscaled), name="pyderp admission: self check"
        )
        return wrong or None

    def troubles(self) -> list[str]:
        """Return a line for each source that failed at its last question, probe or look."""
        texts = [source.trouble for source in self._sources]
        texts += [keys.trouble for keys in self._files()]
        return [text for text in texts if text]

    @property
    def sources(self) -> list[str]:
        """The names of the files and sources, in the order in which they are asked."""
        names = [] if self._denied is None else ["deny file"]
        names += [] if self._list is None else ["allow file"]
        return names + [source.name for source in self._sources]

    def reload(self) -> None:
        """Read the files now, and forget all answers.

        A file that cannot be used is logged, and the old list stays.
        """
        # A new memory, not an emptied one: a question that is under way was asked under the old
        # settings, and its answer goes into the memory that it began with.
        self._memory = Memory(self._remember, ADMISSION_CACHE)
        self._asking.renew()
        changed = [keys.reload() for keys in self._files()]
        if any(changed):
            self._close_unlisted()

    def label(self, key: NodePublic) -> str:
        """Return the label of a key in the deny file, else in the allow file; empty if none."""
        labels = (each.label(key) for each in self._files())
        return next(filter(None, labels), "")

    async def aclose(self) -> None:
        """Stop asking. Clients that wait for an answer are refused."""
        self._closed = True
        tasks, self._tasks = self._tasks, []
        await cancel_and_wait(tasks)
        await self._asking.aclose()
        await self._checks.aclose()
        for source in self._sources:
            await source.aclose()
        self._memory = Memory(self._remember, ADMISSION_CACHE)

    def _listed(self, key: NodePublic) -> Verdict:
        denied = None if self._denied is None else self._denied.verdict(key)
        if denied is not None:
            return denied
        return _ALLOWED if self._list is None else self._list.verdict(key)

    def _count(self, verdict: Verdict) -> Verdict:
        if verdict.allowed:
            self.counters.allowed += 1
        else:
            self.counters.denied += 1
        return verdict

    async def _query(self, client: ClientIdentity, *, recheck: bool = False) -> Verdict:
        if self._closed:
            return _CLOSING
        verdict = await self._asking.get(
            (client, recheck),
            lambda: self._ask_and_remember(client, recheck=recheck),
            name=f"pyderp admission: {'recheck' if recheck else 'login'}",
        )
        return _CLOSING if verdict is None else verdict

    async def _ask_and_remember(self, client: ClientIdentity, *, recheck: bool) -> Verdict:
        memory = self._memory
        verdict = await self._ask_all(client, recheck=recheck)
        if verdict.definitive:
            memory.put(client, verdict, self._clock())
        return verdict

    async def _ask_all(self, client: ClientIdentity, *, recheck: bool) -> Verdict:
        cause = Cause.ANSWERED
        for source in self._sources:
            try:
                verdict = await source.ask(client, recheck=recheck)
            except Exception:
                log.exception("asking about %s failed", client.key)
                self.counters.errors += 1
                return Verdict(False, "asking about the client failed", cause=Cause.FAILED)
            if not verdict.allowed:
                return verdict
            if not verdict.definitive:
                cause = verdict.cause
        return Verdict(True, cause=cause)

    async def _check_self(self, tailscaled: Tailscaled) -> str:
        key = await tailscaled.own_key()
        if isinstance(key, str):
            return key
        verdict = self._listed(key)
        if verdict.allowed:
            verdict = await self._ask_all(ClientIdentity(key, _SELF_ADDRESS), recheck=True)
        return "" if verdict.allowed else f"verifyClient for self nodekey: {verdict.reason}"

    async def _check_again(self, client: ClientIdentity) -> None:
        verdict = await self._query(client, recheck=True)
        if verdict.definitive and not verdict.allowed:
            # Only at this address: for the same key at another one, the answer may differ.
            self._close(client.key, client.address, verdict.reason)

    def _files(self) -> list[KeyList]:
        return [keys for keys in (self._denied, self._list) if keys is not None]

    async def _look_for_ever(self, keys: KeyList) -> None:
        while True:
            await asyncio.sleep(self._look)
            try:
                if keys.look():
                    self._close_unlisted()
            except Exception:
                log.exception("reading the file of keys %s again failed unexpectedly", keys.path)

    async def _probe_for_ever(self, source: Questions) -> None:
        while True:
            try:
                await source.probe()
            except Exception:
                log.exception("%s: the probe failed unexpectedly", source.name)
            await asyncio.sleep(self._probe)

    def _close_unlisted(self) -> None:
        for key in {client.key for client in self._live()}:
            verdict = self._listed(key)
            if not verdict.allowed:
                self._close(key, None, verdict.reason)

    def _close(self, key: NodePublic, address: str | None, reason: str) -> None:
        self.counters.revoked += 1
        self._revoke(key, address, reason)

    def _begin(self, work: Coroutine[Any, Any, None], name: str) -> None:
        self._tasks.append(asyncio.get_running_loop().create_task(work, name=name))


async def recheck_for_ever(
    interval: float,
    live: Callable[[], Iterable[ClientIdentity]],
    check: Callable[[ClientIdentity], Coroutine[Any, Any, None]],
) -> NoReturn:
    """Call `check` for each live client once per interval, evenly spread over the interval.

    At most ADMISSION_RECHECKS calls run at once. If answers are slow, a round takes longer.

    Args:
        interval: seconds.
        live: returns the connected clients; called when a round begins.
        check: asks about one client, and closes its connections if it must go.
    """
    loop = asyncio.get_running_loop()
    slots = asyncio.Semaphore(ADMISSION_RECHECKS)
    running: set[asyncio.Task[None]] = set()

    def over(task: asyncio.Task[None]) -> None:
        running.discard(task)
        slots.release()
        if not task.cancelled() and (error := task.exception()) is not None:
            log.error("rechecking a client failed", exc_info=error)

    try:
        while True:
            begin = loop.time()
            try:
                clients = list(dict.fromkeys(live()))
            except Exception:
                log.exception("rechecking clients failed, the next round is in %g s", interval)
                clients = []
            for n, client in enumerate(clients):
                await asyncio.sleep(begin + n * interval / len(clients) - loop.time())
                await slots.acquire()
                task = asyncio.create_task(check(client), name="pyderp admission: recheck")
                running.add(task)
                task.add_done_callback(over)
            if running:
                await asyncio.wait(running)
            await asyncio.sleep(begin + interval - loop.time())
    finally:
        await cancel_and_wait(list(running))
