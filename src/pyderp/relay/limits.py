"""Rate limits of clients: the file that sets them, and the token bucket that applies them.

The file is JSON. Two members are those of `derper -rate-config`, in upper or lower case:

    {"PerClientRateLimitBytesPerSec": 200000, "PerClientRateBurstBytes": 1000000}

A third is pyderp's own, which `derper` ignores. It sets limits for single keys; 0 bytes a second
means no limit.

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
"""Buckets kept after the last connection of their key. Bounded, because a client can make any
number of keys."""

_RATE: Final = "PerClientRateLimitBytesPerSec"
_BURST: Final = "PerClientRateBurstBytes"
_PER_KEY: Final = "PerKey"
_KEY_RATE: Final = "BytesPerSec"
_KEY_BURST: Final = "BurstBytes"
_LABEL: Final = "Label"
_MOST: Final = 2**64 - 1
_LONGEST_LABEL: Final = 200
"""Characters; as in an allow file."""
_QUOTED: Final = 80
"""Most characters of the file that an error quotes."""


@dataclass(frozen=True, slots=True)
class RateLimit:
    """How fast a client may send (`rate.Limiter` in Go)."""

    bytes_per_second: int
    """The rate it may keep up; more than 0."""

    burst_bytes: int
    """What it may send at once after a pause."""


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
    """Unknown members of the file, made printable, for a warning."""

    def limit_for(self, key: bytes) -> RateLimit | None:
        """Return the limit of a raw key; `None`: no limit."""
        return self.keys.get(key, self.default)


class RateBucket:
    """A token bucket of bytes. It starts full and refills continuously.

    Bytes are charged after they were received, even if the bucket goes into debt: `charge`
    returns how long the relay must not read, until the debt is paid.

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

        A negative size is a refund. A clock that goes back refills nothing.
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
        """Whether the bucket is as full as a new one."""
        self.charge(0, now)
        return self._tokens >= self.limit.burst_bytes


class RateBuckets:
    """One bucket for each key, shared by all its connections.

    A bucket that is not full is kept after its last connection, so that a client does not get a
    full one by reconnecting. Full ones are forgotten, two whenever one is added. At most
    `MOST_KEPT` are kept, those charged last; a connection keeps its own bucket in any case.
    """

    def __init__(self) -> None:
        self._of: WeakValueDictionary[bytes, RateBucket] = WeakValueDictionary()
        """Key → bucket, while a connection or `_kept` holds it."""
        self._kept: OrderedDict[RateBucket, None] = OrderedDict()
        """Buckets that are not full, in the order of their last charge."""

    def __len__(self) -> int:
        return len(self._of)

    def of(self, key: bytes, limit: RateLimit, now: float) -> RateBucket:
        """Return the bucket of a raw key, made if there is none. The caller must hold it.

        Args:
            limit: for a new bucket; the same for all connections of a key.
        """
        bucket = self._of.get(key)
        if bucket is None:
            bucket = self._of[key] = RateBucket(limit, now)
        return bucket

    def charge(self, bucket: RateBucket, size: int, now: float) -> float:
        """Charge a bucket as `RateBucket.charge`, and keep it until it is full again."""
        if bucket in self._kept:
            self._kept.move_to_end(bucket)
        else:
            self._forget(now)
            self._kept[bucket] = None
        return bucket.charge(size, now)

    def _forget(self, now: float) -> None:
        # Two for each that is added, so that full ones never accumulate.
        for bucket in list(islice(self._kept, 2)):
            if len(self._kept) >= MOST_KEPT or bucket.is_full(now):
                del self._kept[bucket]


def parse_rate_config(data: bytes, where: str) -> RateConfig:
    """Read a file of rate limits; the module's docstring has its form.

    A missing or null number is 0, and a rate of 0 means no limit. Unknown members are ignored, as
    by `derper`; within `PerKey` they are errors.

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
    """Return the members with one of `names` in upper or lower case, and the other names."""
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
