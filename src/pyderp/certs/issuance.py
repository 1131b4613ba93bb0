"""Obtains one certificate from an authority, asks when to renew it, and saves it."""

from __future__ import annotations

import dataclasses
import functools
import logging
import time
from collections.abc import Awaitable, Callable, Iterator
from typing import Final, Protocol, TypeAlias

from pyderp.certs.credential import CertificateState, Credential, day
from pyderp.certs.network import Refused, Stopped
from pyderp.certs.schedule import INTERRUPTED, Record, Schedule
from pyderp.certs.store import Store, issued_credential, order_lock
from pyderp.errors import ConfigError
from pyderp.secretfiles import FileStamp
from pyderp.tasks import in_own_thread

__all__ = ["Authority", "ManagedCertificate", "Step"]

log = logging.getLogger("pyderp.tls")

Step: TypeAlias = Callable[[], Awaitable[None]]
_THREAD: Final = "pyderp-acme"


class _Busy(Exception):
    """Another process is asking the authority, or has just done so."""


class Authority(Protocol):
    """A certificate authority; `Session` implements it. The methods block."""

    def obtain(self, subject: str, attempt: int) -> tuple[bytes, bytes]:
        """Return a chain and its key, both PEM; raises `Refused` or `Stopped`."""
        ...

    def renewal(self, chain: bytes) -> tuple[float | None, float]:
        """Return when to renew, if known, and when to ask again; raises `Refused` or `Stopped`."""
        ...


