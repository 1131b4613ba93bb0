"""Bootstrap DNS: which addresses a client with broken DNS gets in its answer. No I/O.

Every answer has all published names. An unpublished name is returned only to clients that ask
for it, and only to a percentage of those: for a slow roll-out. As `derper` does
(`cmd/derper/bootstrap_dns.go`).
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, Generic, TypeVar

from pyderp.addresses import as_16_bytes, parse_ip
from pyderp.errors import ConfigError

__all__ = [
    "BootstrapAnswers",
    "BootstrapCounters",
    "BootstrapName",
    "LastGood",
    "in_percentage",
    "percentage",
]

T = TypeVar("T")

MAX_QUERIED: Final = 500
"""Different names that are remembered for `queried_domains`; the next one clears the set."""
_MAX_NAME: Final = 255
"""Characters of a name asked for that are remembered; no DNS name is longer."""
_PERCENT: Final = re.compile(r"[+-]?[0-9]{1,18}", re.ASCII)

# Go's math/rand/v2.PCG
_MASK_64: Final = 2**64 - 1
_MASK_128: Final = 2**128 - 1
_PCG_MULTIPLIER: Final = 0x2360ED051FC65DA44385DF649FCCF645
_PCG_INCREMENT: Final = 0x5851F42D4C957F2D14057B7EF767814F
_PCG_CHEAP: Final = 0xDA942042E4DD58B5
_FLOAT_RANGE: Final = 1 << 53


@dataclass(frozen=True, slots=True)
class BootstrapName:
    """A name from the settings: `name`, or `name/txtname`."""

    name: str
    txt: str = ""
    """The name of a TXT record that says to how many percent; empty: to all."""

    @classmethod
    def parse(cls, text: str) -> BootstrapName:
        """Read an entry; space around it does not matter.

        Raises:
            ConfigError: a name is missing.
        """
        name, slash, txt = (part.strip() for part in text.partition("/"))
        if not name or (slash and not txt):
            raise ConfigError(f"bootstrap DNS name {text!r}: want NAME or NAME/TXTNAME")
        return cls(name, txt)


@dataclass(slots=True)
class BootstrapCounters:
    """What was asked for; the names are those of Go's metrics, after `bootstrap_dns_`."""

    requests: int = 0
    published_hits: int = 0
    published_misses: int = 0
    """Queries for a published name that has no address."""
    unpublished_hits: int = 0
    """Queries for an unpublished name with addresses, whether or not the client got them."""
    unpublished_misses: int = 0
    """Queries for a name that is not published, and that is unknown or withheld from the client."""
    unpublished_percent_misses: int = 0
    """Queries for an unpublished name whose addresses were withheld from the client."""
    queried_domains: int = 0
    """Different names in queries; the count starts again after 500."""


def percentage(texts: Iterable[str]) -> int:
    """Return the last string of a TXT record that is an integer from 0 to 100; 0 if none is."""
    found = 0
    for text in texts:
        if _PERCENT.fullmatch(text) and 0 <= int(text) <= 100:
            found = int(text)
    return found


def in_percentage(address: str, percent: int, *, uniform: Callable[[], float]) -> bool:
    """Whether a client belongs to a percentage; the same address always gets the same answer.

    Args:
        address: its IP address; a text that is not an IP address belongs only to 100 percent.
        percent: from 0 to 100.
        uniform: returns numbers from [0, 1); decides for clients on loopback, as in tests.
    """
    if percent <= 0 or percent >= 100:
        return percent >= 100
    parsed = parse_ip(address)
    if parsed is None:
        return False
    if parsed.is_loopback:
        return uniform() < 0.5
    return percent / 100 > _pcg_float(as_16_bytes(parsed))


def _pcg_float(seed: bytes) -> float:
    """The first number from [0, 1) of Go's PCG with a seed of 16 bytes."""
    high, low = int.from_bytes(seed[:8], "little"), int.from_bytes(seed[8:], "little")
    state = ((high << 64 | low) * _PCG_MULTIPLIER + _PCG_INCREMENT) & _MASK_128
    high, low = state >> 64, state & _MASK_64
    high ^= high >> 32
    high = high * _PCG_CHEAP & _MASK_64
    high ^= high >> 48
    high = high * (low | 1) & _MASK_64
    return (high & (_FLOAT_RANGE - 1)) / _FLOAT_RANGE


class LastGood(Generic[T]):
    """The last answer for each name, kept for a limited time.

    While a name server does not answer, clients with broken DNS still get the last addresses.
    The time is limited because an unconfirmed address may belong to another machine by then.

    Args:
        keep: seconds that a value is used without being found again.
    """

    def __init__(self, keep: float) -> None:
        self._keep = keep
        self._found: dict[str, tuple[float, T]] = {}

    def found(self, name: str, value: T, now: float) -> None:
        """Keep a name's newest value."""
        self._found[name] = now + self._keep, value

    def gone(self, name: str) -> None:
        """Forget a name that does not exist any more."""
        self._found.pop(name, None)

    def get(self, name: str, now: float) -> T | None:
        """Return a name's last value, if it is not too old."""
        until, value = self._found.get(name, (now, None))
        return value if now < until else None


@dataclass(slots=True)
class BootstrapAnswers:
    """The addresses that are known now, and which of them a client gets."""

    counters: BootstrapCounters = field(default_factory=BootstrapCounters)
    _published: Mapping[str, Sequence[str]] = field(default_factory=dict)
    _body: bytes = b""
    _unpublished: Mapping[str, tuple[Sequence[str], int]] = field(default_factory=dict)
    _queried: set[str] = field(default_factory=set)

    def publish(self, addresses: Mapping[str, Sequence[str]]) -> None:
        """Replace the published names and their addresses, which every answer has."""
        self._published = addresses
        self._body = _as_json(addresses) if addresses else b"null"

    def keep_for_askers(self, addresses: Mapping[str, tuple[Sequence[str], int]]) -> None:
        """Replace the unpublished names: addresses, and the percentage of clients for each."""
        self._unpublished = addresses

    def answer(self, name: str, address: str, *, uniform: Callable[[], float]) -> bytes:
        """Return the JSON for a request; empty before `publish` was called.

        Args:
            name: the name in the query; empty: none. Upper and lower case differ.
            address: the client's.
            uniform: as for `in_percentage`.
        """
        counters = self.counters
        counters.requests += 1
        if not name:
            return self._body
        self._queried.add(name[:_MAX_NAME])
        if len(self._queried) > MAX_QUERIED:
            self._queried.clear()
        counters.queried_domains = len(self._queried)
        addresses, percent = self._unpublished.get(name, ((), 0))
        if addresses:
            counters.unpublished_hits += 1
            if in_percentage(address, percent, uniform=uniform):
                return _as_json({name: addresses})
            counters.unpublished_percent_misses += 1
        published = self._published.get(name)
        if published is None:
            counters.unpublished_misses += 1
        elif published:
            counters.published_hits += 1
        else:
            counters.published_misses += 1
        return self._body


def _as_json(addresses: Mapping[str, Sequence[str]]) -> bytes:
    return json.dumps(addresses, indent="\t", sort_keys=True, ensure_ascii=False).encode()
