"""When to ask a certificate authority: for a certificate, or for when it wants it renewed.

Nothing here reads a clock; times are seconds since 1970.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, TypeAlias

from pyderp.certs.credential import CertificateInfo

__all__ = ["INTERRUPTED", "Record", "RetryPolicy", "Schedule", "Uniform"]

Uniform: TypeAlias = Callable[[float, float], float]
"""A random number between two."""

INTERRUPTED: Final = "interrupted"
"""What a `Record` has for an error while the authority is asked."""
_LIMITED: Final = 3600.0
"""For an authority that says "too often" and not until when."""


@dataclass(frozen=True, kw_only=True, slots=True)
class RetryPolicy:
    """How often an authority is asked at most. Times in seconds."""

    first_retry: float = 60.0
    """After a failure; doubled after each further one."""

    longest_retry: float = 3 * 3600.0

    longest_wait: float = 24 * 3600.0
    """An authority's `Retry-After`, and a time in a file, count for no longer than this."""

    jitter: float = 0.25
    """Up to this part is added to a wait."""

    renew_left: float = 1 / 3
    """Without advice, renewal is due when this part of the lifetime is left."""

    fresh: float = 3600.0
    """A certificate is not renewed sooner, nor before a third of its lifetime, whatever the
    advice is."""

    advice_delay: float = 60.0
    """After a start, before advice is asked for: a relay that crashes and restarts does not
    ask each time."""

    advice_every: float = 6 * 3600.0
    """Unless the authority says another time."""

    save_every: float = 60.0
    """Between two tries to save a certificate or an account, to a disk that is full perhaps."""

    look_again: float = 5.0
    """While another process asks."""


@dataclass(frozen=True, slots=True)
class Record:
    """What is remembered of requests for one certificate, across restarts."""

    directory: str = ""
    """The authority that issued the certificate."""

    failures: int = 0
    retry_at: float = 0.0
    authority_retry_at: float = 0.0
    error: str = ""


@dataclass(slots=True)
class Schedule:
    """The times for one certificate."""

    policy: RetryPolicy
    uniform: Uniform

    failures: int = 0
    """In a row."""

    retry_at: float = 0.0
    authority_retry_at: float = 0.0
    """The part of `retry_at` that the authority itself demanded."""

    advice_at: float = 0.0
    _obtained_at: float = 0.0
    _renew_at: float = 0.0

    def failed(self, now: float, retry_after: float | None, *, limited: bool) -> None:
        """A request failed.

        Args:
            retry_after: seconds that the authority wants to be left alone.
            limited: it said that it is asked too often.
        """
        self.failures += 1
        policy = self.policy
        demanded = retry_after if retry_after is not None else (_LIMITED if limited else 0.0)
        self.authority_retry_at = now + min(demanded, policy.longest_wait)
        wait = min(policy.first_retry * 2.0 ** min(self.failures - 1, 30), policy.longest_retry)
        wait *= 1 + self.uniform(0, policy.jitter)
        self.retry_at = max(now + wait, self.authority_retry_at)

    def record(self, directory: str, error: str) -> Record:
        """What is to be remembered."""
        return Record(directory, self.failures, self.retry_at, self.authority_retry_at, error)

    def restore(self, record: Record) -> None:
        """Go on from what was remembered."""
        self.failures = record.failures
        self.retry_at, self.authority_retry_at = record.retry_at, record.authority_retry_at

    def adopt(self, now: float, record: Record) -> bool:
        """Adopt what another process wrote, if it is newer and says to wait. Returns whether."""
        news = (
            record.failures > self.failures or record.authority_retry_at > self.authority_retry_at
        )
        if not news or record.retry_at <= now:
            return False
        failures = self.failures
        self.restore(record)
        self.failures = max(self.failures, failures)
        return True

    def postponed(self, until: float) -> None:
        """The authority was not asked; try again no sooner than this."""
        self.retry_at = max(self.retry_at, until)

    def obtained(self, now: float, info: CertificateInfo, *, fresh: bool = True) -> None:
        """A certificate is there.

        Args:
            fresh: it was just issued; otherwise it is from a file.
        """
        policy = self.policy
        life = info.lifetime.total_seconds()
        left = life * policy.renew_left * (1 + self.uniform(0, policy.jitter))
        self._renew_at = info.not_after.timestamp() - left
        self._obtained_at = now if fresh else info.not_before.timestamp()
        self.advice_at = now + policy.advice_delay * (1 + self.uniform(0, 1))
        if fresh:
            self.failures = 0
            self.retry_at = self.authority_retry_at = 0.0

    def advised(
        self, now: float, info: CertificateInfo, renew_at: float | None, ask_at: float
    ) -> None:
        """The authority said when to renew (RFC 9773).

        Args:
            renew_at: `None`: it does not say.
            ask_at: when to ask again.
        """
        policy = self.policy
        if renew_at is not None:
            # Advice may come for a reason: a revocation, or load. It may not cost validity.
            life = info.lifetime.total_seconds()
            self._renew_at = min(renew_at, info.not_after.timestamp() - life / 10)
        wait = min(max(ask_at - now, policy.first_retry), policy.longest_wait)
        self.advice_at = now + wait

    def replace_now(self) -> None:
        """The certificate in use is good, but from another authority than the settings name."""
        self._renew_at = self._obtained_at = 0.0

    def hurry(self, now: float) -> None:
        """An operator asks for it now; only the time that the authority demanded still counts."""
        self.retry_at = min(self.retry_at, max(now, self.authority_retry_at))

    def next_request(self, now: float, info: CertificateInfo | None) -> float:
        """When to ask for a certificate; in the past: now.

        Args:
            info: the one in use, if any.
        """
        # A clock that jumped, or a time in a file from a wrong clock, must not count for long.
        retry_at = min(self.retry_at, now + self.policy.longest_wait * (1 + self.policy.jitter))
        if info is None or info.not_after.timestamp() <= now:
            return retry_at
        rest = min(self.policy.fresh, info.lifetime.total_seconds() / 3)
        return max(retry_at, self._renew_at, self._obtained_at + rest)
