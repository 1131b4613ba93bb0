"""What is done for one certificate: asking for it, asking when to renew it, keeping it."""

from __future__ import annotations

import dataclasses
import functools
import logging
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass
from typing import Protocol, TypeAlias

from pyderp.certs.credential import Credential, day
from pyderp.certs.network import Refused
from pyderp.certs.schedule import Schedule
from pyderp.certs.store import Record, Store, issued_credential, order_lock
from pyderp.certs.worker import Stopped, Worker
from pyderp.config import ACMETLS
from pyderp.errors import ConfigError
from pyderp.keyfile import FileStamp

__all__ = ["Authority", "Issuance", "ManagedCertificate", "Step"]

log = logging.getLogger("pyderp.tls")

Step: TypeAlias = Callable[[], Awaitable[None]]


class _Busy(Exception):
    """Another process asks, or did so just now."""


@dataclass(slots=True)
class ManagedCertificate:
    """A host name or address that a certificate is wanted for, and when to do what about it."""

    subject: str
    """DNS name or IP address, in normal form."""

    schedule: Schedule
    credential: Credential | None = None

    stamp: FileStamp | None = None
    """Of the file when it was last read or written."""

    unsaved: bool = False
    save_at: float = 0.0

    waiting: bool = False
    """For another process that asks."""


