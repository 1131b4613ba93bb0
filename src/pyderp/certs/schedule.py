"""When to ask a certificate authority for a certificate, and when to ask it for renewal advice.

Nothing here reads a clock. Times are seconds since 1970.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, TypeAlias

from pyderp.certs.credential import CertificateInfo

__all__ = ["INTERRUPTED", "Record", "RetryPolicy", "Schedule", "Uniform"]

Uniform: TypeAlias = Callable[[float, float], float]
"""Returns a random number between its arguments, as `random.uniform`."""

INTERRUPTED: Final = "interrupted"
"""The `error` of a `Record` while a request is under way."""
_LIMITED: Final = 3600.0
"""The wait after a `rateLimited` error without `Retry-After`."""


@dataclass(frozen=True, kw_only=True, slots=True)
class RetryPolicy:
    """How often an authority is asked at most. Times in seconds."""

    first_retry: float = 60.0
    """The wait after the first failure; it doubles with each further one."""

    longest_retry: float = 3 * 3600.0
    """The longest wait after a failure, before the jitter."""

    longest_wait: float = 24 * 3600.0
    """The longest wait that an authority's `Retry-After`, or a time in a record, can demand."""

    jitter: float = 0.25
    """Up to this part of a wait is added to it at random, so that relays do not ask in step."""

    renew_left: float = 1 / 3
    """Without advice, renewal is due when this part of the lifetime is left."""

    fresh: float = 3600.0
    """A certificate is not renewed until it is this old, or a third of its lifetime if that is
    less, whatever the advice is. Bad advice would make the relay ask again and again."""

    advice_delay: float = 60.0
    """The wait for the first request for advice after a start. A relay that crashes and restarts
    in a loop does not ask."""

    advice_every: float = 6 * 3600.0
    """The time between requests for advice, if the authority names none."""

    save_every: float = 60.0
    """The time between tries to save a certificate or account key, for example to a full disk."""

    look_again: float = 5.0
    """The time between looks while another process is asking the authority."""


@dataclass(frozen=True, slots=True)
class Record:
    """The state of requests for one certificate that a file keeps across restarts."""

    directory: str = ""
    """The URL of the authority that issued the certificate."""

    failures: int = 0
    """Failed requests in a row."""

    retry_at: float = 0.0
    authority_retry_at: float = 0.0
    error: str = ""
    """Why the last request failed; empty if it did not."""


@dataclass(slots=True)
class Schedule:
    """The times of the next requests for one certificate."""

    policy: RetryPolicy
    uniform: Uniform

    failures: int = 0
    """Failed requests in a row."""

    retry_at: float = 0.0
    """No request for a certificate is made before this time."""

    authority_retry_at: float = 0.0
    """The time before which the authority itself wants no request; at most `retry_at`."""

    advice_at: float = 0.0
    _obtained_at: float = 0.0
    _renew_at: float = 0.0

    def failed(self, now: float, retry_after: float | None, *, limited: bool) -> None:
        """Note a failed request.

        Args:
            retry_after: seconds of the authority's `Retry-After`, if it sent one.
            limited: the authority's error was `rateLimited`.
        """
        self.failures += 1
        policy = self.policy
        demanded = retry_after if retry_after is not None else (_LIMITED if limited else 0.0)
        self.authority_retry_at = now + min(demanded, policy.longest_wait)
        # The exponent is limited, because a large power of a float overflows.
        wait = min(policy.first_retry * 2.0 ** min(self.failures - 1, 30), policy.longest_retry)
        wait *= 1 + self.uniform(0, policy.jitter)
        self.retry_at = max(now + wait, self.authority_retry_at)

    def record(self, directory: str, error: str) -> Record:
        """Return the record of this state."""
        return Record(directory, self.failures, self.retry_at, self.authority_retry_at, error)

    def restore(self, record: Record) -> None:
        """Take over the state of a record."""
        self.failures = record.failures
        self.retry_at, self.authority_retry_at = record.retry_at, record.authority_retry_at

    def adopt(self, now: float, record: Record) -> bool:
        """Adopt retry state that another process wrote, if it is newer and says to wait.

        Returns:
            whether it was adopted.
        """
        newer = (
            record.failures > self.failures or record.authority_retry_at > self.authority_retry_at
        )
        if not newer or record.retry_at <= now:
            return False
        # The number decides how long the next wait is, so the larger one is kept.
        failures = self.failures
        self.restore(record)
        self.failures = max(self.failures, failures)
        return True

    def postponed(self, until: float) -> None:
        """Make no request before this time, without counting a failure."""
        self.retry_at = max(self.retry_at, until)

    def obtained(self, now: float, info: CertificateInfo, *, fresh: bool = True) -> None:
        """Plan the renewal of a certificate that is in use from now on.

        Args:
            fresh: it was just issued; otherwise it was read from a file.
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
        """Note the authority's advice when to renew (RFC 9773).

        Args:
            renew_at: the time to renew; `None` if the authority does not name one.
            ask_at: when to ask again.
        """
        policy = self.policy
        if renew_at is not None:
            # An authority may advise to renew early, after a revocation, or late, to spread its
            # load. Late advice is followed only until a tenth of the lifetime is left.
            life = info.lifetime.total_seconds()
            self._renew_at = min(renew_at, info.not_after.timestamp() - life / 10)
        # An authority may name any time: one in the past, or one in the next century.
        wait = min(max(ask_at - now, policy.first_retry), policy.longest_wait)
        self.advice_at = now + wait

    def replace_now(self) -> None:
        """Make renewal due: the certificate in use is not from the authority of the settings."""
        self._renew_at = self._obtained_at = 0.0

    def hurry(self, now: float) -> None:
        """Make a retry due, as an operator asks for it; the time of the authority still counts."""
        self.retry_at = min(self.retry_at, max(now, self.authority_retry_at))

    def next_request(self, now: float, info: CertificateInfo | None) -> float:
        """Return when to ask for a certificate; a time in the past means now.

        Args:
            info: the certificate in use, if any.
        """
        # `retry_at` may be far in the future if the clock was wrong when it was set or saved.
        retry_at = min(self.retry_at, now + self.policy.longest_wait * (1 + self.policy.jitter))
        if info is None or info.not_after.timestamp() <= now:
            return retry_at
        rest = min(self.policy.fresh, info.lifetime.total_seconds() / 3)
        return max(retry_at, self._renew_at, self._obtained_at + rest)
