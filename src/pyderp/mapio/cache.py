"""Keeps the last good copy of a map from a URL in a file."""

from __future__ import annotations

import json
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from pyderp import gojson
from pyderp.errors import ConfigError
from pyderp.maps.formats import MAX_MAP
from pyderp.secretfiles import read_regular, write_atomically

__all__ = ["CachedMap", "UnusableCopy", "read_cache", "write_cache"]

_LIMIT: Final = 7 * MAX_MAP
"""The most bytes of the file: JSON needs six bytes at most for a character of the map."""


_MEMBERS: Final = frozenset({"url", "etag", "fetched", "map"})


class UnusableCopy(ConfigError):
    """The file was written by `write_cache`, but for another URL, or it is damaged."""


@dataclass(frozen=True, kw_only=True)
class CachedMap:
    """The last answer of a URL that was a map."""

    url: str
    """Without user and password."""
    etag: str
    """As the server sent it; empty: it sent none."""
    fetched: datetime
    """When the server last sent or confirmed it; an aware time in UTC."""
    text: str
    """The map, in the form that the server sent."""


def read_cache(path: Path, url: str) -> CachedMap | None:
    """Read the copy in a file; returns `None` if there is no file, or an empty one.

    Raises:
        UnusableCopy: the copy is of another URL, or damaged; the caller may replace it.
        ConfigError: the file cannot be read, or is not a copy of a map.
    """
    try:
        data = read_regular(path, _LIMIT)
        document = gojson.parse(data) if data else None
    except FileNotFoundError:
        return None
    except OSError as e:
        raise ConfigError(f"cannot read the copy of the map {path}: {e.strerror}") from e
    except ValueError:
        document = {}
    if document is None and not data:
        return None
    # Any other file may be one that the user needs, so it is never replaced.
    if not isinstance(document, dict) or not document.keys() >= _MEMBERS:
        raise ConfigError(
            f"{path} is not a copy of a map and is not replaced: give a file that does not exist "
            "yet, or remove it"
        )
    if document["url"] != url:
        raise UnusableCopy(f"{path} is the copy of another URL")
    etag, text, fetched = (document.get(name) for name in ("etag", "map", "fetched"))
    try:
        when = datetime.fromisoformat(fetched) if isinstance(fetched, str) else None
    except ValueError:
        when = None
    if when is None or when.tzinfo is None or not isinstance(text, str):
        raise UnusableCopy(f"the copy in {path} is damaged")
    etag = etag if isinstance(etag, str) and etag.isascii() and etag.isprintable() else ""
    return CachedMap(url=url, etag=etag, fetched=when.astimezone(UTC), text=text)


def write_cache(path: Path, copy: CachedMap) -> None:
    """Replace the copy in a file atomically; only the file's owner can read it (0600).

    Raises:
        OSError: the file cannot be written.
    """
    document = {
        "url": copy.url,
        "etag": copy.etag,
        "fetched": copy.fetched.isoformat(timespec="seconds"),
        "map": copy.text,
    }
    write_atomically(path, json.dumps(document).encode(), mode=0o600)
