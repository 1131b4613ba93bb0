"""The last good copy of a map, in a file."""

from __future__ import annotations

import dataclasses
import json
from datetime import UTC, datetime
from pathlib import Path

import pytest

from pyderp.errors import ConfigError
from pyderp.mapio.cache import CachedMap, UnusableCopy, read_cache, write_cache

URL = "https://example.com/map"
COPY = CachedMap(
    url=URL, etag='"1"', fetched=datetime(2026, 11, 30, 12, tzinfo=UTC), text='{"Regions":{}}'
)


def test_a_written_copy_is_read(tmp_path: Path) -> None:
    path = tmp_path / "copy"
    assert read_cache(path, URL) is None
    write_cache(path, COPY)
    assert read_cache(path, URL) == COPY
    with pytest.raises(UnusableCopy, match="is the copy of another URL"):
        read_cache(path, "https://example.com/other")
    write_cache(path, dataclasses.replace(COPY, text="x"))
    again = read_cache(path, URL)
    assert again is not None
    assert again.text == "x"


@pytest.mark.parametrize(
    "damage",
    [
        {"url": 1},
        {"map": None},
        {"fetched": "yesterday"},
        {"fetched": "2026-11-30T12:00:00"},
        {"fetched": 7},
    ],
)
def test_a_damaged_copy_is_unusable(tmp_path: Path, damage: dict[str, object]) -> None:
    path = tmp_path / "copy"
    write_cache(path, COPY)
    path.write_text(json.dumps(json.loads(path.read_text()) | damage))
    with pytest.raises(UnusableCopy):
        read_cache(path, URL)
    path.write_text("")
    assert read_cache(path, URL) is None


@pytest.mark.parametrize("text", ["{", "notes", "[]", '{"Regions": {}}', "null", '{"url": "x"}'])
def test_a_file_that_is_no_copy_is_refused(tmp_path: Path, text: str) -> None:
    """The user may need it."""
    path = tmp_path / "map.json"
    path.write_text(text)
    with pytest.raises(ConfigError, match="is not a copy of a map") as caught:
        read_cache(path, URL)
    assert not isinstance(caught.value, UnusableCopy)


def test_an_etag_that_cannot_be_a_header_is_dropped(tmp_path: Path) -> None:
    path = tmp_path / "copy"
    write_cache(path, dataclasses.replace(COPY, etag="a\r\nHost: b"))
    read = read_cache(path, URL)
    assert read is not None
    assert read.etag == ""


def test_a_copy_that_cannot_be_read_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot read the copy of the map"):
        read_cache(tmp_path, URL)