class Authority(Protocol):
    """A certificate authority; `Session` is the real one. The methods block."""

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

    def load(self, managed: ManagedCertificate) -> None:
        """Begin with what the directory has.

        Raises:
            ConfigError: a file is there but cannot be read.
        """
        now = self._clock()
        record = self._store.load_record(managed.subject)
        schedule = managed.schedule
        schedule.failures = record.failures
        schedule.retry_at, schedule.authority_retry_at = record.retry_at, record.authority_retry_at
        credential = self._store.load(managed.subject)
        if credential is not None:
            managed.credential = credential
            managed.stamp = self._store.stamp(managed.subject)
            schedule.obtained(now, credential.info, fresh=False)
            if record.directory not in ("", self._directory):
                log.info(
                    "the certificate of %s is from %s; one from %s will be asked for",
                    managed.subject,
                    record.directory,
                    self._directory,
                )
                schedule.replace_now()
        at = schedule.next_request(now, credential.info if credential else None)
        if record.error and credential is None and at > now:
            log.warning(
                "no certificate for %s yet; next try in %.0f s, as the last failed: %s",
                managed.subject,
                at - now,
                record.error,
            )

    def steps(self, managed: ManagedCertificate, now: float) -> Iterator[tuple[float, Step]]:
        """What is to be done for a certificate, and when; what is past is to be done now."""
        credential = managed.credential
        info = credential.info if credential is not None else None
        yield managed.schedule.next_request(now, info), functools.partial(self._obtain, managed)
        if credential is not None:
            yield managed.schedule.advice_at, functools.partial(self._advise, managed, credential)
            if managed.unsaved:
                yield managed.save_at, functools.partial(self._save, managed, credential)

    def read_again(self, managed: ManagedCertificate, *, force: bool) -> bool:
        """Use what another program wrote to the file. Returns whether it did."""
        stamp = self._store.stamp(managed.subject)
        if stamp is None or (stamp == managed.stamp and not force) or managed.unsaved:
            return False
        managed.stamp = stamp
        try:
            found = self._store.read_again(managed.subject)
        except ConfigError as e:
            log.error("certificate not reloaded, the old one stays in use: %s", e)
            return False
        now = self._clock()
        old = managed.credential
        if found.info.not_after.timestamp() <= now or (old and old.chain == found.chain):
            return False
        managed.credential = found
        managed.schedule.obtained(now, found.info, fresh=False)
        log.info(
            "certificate of %s reloaded from %s", managed.subject, self._store.path(managed.subject)
        )
        return True

    # Steps

    async def _obtain(self, managed: ManagedCertificate) -> None:
        try:
            found = await self._worker.run(functools.partial(self._obtain_locked, managed))
        except Stopped:
            return
        except _Busy:
            self._wait_for_another(managed)
            return
        except Refused as e:
            self._tell(managed, e)
        except Exception as e:
            log.exception("getting a certificate for %s failed unexpectedly", managed.subject)
            why = Refused(repr(e))
            self._count(managed, why)
            self._tell(managed, why)
        else:
            credential, fresh = found
            managed.credential = credential
            managed.schedule.obtained(self._clock(), credential.info, fresh=fresh)
            log.info(
                "certificate of %s is good until %s%s",
                managed.subject,
                day(credential.info.not_after),
                "" if fresh else "; another process got it",
            )
        managed.waiting = False

    def _wait_for_another(self, managed: ManagedCertificate) -> None:
        if not managed.waiting:
            log.info(
                "another process asks for certificates in %s, or just did; that of %s waits",
                self._store.directory,
                managed.subject,
            )
        managed.waiting = True
        managed.schedule.postponed(self._clock() + managed.schedule.policy.look_again)

    def _obtain_locked(self, managed: ManagedCertificate) -> tuple[Credential, bool]:
        """On the worker's thread: ask, unless another process does. Returns also whether we did.

        When one relay takes over from another, both use the directory for a while.
        """
        with order_lock(self._store.directory) as free:
            if not free:
                raise _Busy
            before = self._store.load_record(managed.subject)
            credential = self._found(managed, before)
            if credential is not None:
                return credential, False
            if managed.schedule.adopt(
                self._clock(),
                before.failures,
                before.retry_at,
                authority_retry_at=before.authority_retry_at,
            ):
                raise _Busy
            log.info("asking %s for a certificate for %s", self._directory, managed.subject)
            try:
                return self._obtain_now(managed, before), True
            except Refused as e:
                self._count(managed, e)  # while no other process looks
                raise

    def _found(self, managed: ManagedCertificate, record: Record) -> Credential | None:
        """What another process got since we looked."""
        stamp = self._store.stamp(managed.subject)
        ours = record.directory in ("", self._directory)
        if stamp in (None, managed.stamp) or managed.unsaved or not ours:
            return None
        try:
            found = self._store.read_again(managed.subject)
        except ConfigError:
            return None
        end = managed.credential.info.not_after.timestamp() if managed.credential else self._clock()
        if found.info.not_after.timestamp() <= end:
            return None
        managed.stamp = stamp
        return found

    def _obtain_now(self, managed: ManagedCertificate, before: Record) -> Credential:
        """Ask, and save."""
        schedule = managed.schedule
        # Should this process die in the middle, over and over, each is a failure.
        presumed = dataclasses.replace(schedule)
        presumed.failed(self._clock(), None, limited=False)
        self._remember(managed, _record_of(presumed, before.directory, "interrupted"))
        try:
            chain, key = self._authority.obtain(managed.subject, schedule.failures)
        except Stopped:
            self._remember(managed, before)
            raise
        except Refused as e:
            if not e.asked:
                self._remember(managed, before)
            raise
        try:
            credential = issued_credential(chain, key, managed.subject, "what the authority issued")
        except ConfigError as e:
            raise Refused(str(e)) from e
        if credential.info.not_after.timestamp() <= self._clock():
            raise Refused("it issued one that has expired already; is the clock right?")
        managed.unsaved = True
        self._save_now(managed, credential)
        return credential

    def _count(self, managed: ManagedCertificate, why: Refused) -> None:
        now = self._clock()
        schedule = managed.schedule
        if not why.asked:
            schedule.postponed(now + schedule.policy.save_every)
            return
        schedule.failed(now, why.retry_after, limited=why.limited)
        directory = self._store.load_record(managed.subject).directory
        self._remember(managed, _record_of(schedule, directory, str(why)))

    def _tell(self, managed: ManagedCertificate, why: Refused) -> None:
        wait = max(managed.schedule.retry_at - self._clock(), 0.0)
        credential = managed.credential
        if credential is None:
            log.error("no certificate for %s: %s; next try in %.0f s", managed.subject, why, wait)
            return
        log.warning(
            "the certificate of %s, good until %s, is not renewed: %s; next try in %.0f s",
            managed.subject,
            day(credential.info.not_after),
            why,
            wait,
        )

    async def _advise(self, managed: ManagedCertificate, credential: Credential) -> None:
        now = self._clock()
        try:
            when, again = await self._worker.run(
                functools.partial(self._authority.renewal, credential.chain)
            )
        except Stopped:
            return
        except Refused as e:
            log.info("%s does not tell when to renew: %s", self._directory, e)
            when, again = None, now + managed.schedule.policy.advice_every
        except Exception:
            log.exception("asking when to renew failed unexpectedly")
            when, again = None, now + managed.schedule.policy.advice_every
        if managed.credential is credential:
            managed.schedule.advised(self._clock(), credential.info, when, again)

    async def _save(self, managed: ManagedCertificate, credential: Credential) -> None:
        try:
            await self._worker.run(functools.partial(self._save_now, managed, credential))
        except Exception:
            log.exception("saving the certificate of %s failed unexpectedly", managed.subject)
            managed.save_at = self._clock() + managed.schedule.policy.save_every

    def _save_now(self, managed: ManagedCertificate, credential: Credential) -> None:
        """On the worker's thread."""
        try:
            self._store.save(managed.subject, credential)
        except OSError as e:
            managed.save_at = self._clock() + managed.schedule.policy.save_every
            log.error(
                "cannot save the certificate of %s in %s: %s; it is in use all the same, and "
                "lost if the relay stops",
                managed.subject,
                self._store.path(managed.subject),
                e.strerror,
            )
            return
        managed.stamp = self._store.stamp(managed.subject)
        managed.unsaved = False
        self._remember(managed, Record(directory=self._directory))

    # What is remembered

    def _remember(self, managed: ManagedCertificate, record: Record) -> None:
        try:
            self._store.save_record(managed.subject, record)
        except OSError as e:
            log.error("cannot write %s: %s", self._store.record_path(managed.subject), e.strerror)


def _record_of(schedule: Schedule, directory: str, error: str) -> Record:
    return Record(
        directory, schedule.failures, schedule.retry_at, schedule.authority_retry_at, error
    )