class ManagedCertificate:
    """The certificate of one host name or address, with the steps to obtain and keep it.

    A step raises nothing: it logs a failure and sets the time of the next step. One step runs at
    a time.

    Args:
        subject: DNS name or IP address, in normal form.
        directory: the URL of the authority's ACME directory.

    Raises:
        ConfigError: the store has a file for the subject that cannot be read.
    """

    def __init__(
        self, subject: str, schedule: Schedule, store: Store, authority: Authority, directory: str
    ) -> None:
        self.subject = subject
        self.schedule = schedule
        self.credential: Credential | None = None
        self._store = store
        self._authority = authority
        self._directory = directory
        self._stamp: FileStamp | None = None
        """The stamp of the file when it was last read or written."""
        self._unsaved = False
        """Whether the certificate in use is not in the file yet."""
        self._save_at = 0.0
        self._waiting = False
        """Whether the last step found another process asking; then that is logged already."""
        self._error = ""
        """Why the last request failed; empty if it did not, or there was none."""
        self._unsaved_why = ""
        """Why the certificate in use could not be saved."""
        self._load()

    def _load(self) -> None:
        """Load the certificate and the record of the last request from the store."""
        now = time.time()
        record = self._store.load_record(self.subject)
        schedule = self.schedule
        schedule.restore(record)
        self._error = record.error
        credential = self._store.load(self.subject)
        if credential is not None:
            self.credential = credential
            self._stamp = self._store.stamp(self.subject)
            schedule.obtained(now, credential.info, fresh=False)
            # The operator has changed the authority. The old certificate stays in use until the
            # new authority has issued one.
            if record.directory not in ("", self._directory):
                log.info(
                    "the certificate of %s is from %s; one from %s will be asked for",
                    self.subject,
                    record.directory,
                    self._directory,
                )
                schedule.replace_now()
        at = schedule.next_request(now, credential.info if credential else None)
        # A restart does not shorten the wait after a failure. Without this line the operator would
        # not know why nothing happens.
        if record.error and credential is None and at > now:
            log.warning(
                "no certificate for %s yet; next try in %.0f s, as the last failed: %s",
                self.subject,
                at - now,
                record.error,
            )

    def steps(self, now: float) -> Iterator[tuple[float, Step]]:
        """Yield the steps with their times, in seconds since 1970; a time in the past is due."""
        credential = self.credential
        info = credential.info if credential is not None else None
        yield self.schedule.next_request(now, info), self._obtain
        if credential is not None:
            yield self.schedule.advice_at, functools.partial(self._advise, credential)
            if self._unsaved:
                yield self._save_at, functools.partial(self._save, credential)

    def state(self, now: float) -> CertificateState:
        """Return the state of the certificate.

        Args:
            now: seconds since 1970.
        """
        info = None if self.credential is None else self.credential.info
        at = self.schedule.next_request(now, info)
        failures, unsaved = self.schedule.failures, self._unsaved_why if self._unsaved else ""
        return CertificateState(self.subject, info, failures, at, self._error, unsaved)

    def read_again(self, *, force: bool) -> bool:
        """Load a certificate that another program wrote to the file.

        Returns:
            whether a new certificate is in use. One that has expired, or is the one in use, is
            not loaded.
        """
        stamp = self._store.stamp(self.subject)
        # While the certificate in use is unsaved, the file has an older one.
        if stamp is None or (stamp == self._stamp and not force) or self._unsaved:
            return False
        # Noted also for a file that cannot be used, so that its error is logged once.
        self._stamp = stamp
        try:
            found = self._store.read_again(self.subject)
        except ConfigError as e:
            log.error("certificate not reloaded, the old one stays in use: %s", e)
            return False
        now = time.time()
        old = self.credential
        # The file may have been restored from a backup, or written again without a change.
        if found.info.not_after.timestamp() <= now or (old and old.chain == found.chain):
            return False
        self.credential = found
        self._error = ""
        self.schedule.obtained(now, found.info, fresh=False)
        log.info("certificate of %s reloaded from %s", self.subject, self._store.path(self.subject))
        return True

    # Steps

    async def _obtain(self) -> None:
        # A thread of its own: a request may take minutes, and would block the loop's pool.
        try:
            credential, fresh = await in_own_thread(self._obtain_locked, name=_THREAD)
        except Stopped:
            return
        except _Busy:
            # Not a failure. Look again soon whether the other process has obtained it.
            if not self._waiting:
                log.info(
                    "another process asks for certificates in %s, or just did; that of %s waits",
                    self._store.directory,
                    self.subject,
                )
            self._waiting = True
            self.schedule.postponed(time.time() + self.schedule.policy.look_again)
            return
        except Refused as e:
            self._log_refusal(e)
        except Exception as e:
            log.exception("getting a certificate for %s failed unexpectedly", self.subject)
            why = Refused(f"an unexpected error, see the log: {str(e) or type(e).__name__}")
            self._count(why)
            self._log_refusal(why)
        else:
            self.credential = credential
            self._error = ""
            self.schedule.obtained(time.time(), credential.info, fresh=fresh)
            log.info(
                "certificate of %s is valid until %s%s",
                self.subject,
                day(credential.info.not_after),
                "" if fresh else "; another process got it",
            )
        self._waiting = False

    def _obtain_locked(self) -> tuple[Credential, bool]:
        """Obtain the certificate, unless another process is asking. Runs in a thread.

        When one relay takes over from another, both use the same directory for a while. Only one
        of them may ask: two requests would count twice against the authority's limits, and each
        would overwrite the other's certificate.

        Returns:
            the certificate, and whether this process obtained it. If not, another process wrote
            it to the file.

        Raises:
            _Busy: another process is asking, or has failed so recently that this one must wait.
        """
        with order_lock(self._store.directory) as free:
            if not free:
                raise _Busy
            # The file and the record are read under the lock: until now, the other process may
            # have obtained a certificate, or have failed.
            before = self._store.load_record(self.subject)
            credential = self._found(before)
            if credential is not None:
                return credential, False
            if self.schedule.adopt(time.time(), before):
                raise _Busy
            log.info("asking %s for a certificate for %s", self._directory, self.subject)
            try:
                return self._obtain_now(before), True
            except Refused as e:
                self._count(e)  # under the lock, so that the next process reads the new record
                raise

    def _found(self, record: Record) -> Credential | None:
        """Return the certificate that another process has written to the file, if it is better."""
        stamp = self._store.stamp(self.subject)
        same_authority = record.directory in ("", self._directory)
        if stamp in (None, self._stamp) or self._unsaved or not same_authority:
            return None
        try:
            found = self._store.read_again(self.subject)
        except ConfigError:
            return None  # the next look of `read_again` logs it
        # Better means that it lasts longer than the one in use, or has not expired.
        end = self.credential.info.not_after.timestamp() if self.credential else time.time()
        if found.info.not_after.timestamp() <= end:
            return None
        self._stamp = stamp
        return found

    def _obtain_now(self, before: Record) -> Credential:
        """Obtain the certificate from the authority, and save it."""
        schedule = self.schedule
        # A failure is recorded before the request, and replaced by the result after it. If the
        # relay crashes in a request and is restarted each time, the record slows the requests down
        # as other failures do.
        presumed = dataclasses.replace(schedule)
        presumed.failed(time.time(), None, limited=False)
        self._remember(presumed.record(before.directory, INTERRUPTED))
        try:
            chain, key = self._authority.obtain(self.subject, schedule.failures)
        # If the authority has not answered or was not asked, the failure that was recorded above
        # did not happen.
        except Stopped:
            self._remember(before)
            raise
        except Refused as e:
            if not e.asked:
                self._remember(before)
            raise
        try:
            credential = issued_credential(chain, key, self.subject, "what the authority issued")
        except ConfigError as e:
            raise Refused(str(e)) from e
        if credential.info.not_after.timestamp() <= time.time():
            raise Refused("it issued one that has expired already; is the clock right?")
        # In use even if it cannot be saved: the authority would refuse to issue it again and again.
        self._unsaved = True
        self._save_now(credential)
        return credential

    def _count(self, why: Refused) -> None:
        """Note a failed request in the schedule and in the record for other processes."""
        now = time.time()
        schedule = self.schedule
        if not why.asked:
            # The authority need not be spared. The cause is local, such as a full disk.
            schedule.postponed(now + schedule.policy.save_every)
            return
        schedule.failed(now, why.retry_after, limited=why.limited)
        # The record names the authority that issued the certificate in the file, which may be
        # another one than the one that failed now.
        directory = self._store.load_record(self.subject).directory
        self._remember(schedule.record(directory, str(why)))

    def _log_refusal(self, why: Refused) -> None:
        self._error = str(why)
        wait = max(self.schedule.retry_at - time.time(), 0.0)
        credential = self.credential
        if credential is None:
            log.error("no certificate for %s: %s; next try in %.0f s", self.subject, why, wait)
            return
        log.warning(
            "the certificate of %s, valid until %s, is not renewed: %s; next try in %.0f s",
            self.subject,
            day(credential.info.not_after),
            why,
            wait,
        )

    async def _advise(self, credential: Credential) -> None:
        """Ask the authority when to renew the certificate."""
        now = time.time()
        try:
            when, again = await in_own_thread(
                functools.partial(self._authority.renewal, credential.chain), name=_THREAD
            )
        except Stopped:
            return
        except Refused as e:
            log.info("%s does not say when to renew: %s", self._directory, e)
            when, again = None, now + self.schedule.policy.advice_every
        except Exception:
            log.exception("asking when to renew failed unexpectedly")
            when, again = None, now + self.schedule.policy.advice_every
        # The file may have been reloaded during the request; the advice is then about another one.
        if self.credential is credential:
            self.schedule.advised(time.time(), credential.info, when, again)

    async def _save(self, credential: Credential) -> None:
        try:
            await in_own_thread(functools.partial(self._save_now, credential), name=_THREAD)
        except Exception:
            log.exception("saving the certificate of %s failed unexpectedly", self.subject)
            self._save_at = time.time() + self.schedule.policy.save_every

    def _save_now(self, credential: Credential) -> None:
        """Write the certificate to the store, or plan another try. Runs in a thread."""
        try:
            self._store.save(self.subject, credential)
        except OSError as e:
            self._save_at = time.time() + self.schedule.policy.save_every
            self._unsaved_why = e.strerror or str(e)
            log.error(
                "cannot save the certificate of %s in %s: %s; it is in use all the same, and "
                "lost if the relay stops",
                self.subject,
                self._store.path(self.subject),
                e.strerror,
            )
            return
        # With this stamp, `read_again` does not take this write for one of another program.
        self._stamp = self._store.stamp(self.subject)
        self._unsaved = False
        self._remember(Record(directory=self._directory))  # without the failures before

    def _remember(self, record: Record) -> None:
        try:
            self._store.save_record(self.subject, record)
        except OSError as e:
            log.error("cannot write %s: %s", self._store.record_path(self.subject), e.strerror)
