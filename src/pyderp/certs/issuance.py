"""What is done for one certificate: asking for it, asking when to renew it, keeping it."""

from __future__ import annotations

import dataclasses
import functools
import logging
from collections.abc import Awaitable, Callable, Iterator
from typing import Protocol, TypeAlias

from pyderp.certs.leaf import day
from pyderp.certs.lock import order_lock
from pyderp.certs.network import Refused
from pyderp.certs.schedule import Schedule
from pyderp.certs.slot import Slot
from pyderp.certs.store import Certificate, Record, Store
from pyderp.certs.worker import Stopped, Worker
from pyderp.config import ACMETLS
from pyderp.errors import ConfigError

__all__ = ["Authority", "Issuance", "Step"]

log = logging.getLogger("pyderp.tls")

Step: TypeAlias = Callable[[], Awaitable[None]]


class _Busy(Exception):
    """Another process asks, or did so just now."""


class Authority(Protocol):
    """Who issues certificates; `Session` is the real one. Its methods block."""

    def obtain(self, subject: str, attempt: int) -> tuple[bytes, bytes]:
        """A chain and its key; raises `Refused` or `Stopped`."""
        ...

    def renewal(self, chain: bytes) -> tuple[float | None, float]:
        """When to renew, if it says, and when to ask again; raises `Refused` or `Stopped`."""
        ...


