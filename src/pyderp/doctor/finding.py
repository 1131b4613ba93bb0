"""What a check found, and what a check is."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import Generic, TypeAlias, TypeVar

__all__ = ["Check", "Finding", "Result", "Seen", "failed", "ok", "skipped", "warned"]

S = TypeVar("S")


class Result(Enum):
    """How a check ended; also the word that is printed."""

    OK = "ok"
    WARN = "warn"
    """It works, and something about it needs to be looked at."""
    FAIL = "fail"
    SKIP = "skip"
    """Not checked, or there is nothing to check; the text says which. Not counted as a problem."""


@dataclass(frozen=True, slots=True)
class Seen:
    """What a check returns."""

    result: Result
    text: str
    """One line: what was seen. It may have text of a peer in it, unescaped."""
    advice: str = ""
    """What to do next; empty: nothing."""
    data: Mapping[str, object] = field(default_factory=dict)
    """The same for programs: numbers in seconds and bytes, addresses and keys as text."""

    @property
    def passes(self) -> bool:
        """Whether checks that need this one can go on."""
        return self.result in (Result.OK, Result.WARN)


def ok(text: str, /, **data: object) -> Seen:
    """What a check returns if all is well."""
    return Seen(Result.OK, text, "", data)


def warned(text: str, advice: str, /, **data: object) -> Seen:
    """What a check returns if something needs to be looked at."""
    return Seen(Result.WARN, text, advice, data)


def failed(text: str, advice: str, /, **data: object) -> Seen:
    """What a check returns if something does not work."""
    return Seen(Result.FAIL, text, advice, data)


def skipped(text: str, /, *advice: str, **data: object) -> Seen:
    """What a check returns if there is nothing to check."""
    return Seen(Result.SKIP, text, "".join(advice), data)


Needs: TypeAlias = tuple[str | tuple[str, ...], ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Check(Generic[S]):
    """One check. `S` is what it looks at: a node, or a region."""

    name: str
    """`group.name`; stable, for scripts."""

    run: Callable[[S], Awaitable[Seen]]
    """Returns what was seen. An error of pyderp's or of the system's that it raises is a failure
    whose text and reason are the error's."""

    needs: Needs = ()
    """Names of checks that must have passed, or else this one is skipped. Of a tuple in it, one is
    enough."""

    after: tuple[str, ...] = ()
    """Names of checks that must have ended before, however."""

    times: float = 1.0
    """How many times the usual limit it may take."""

    extra: float = 0.0
    """Seconds that it may take beyond that, as it waits for something on purpose."""

    @property
    def group(self) -> str:
        """What is before the dot."""
        return self.name.partition(".")[0]


@dataclass(frozen=True, slots=True)
class Finding:
    """What a check of one subject found."""

    subject: str
    """What was looked at: the name of a node, or of a region."""
    check: str
    """The check's name."""
    seen: Seen
    seconds: float
    """How long the check took; 0 if it was skipped."""

    @property
    def result(self) -> Result:
        """How it ended."""
        return self.seen.result

    @property
    def key(self) -> tuple[str, str]:
        """Subject and check: the same in each run."""
        return self.subject, self.check
