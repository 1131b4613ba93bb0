"""When to ask a certificate authority: for a certificate, or for when it wants it renewed.

Nothing here reads a clock; times are seconds since 1970.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final, TypeAlias

from pyderp.certs.source import CertificateInfo

__all__ = ["Pace", "Schedule", "Uniform"]

Uniform: TypeAlias = Callable[[float, float], float]
"""A random number between two."""

_LIMITED: Final = 3600.0
"""For an authority that says "too often" and not until when."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Pace:
    """How often an authority is asked at most. Times in seconds."""

    first_retry: float = 60.0
    """After a failure; doubled after each further one."""

    longest_retry: float = 3 * 3600.0

    longest_told: float = 24 * 3600.0
    """An authority's own word, and a time in a file, are not believed beyond this."""

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


@dataclass(slots=True)
class Schedule:
    """The times for one certificate."""

    pace: Pace
    uniform: Uniform

    failures: int = 0
    """In a row."""

    retry_at: float = 0.0
    told_at: float = 0.0
    """The part of `retry_at` that the authority itself demanded."""

    advice_at: float = 0.0
    _obtained_at: float = field(default=0.0)
    _renew_at: float = field(default=0.0)

    def failed(self, now: float, retry_after: float | None, *, limited: bool) -> None:
        """A request failed.

        Args:
            retry_after: seconds that the authority wants to be left alone.
            limited: it said that it is asked too often.
        """
        self.failures += 1
        pace = self.pace
        told = retry_after if retry_after is not None else (_LIMITED if limited else 0.0)
        self.told_at = now + min(told, pace.longest_told)
        wait = min(pace.first_retry * 2.0 ** min(self.failures - 1, 30), pace.longest_retry)
        wait *= 1 + self.uniform(0, pace.jitter)
        self.retry_at = max(now + wait, self.told_at)

    def heed(self, now: float, failures: int, retry_at: float, *, told_at: float) -> bool:
        """Take over what another process noted; gives whether that is news and means to wait."""
        news = failures > self.failures or told_at > self.told_at
        if not news or retry_at <= now:
            return False
        self.failures = max(self.failures, failures)
        self.retry_at, self.told_at = retry_at, told_at
        return True

    def postponed(self, until: float) -> None:
        """Nobody was asked."""
        self.retry_at = max(self.retry_at, until)

    def obtained(self, now: float, info: CertificateInfo, *, fresh: bool = True) -> None:
        """A certificate is there.

        Args:
            fresh: it was just issued; otherwise it is from a file.
        """
        pace = self.pace
        life = info.lifetime.total_seconds()
        left = life * pace.renew_left * (1 + self.uniform(0, pace.jitter))
        self._renew_at = info.not_after.timestamp() - left
        self._obtained_at = now if fresh else info.not_before.timestamp()
        self.advice_at = now + pace.advice_delay * (1 + self.uniform(0, 1))
        if fresh:
            self.failures = 0
            self.retry_at = self.told_at = 0.0

    def advised(
        self, now: float, info: CertificateInfo, renew_at: float | None, ask_at: float
    ) -> None:
        """The authority told when to renew (RFC 9773).

        Args:
            renew_at: `None`: it does not say.
            ask_at: when to ask again.
        """
        pace = self.pace
        if renew_at is not None:
            # Advice may come for a reason: a revocation, or load. It may not cost validity.
            life = info.lifetime.total_seconds()
            self._renew_at = min(renew_at, info.not_after.timestamp() - life / 10)
        wait = min(max(ask_at - now, pace.first_retry), pace.longest_told)
        self.advice_at = now + wait

    def replace_now(self) -> None:
        """The certificate in use is good, but not from whom it should be."""
        self._renew_at = self._obtained_at = 0.0

    def hurry(self, now: float) -> None:
        """An operator asked for it now; only the authority's own word still counts."""
        self.retry_at = min(self.retry_at, max(now, self.told_at))

    def next_request(self, now: float, info: CertificateInfo | None) -> float:
        """When to ask for a certificate; in the past: now.

        Args:
            info: the one in use, if any.
        """
        # A clock that jumped, or a file from one that was wrong, holds up nobody for long.
        retry_at = min(self.retry_at, now + self.pace.longest_told * (1 + self.pace.jitter))
        if info is None or info.not_after.timestamp() <= now:
            return retry_at
        rest = min(self.pace.fresh, info.lifetime.total_seconds() / 3)
        return max(retry_at, self._renew_at, self._obtained_at + rest)