class Issuance:
    """The steps, each of which never fails: it logs, and sets the time of the next."""

    def __init__(
        self,
        tls: ACMETLS,
        store: Store,
        worker: Worker,
        authority: Authority,
        clock: Callable[[], float],
    ) -> None:
        self._directory = tls.directory
        self._store = store
        self._worker = worker
        self._authority = authority
        self._clock = clock

    def load(self, slot: Slot) -> None:
        """Begin with what the directory has.

        Raises:
            ConfigError: a file is there but cannot be read.
        """
        now = self._clock()
        record = self._store.load_record(slot.subject)
        schedule = slot.schedule
        schedule.failures = record.failures
        schedule.retry_at, schedule.told_at = record.retry_at, record.told_at
        certificate = self._store.load(slot.subject)
        if certificate is not None:
            slot.certificate = certificate
            slot.stamp = self._store.stamp(slot.subject)
            schedule.obtained(now, certificate.info, fresh=False)
            if record.directory not in ("", self._directory):
                log.info(
                    "the certificate of %s is from %s; one from %s will be asked for",
                    slot.subject,
                    record.directory,
                    self._directory,
                )
                schedule.replace_now()
        at = schedule.next_request(now, certificate.info if certificate else None)
        if record.error and certificate is None and at > now:
            log.warning(
                "no certificate for %s yet; next try in %.0f s, as the last failed: %s",
                slot.subject,
                at - now,
                record.error,
            )

    def steps(self, slot: Slot, now: float) -> Iterator[tuple[float, Step]]:
        """What is to be done for a slot, and when; what is past is to be done now."""
        certificate = slot.certificate
        info = certificate.info if certificate is not None else None
        yield slot.schedule.next_request(now, info), functools.partial(self._obtain, slot)
        if certificate is not None:
            yield slot.schedule.advice_at, functools.partial(self._advise, slot, certificate)
            if slot.unsaved:
                yield slot.save_at, functools.partial(self._save, slot, certificate)

    def read_again(self, slot: Slot, *, force: bool) -> bool:
        """Use what somebody else wrote to the slot's file; gives whether that was so."""
        stamp = self._store.stamp(slot.subject)
        if stamp is None or (stamp == slot.stamp and not force) or slot.unsaved:
            return False
        slot.stamp = stamp
        try:
            found = self._store.read_again(slot.subject)
        except ConfigError as e:
            log.error("certificate not reloaded, the old one stays in use: %s", e)
            return False
        now = self._clock()
        old = slot.certificate
        if found.info.not_after.timestamp() <= now or (old and old.chain == found.chain):
            return False
        slot.certificate = found
        slot.schedule.obtained(now, found.info, fresh=False)
        log.info("certificate of %s reloaded from %s", slot.subject, self._store.path(slot.subject))
        return True

    # Steps

    async def _obtain(self, slot: Slot) -> None:
        try:
            found = await self._worker.run(functools.partial(self._obtain_locked, slot))
        except Stopped:
            return
        except _Busy:
            self._wait_for_another(slot)
            return
        except Refused as e:
            self._tell(slot, e)
        except Exception as e:
            log.exception("getting a certificate for %s failed unexpectedly", slot.subject)
            why = Refused(repr(e))
            self._count(slot, why)
            self._tell(slot, why)
        else:
            certificate, fresh = found
            slot.certificate = certificate
            slot.schedule.obtained(self._clock(), certificate.info, fresh=fresh)
            log.info(
                "certificate of %s is good until %s%s",
                slot.subject,
                day(certificate.info.not_after),
                "" if fresh else "; another process got it",
            )
        slot.waiting = False

    def _wait_for_another(self, slot: Slot) -> None:
        if not slot.waiting:
            log.info(
                "another process asks for certificates in %s, or just did; that of %s waits",
                self._store.directory,
                slot.subject,
            )
        slot.waiting = True
        slot.schedule.postponed(self._clock() + slot.schedule.pace.look_again)

    def _obtain_locked(self, slot: Slot) -> tuple[Certificate, bool]:
        """On the worker's thread: ask, unless another process does; gives whether we did.

        When one relay takes over from another, both use the directory for a while.
        """
        with order_lock(self._store.directory) as free:
            if not free:
                raise _Busy
            before = self._store.load_record(slot.subject)
            certificate = self._found(slot, before)
            if certificate is not None:
                return certificate, False
            if slot.schedule.heed(
                self._clock(), before.failures, before.retry_at, told_at=before.told_at
            ):
                raise _Busy
            log.info("asking %s for a certificate for %s", self._directory, slot.subject)
            try:
                return self._obtain_now(slot, before), True
            except Refused as e:
                self._count(slot, e)  # while nobody else looks
                raise

    def _found(self, slot: Slot, record: Record) -> Certificate | None:
        """What another process got since we looked."""
        stamp = self._store.stamp(slot.subject)
        ours = record.directory in ("", self._directory)
        if stamp in (None, slot.stamp) or slot.unsaved or not ours:
            return None
        try:
            found = self._store.read_again(slot.subject)
        except ConfigError:
            return None
        end = slot.certificate.info.not_after.timestamp() if slot.certificate else self._clock()
        if found.info.not_after.timestamp() <= end:
            return None
        slot.stamp = stamp
        return found

    def _obtain_now(self, slot: Slot, before: Record) -> Certificate:
        """Ask, and save."""
        schedule = slot.schedule
        # Should this process die in the middle, over and over, each is a failure.
        presumed = dataclasses.replace(schedule)
        presumed.failed(self._clock(), None, limited=False)
        self._remember(slot, _record_of(presumed, before.directory, "interrupted"))
        try:
            chain, key = self._authority.obtain(slot.subject, schedule.failures)
        except Stopped:
            self._remember(slot, before)
            raise
        except Refused as e:
            if not e.asked:
                self._remember(slot, before)
            raise
        try:
            certificate = self._store.issued(slot.subject, chain, key)
        except ConfigError as e:
            raise Refused(str(e)) from e
        if certificate.info.not_after.timestamp() <= self._clock():
            raise Refused("it issued one that has expired already; is the clock right?")
        slot.unsaved = True
        self._save_now(slot, certificate)
        return certificate

    def _count(self, slot: Slot, why: Refused) -> None:
        now = self._clock()
        schedule = slot.schedule
        if not why.asked:
            schedule.postponed(now + schedule.pace.save_every)
            return
        schedule.failed(now, why.retry_after, limited=why.limited)
        directory = self._store.load_record(slot.subject).directory
        self._remember(slot, _record_of(schedule, directory, str(why)))

    def _tell(self, slot: Slot, why: Refused) -> None:
        wait = max(slot.schedule.retry_at - self._clock(), 0.0)
        certificate = slot.certificate
        if certificate is None:
            log.error("no certificate for %s: %s; next try in %.0f s", slot.subject, why, wait)
            return
        log.warning(
            "the certificate of %s, good until %s, is not renewed: %s; next try in %.0f s",
            slot.subject,
            day(certificate.info.not_after),
            why,
            wait,
        )

    async def _advise(self, slot: Slot, certificate: Certificate) -> None:
        now = self._clock()
        try:
            when, again = await self._worker.run(
                functools.partial(self._authority.renewal, certificate.chain)
            )
        except Stopped:
            return
        except Refused as e:
            log.info("%s does not tell when to renew: %s", self._directory, e)
            when, again = None, now + slot.schedule.pace.advice_every
        except Exception:
            log.exception("asking when to renew failed unexpectedly")
            when, again = None, now + slot.schedule.pace.advice_every
        if slot.certificate is certificate:
            slot.schedule.advised(self._clock(), certificate.info, when, again)

    async def _save(self, slot: Slot, certificate: Certificate) -> None:
        try:
            await self._worker.run(functools.partial(self._save_now, slot, certificate))
        except Exception:
            log.exception("saving the certificate of %s failed unexpectedly", slot.subject)
            slot.save_at = self._clock() + slot.schedule.pace.save_every

    def _save_now(self, slot: Slot, certificate: Certificate) -> None:
        """On the worker's thread."""
        try:
            self._store.save(slot.subject, certificate)
        except OSError as e:
            slot.save_at = self._clock() + slot.schedule.pace.save_every
            log.error(
                "cannot save the certificate of %s in %s: %s; it is in use all the same, and "
                "lost if the relay stops",
                slot.subject,
                self._store.path(slot.subject),
                e.strerror,
            )
            return
        slot.stamp = self._store.stamp(slot.subject)
        slot.unsaved = False
        self._remember(slot, Record(directory=self._directory))

    # What is remembered

    def _remember(self, slot: Slot, record: Record) -> None:
        try:
            self._store.save_record(slot.subject, record)
        except OSError as e:
            log.error("cannot write %s: %s", self._store.record_path(slot.subject), e.strerror)


def _record_of(schedule: Schedule, directory: str, error: str) -> Record:
    return Record(directory, schedule.failures, schedule.retry_at, schedule.told_at, error)
