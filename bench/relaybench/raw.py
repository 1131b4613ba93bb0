"""The raw results: a file of JSON lines, to which each result is appended when it is there.

The first line of a run has the machine and the programs; each other line is one sample or one
failure. A run that was stopped has fewer lines. Several runs may follow each other in one file if
machine, programs and duration are the same: they are further rounds of one run.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

from .errors import BenchError


@dataclass(frozen=True, slots=True)
class Sample:
    """One run's result."""

    scenario: str
    relay: str
    round: int
    output: Mapping[str, object]
    """What the load generator printed, or the figures of the starts."""

    def number(self, key: str) -> float:
        """Return one figure."""
        value = self.output.get(key)
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise BenchError(
                f"the load generator printed no {key}: if it is an old one, remove "
                "it, and it is built anew"
            )
        return float(value)

    @property
    def loss(self) -> float:
        """Fraction of packets that never arrived."""
        return self.number("lost_frac") if "lost_frac" in self.output else 0.0


@dataclass(frozen=True, slots=True)
class Failure:
    """A run without a result."""

    scenario: str
    relay: str
    round: int
    reason: str


@dataclass(frozen=True, slots=True)
class Header:
    """Machine, programs and settings of a run."""

    date: str
    command: str
    machine: Mapping[str, str]
    versions: Mapping[str, str]
    relays: Sequence[str]
    """Names; the first is the one with which the others are compared."""

    commands: Mapping[str, str]
    """How each relay was started, and the load generator."""

    seconds: float
    conns: int


@dataclass(slots=True)
class Raw:
    """The content of a file."""

    header: Header
    dates: list[str] = field(default_factory=list)
    samples: list[Sample] = field(default_factory=list)
    failures: list[Failure] = field(default_factory=list)

    @property
    def rounds(self) -> int:
        """The last round with a sample or failure."""
        numbers = [s.round for s in self.samples] + [f.round for f in self.failures]
        return max(numbers, default=0)


class RawFile:
    """Appends to a file; each line is on disk before the next run begins."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def begin(self, header: Header) -> int:
        """Write the header, and return the number of the last round in the file."""
        rounds = 0
        if self._path.exists() and self._path.stat().st_size:
            before = read(self._path)
            _check_alike(before.header, header, self._path.name)
            rounds = before.rounds
        self._append("run", header)
        return rounds

    def sample(self, sample: Sample) -> None:
        """Append a result."""
        self._append("sample", sample)

    def failure(self, failure: Failure) -> None:
        """Append that a run has no result."""
        self._append("failure", failure)

    def _append(self, kind: str, what: Header | Sample | Failure) -> None:
        line = json.dumps({"kind": kind, **asdict(what)}, ensure_ascii=False)
        try:
            with self._path.open("a", encoding="utf-8") as out:
                out.write(line + "\n")
        except OSError as exc:
            raise BenchError(f"cannot write {self._path}: {exc.strerror}") from exc


def read(path: Path) -> Raw:
    """Read a file; a last line that was cut short is left out."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except OSError as exc:
        raise BenchError(f"cannot read {path}: {exc.strerror}") from exc
    raw: Raw | None = None
    for number, line in enumerate(lines, 1):
        try:
            values = json.loads(line)
            kind = values.pop("kind")
            if kind == "run":
                header = Header(**values)
                raw = raw or Raw(header)
                _check_alike(raw.header, header, path.name)
                raw.dates.append(header.date)
                continue
            what = Sample(**values) if kind == "sample" else Failure(**values)
        except (ValueError, TypeError, KeyError, AttributeError) as exc:
            if number == len(lines):
                break
            raise BenchError(f"{path.name}, line {number}: not a result: {exc}") from exc
        if raw is None:
            break
        if isinstance(what, Sample):
            raw.samples.append(what)
        else:
            raw.failures.append(what)
    if raw is None:
        raise BenchError(f"{path.name} has no results of bench/run.py in it")
    return raw


_BUSY = "load average at the start"


def _check_alike(old: Header, new: Header, name: str) -> None:
    """Raise `BenchError` if two runs differ in machine, programs or settings."""

    def what(header: Header) -> dict[str, object]:
        machine = {k: v for k, v in header.machine.items() if k != _BUSY}
        return {
            "machine": machine,
            "versions": header.versions,
            "relays": header.relays,
            "seconds": header.seconds,
            "conns": header.conns,
        }

    a, b = what(old), what(new)
    differing = [key for key in a if a[key] != b[key]]
    if differing:
        raise BenchError(f"{name} has results of other {', '.join(differing)}: use another file")
