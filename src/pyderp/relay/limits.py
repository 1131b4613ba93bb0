"""How fast a client may send: the file that says so, and the bucket that measures it.

The file is JSON. Two members are those of `derper -rate-config`, names in any case:

    {"PerClientRateLimitBytesPerSec": 200000, "PerClientRateBurstBytes": 1000000}

A third is only ours, and `derper` passes it over. It gives single keys limits of their own;
0 bytes a second: no limit at all.

    "PerKey": {"nodekey:…": {"BytesPerSec": 0, "BurstBytes": 0, "Label": "the office"}}
"""

from __future__ import annotations

import json
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import islice
from typing import Final
from weakref import WeakValueDictionary

from pyderp import gojson
from pyderp.errors import ConfigError, InvalidKey
from pyderp.keys import KEY_LEN, NodePublic
from pyderp.text import printable
from pyderp.wire.frames import MAX_PACKET_SIZE

__all__ = [
    "MIN_BURST",
    "MOST_KEPT",
    "RateBucket",
    "RateBuckets",
    "RateConfig",
    "RateLimit",
    "parse_rate_config",
]

MIN_BURST: Final = KEY_LEN + MAX_PACKET_SIZE
"""Bytes of the largest frame without its header; a smaller burst is raised to this."""

MOST_KEPT: Final = 16_384
"""Buckets that are remembered after the last connection of their key, as keys cost nothing."""

_RATE: Final = "PerClientRateLimitBytesPerSec"
_BURST: Final = "PerClientRateBurstBytes"
_PER_KEY: Final = "PerKey"
_KEY_RATE: Final = "BytesPerSec"
_KEY_BURST: Final = "BurstBytes"
_LABEL: Final = "Label"
_MOST: Final = 2**64 - 1
_LONGEST_LABEL: Final = 200
"""Characters; as in a key file."""
_QUOTED: Final = 80
"""Characters of the file that an error repeats."""


@dataclass(frozen=True, slots=True)
class RateLimit:
    """How fast a client may send (`rate.Limiter` in Go)."""

    bytes_per_second: int
    """What it may send for ever; more than 0."""

    burst_bytes: int
    """What it may send at once after a time of silence."""


@dataclass(frozen=True, slots=True)
class RateConfig:
    """The limits of all clients (`derpserver.RateConfig`, and those of single keys)."""

    default: RateLimit | None = None
    """For clients that `keys` does not name; `None`: no limit."""

    keys: Mapping[bytes, RateLimit | None] = field(default_factory=dict)
    """Raw key → its limit; `None`: no limit."""

    labels: Mapping[bytes, str] = field(default_factory=dict)
    """Raw key → what the file calls it, printable; only of those that have a label."""

    ignored: tuple[str, ...] = ()
    """Members of the file that mean nothing here, printable: worth a warning."""

    def limit_for(self, key: bytes) -> RateLimit | None:
        """The limit of a raw key; `None`: no limit."""
        return self.keys.get(key, self.default)


class RateBucket:
    """Bytes that a client may still send. Starts full and refills continuously.

    What was sent is charged afterwards, whole, even if the bucket goes into debt: the answer
    is how long to read nothing, until the debt is paid.

    Args:
        now: seconds of a monotonic clock, as for `charge`.
    """

    __slots__ = ("__weakref__", "_last", "_tokens", "limit")

    def __init__(self, limit: RateLimit, now: float) -> None:
        self.limit = limit
        self._tokens = float(limit.burst_bytes)
        self._last = now

    def charge(self, size: int, now: float) -> float:
        """Take `size` bytes; returns the seconds until the bucket is out of debt.

        Less than 0 gives back what was taken too much. A clock that goes back refills nothing.
        """
        limit = self.limit
        tokens = self._tokens
        if now > self._last:
            tokens += (now - self._last) * limit.bytes_per_second
            tokens = min(tokens, limit.burst_bytes)
            self._last = now
        self._tokens = tokens = min(tokens - size, limit.burst_bytes)
        return -tokens / limit.bytes_per_second if tokens < 0 else 0.0

    def is_full(self, now: float) -> bool:
        """Whether the whole burst may be sent, as from a new bucket."""
        self.charge(0, now)
        return self._tokens >= self.limit.burst_bytes


class RateBuckets:
    """One bucket for each key, shared by its connections, those of later included.

    A bucket that is not full outlives its connections: a client gets no full one by coming anew.
    Full ones are forgotten, a few whenever one is added. Of those that are not full `MOST_KEPT`
    are kept, and the one that was charged longest ago goes first, unless it has a connection.
    """

    def __init__(self) -> None:
        self._of: WeakValueDictionary[bytes, RateBucket] = WeakValueDictionary()
        """Those that a connection holds, and those that are kept."""
        self._kept: OrderedDict[RateBucket, None] = OrderedDict()
        """The one charged last comes last."""

    def __len__(self) -> int:
        return len(self._of)

    def of(self, key: bytes, limit: RateLimit, now: float) -> RateBucket:
        """The bucket of a raw key; what charges it holds it.

        Args:
            limit: of a bucket that is made; all of one key must be given the same.
        """
        bucket = self._of.get(key)
        if bucket is None:
            bucket = self._of[key] = RateBucket(limit, now)
        return bucket

    def charge(self, bucket: RateBucket, size: int, now: float) -> float:
        """`RateBucket.charge`, and keep the bucket until it is full again."""
        if bucket in self._kept:
            self._kept.move_to_end(bucket)
        else:
            self._forget(now)
            self._kept[bucket] = None
        return bucket.charge(size, now)

    def _forget(self, now: float) -> None:
        # Two for each that comes: so those that are full never become many.
        for bucket in list(islice(self._kept, 2)):
            if len(self._kept) >= MOST_KEPT or bucket.is_full(now):
                del self._kept[bucket]


