"""Checks of doctor, and what they find."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import Generic, TypeAlias, TypeVar

__all__ = ["Check", "Finding", "Result", "Seen", "failed", "ok", "skipped", "warned"]

S = TypeVar("S")


class Result(Enum):
    """How a check ended; the value is also the word that is printed."""

    OK = "ok"
    WARN = "warn"
    """It works, but the operator should look at it, or some clients have a disadvantage."""
    FAIL = "fail"
    SKIP = "skip"
    """Not checked, or nothing to check; the text says which. It does not count as a problem."""


@dataclass(frozen=True, slots=True)
class Seen:
    """What a check returns."""

    result: Result
    text: str
    """One line that says what was found. It may contain unescaped text from the relay."""
    advice: str = ""
    """What the operator should do; empty: nothing. Names of flags stand in braces (`{ca}`)."""
    data: Mapping[str, object] = field(default_factory=dict)
    """The same for programs: seconds and bytes as numbers, addresses and keys as text."""

    @property
    def passes(self) -> bool:
        """Whether checks that need this one can run."""
        return self.result in (Result.OK, Result.WARN)


def ok(text: str, /, **data: object) -> Seen:
    """Return the result of a check that found no problem."""
    return Seen(Result.OK, text, "", data)


def warned(text: str, advice: str, /, **data: object) -> Seen:
    """Return the result of a check that found something to look at."""
    return Seen(Result.WARN, text, advice, data)


def failed(text: str, advice: str, /, **data: object) -> Seen:
    """Return the result of a check that found something that does not work."""
    return Seen(Result.FAIL, text, advice, data)


def skipped(text: str, /, *advice: str, **data: object) -> Seen:
    """Return the result of a check that had nothing to check, or could not."""
    return Seen(Result.SKIP, text, "".join(advice), data)


Needs: TypeAlias = tuple[str | tuple[str, ...], ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Check(Generic[S]):
    """One check. `S` is the type of its subject: a map, a node or a region."""

    name: str
    """`group.name`. Scripts use it, so it does not change."""

    run: Callable[[S], Awaitable[Seen]]
    """Runs the check. A `DerpError` or `OSError` that it raises is reported as a failure."""

    needs: Needs = ()
    """Names of checks that must have passed; otherwise this one is skipped. Of the names in a
    tuple, one is enough."""

    after: tuple[str, ...] = ()
    """Names of checks that must have ended before this one starts, with any result."""

    times: float = 1.0
    """Its time limit as a multiple of the usual one."""

    extra: float = 0.0
    """Seconds that are added to its time limit, because it waits on purpose."""

    @property
    def group(self) -> str:
        """The part of the name before the dot."""
        return self.name.partition(".")[0]


@dataclass(frozen=True, slots=True)
class Finding:
    """What a check found about one subject."""

    subject: str
    """The name of the node or region; `map`: the map."""
    check: str
    """The name of the check."""
    seen: Seen
    seconds: float
    """How long the check took; 0 if it was skipped."""

    @property
    def result(self) -> Result:
        """How the check ended."""
        return self.seen.result

    @property
    def key(self) -> tuple[str, str]:
        """Subject and check; the same in each run."""
        return self.subject, self.check