def parse_rate_config(data: bytes, where: str) -> RateConfig:
    """Read a file of rate limits; see the module's text for its form.

    A missing or null number is 0, and a rate of 0 is no limit. Unknown members are
    passed over, as `derper` does; within `PerKey` they are errors.

    Args:
        data: the file's content.
        where: its name, for errors.

    Raises:
        ConfigError: not JSON, or not of this form; with the line where that is known.
    """
    members, ignored = _members(_load(data, where), where, _RATE, _BURST, _PER_KEY)
    rate = _number(members, _RATE, where)
    burst = _number(members, _BURST, where)
    keys, labels = _keys(members.get(_PER_KEY), f"{where}: {_PER_KEY}")
    return RateConfig(_limit(rate, burst), keys, labels, ignored)


def _load(data: bytes, where: str) -> object:
    try:
        return gojson.parse(data.decode())
    except UnicodeDecodeError as e:
        line = data.count(b"\n", 0, e.start) + 1
        raise ConfigError(f"{where}, line {line}: not UTF-8; it must be JSON text") from None
    except json.JSONDecodeError as e:
        hint = f'; want for example {{"{_RATE}": 200000}}' if not data.strip() else ""
        at = f"line {e.lineno}, column {e.colno}"
        raise ConfigError(f"{where}, {at}: not JSON: {e.msg}{hint}") from None
    except ValueError as e:
        raise ConfigError(f"{where}: not JSON: {printable(str(e), _QUOTED)}") from None


def _members(value: object, where: str, *names: str) -> tuple[dict[str, object], tuple[str, ...]]:
    """The members of an object that are known by a name in any case, and the other names."""
    known = {gojson.same_name(name): name for name in names}
    members: dict[str, object] = {}
    others = []
    for name, member in _object(value, where).items():
        folded = gojson.same_name(name)
        if folded in known:
            members[known[folded]] = member
        else:
            others.append(printable(name, _QUOTED))
    return members, tuple(others)


def _object(value: object, where: str) -> gojson.Object:
    if not isinstance(value, gojson.Object):
        raise ConfigError(f"{where}: want an object {{…}}, got {_describe(value)}")
    return value


def _keys(
    value: object, where: str
) -> tuple[Mapping[bytes, RateLimit | None], Mapping[bytes, str]]:
    keys: dict[bytes, RateLimit | None] = {}
    labels: dict[bytes, str] = {}
    if value is None:
        return keys, labels
    members = _object(value, where)
    for text, entry in members.pairs:
        at = f"{where}[{printable(text, _QUOTED)}]"
        try:
            key = NodePublic.parse(text).raw
        except InvalidKey as e:
            raise ConfigError(f"{at}: {e}; want nodekey: and 64 hex digits") from None
        if key in keys:
            raise ConfigError(f"{at}: this key is there twice; keep one")
        keys[key], label = _key_limit(entry, at)
        if label:
            labels[key] = label
    return keys, labels


def _key_limit(entry: object, where: str) -> tuple[RateLimit | None, str]:
    members, unknown = _members(entry, where, _KEY_RATE, _KEY_BURST, _LABEL)
    if unknown:
        raise ConfigError(
            f"{where}: unknown member {unknown[0]!r}; want {_KEY_RATE}, {_KEY_BURST}, {_LABEL}"
        )
    if members.get(_KEY_RATE) is None:
        raise ConfigError(f"{where}: {_KEY_RATE} is missing; 0 means no limit for this key")
    label = members.get(_LABEL, "")
    if not isinstance(label, str):
        raise ConfigError(f"{where}: {_LABEL}: want a string, got {_describe(label)}")
    limit = _limit(_number(members, _KEY_RATE, where), _number(members, _KEY_BURST, where))
    return limit, printable(label.strip(), _LONGEST_LABEL)


def _limit(rate: int, burst: int) -> RateLimit | None:
    return RateLimit(rate, max(burst, MIN_BURST)) if rate else None


def _number(members: Mapping[str, object], name: str, where: str) -> int:
    value = members.get(name)
    if value is None:
        return 0
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value <= _MOST:
        raise ConfigError(
            f"{where}: {name}: want a whole number of bytes, 0 or more, got {_describe(value)}"
        )
    return value


def _describe(value: object) -> str:
    if isinstance(value, dict):
        return "an object"
    if isinstance(value, list):
        return "an array"
    return printable(json.dumps(value, ensure_ascii=False), _QUOTED)
