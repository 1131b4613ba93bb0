"""Input of commands: standard input, and keys and DERP maps from it or from files."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import sys
import threading
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Final, TypeAlias

from pyderp import gojson
from pyderp.errors import ConfigError, InvalidKey, InvalidMap, LocalProtocolError
from pyderp.keys import NodePrivate
from pyderp.maps.derpmap import DERPMap
from pyderp.maps.notmap import read_document
from pyderp.maps.region import DERPRegion

__all__ = ["STDIN", "Stdin", "chunks_of", "lines_of", "read_private_key", "read_region"]
__all__ += ["read_map", "read_stdin"]

log = logging.getLogger("pyderp.cli")

STDIN: Final = Path("-")
"""Stands for standard input where a file is wanted."""
_READ: Final = 64 * 1024
_MAX_KEY: Final = 64 * 1024
_MAX_MAP: Final = 16 * 1024 * 1024
_WANTED: Final = (
    'a DERP map in JSON is wanted here, {"Regions": …}; `pyderp map convert FILE --to json` makes '
    "one of other forms"
)

Read: TypeAlias = Callable[[], Awaitable[bytes]]


def read_stdin(limit: int) -> bytes:
    """Returns all of standard input, at most `limit` bytes.

    Raises:
        ConfigError: standard input is closed.
        OSError: it cannot be read.
    """
    with open(_fileno(), "rb", closefd=False) as file:
        return file.read(limit)


def _fileno() -> int:
    if sys.stdin is None:
        # Its file descriptor may belong to a socket by now.
        raise ConfigError("standard input is closed")
    return sys.stdin.fileno()


class Stdin:
    """Reads standard input in a daemon thread, for which the end of the process does not wait.

    Pipes, files and terminals are read in the same way. A read that blocks does not keep the
    process from ending, as it would in one of asyncio's own threads.

    Raises:
        ConfigError: standard input is closed.
    """

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._wanted = threading.Semaphore(0)
        self._results: asyncio.Queue[bytes | OSError] = asyncio.Queue()
        self._fileno = _fileno()
        threading.Thread(target=self._read_all, name="pyderp stdin", daemon=True).start()

    async def read(self) -> bytes:
        """Returns some bytes, as soon as there are any; `b""` at the end.

        Raises:
            OSError: it cannot be read.
        """
        self._wanted.release()
        result = await self._results.get()
        if isinstance(result, OSError):
            raise result
        return result

    def _read_all(self) -> None:
        result: bytes | OSError = b" "
        while result and not isinstance(result, OSError):
            self._wanted.acquire()
            try:
                result = os.read(self._fileno, _READ)
            except OSError as e:
                result = e
            with contextlib.suppress(RuntimeError):  # the loop is closed
                self._loop.call_soon_threadsafe(self._results.put_nowait, result)


async def lines_of(read: Read, limit: int) -> AsyncIterator[bytes]:
    """Yields the lines of a stream without their line ends, each as soon as it is complete.

    Raises:
        LocalProtocolError: a line is longer than `limit` bytes.
    """
    buffer = bytearray()
    number = 1
    while data := await read():
        *whole, rest = data.split(b"\n")
        for part in whole:
            buffer += part
            yield _checked(bytes(buffer), number, limit)
            buffer.clear()
            number += 1
        buffer += rest
        _checked(buffer, number, limit)
    if buffer:
        yield bytes(buffer)


def _checked(line: bytes | bytearray, number: int, limit: int) -> bytes:
    if len(line) > limit:
        raise LocalProtocolError(
            f"line {number} is longer than a packet may be, {limit} bytes; --raw cuts input into "
            "packets"
        )
    return bytes(line)


async def chunks_of(read: Read, size: int) -> AsyncIterator[bytes]:
    """Yields a stream in pieces of at most `size` bytes, each as soon as it was read."""
    while data := await read():
        for start in range(0, len(data), size):
            yield data[start : start + size]


def read_private_key(path: Path) -> NodePrivate:
    """Returns the key in a file: `privkey:…`, or the JSON of a relay's key file.

    Args:
        path: `-`: standard input.

    Raises:
        ConfigError: the file cannot be read or holds no key; its content is never shown.
    """
    name = "standard input" if path == STDIN else f"the key file {path}"
    text = _read(path, name).strip()
    if not text.startswith("privkey:"):
        try:
            document = gojson.parse(text)
        except ValueError:
            document = None
        value = document.get("PrivateKey") if isinstance(document, dict) else None
        if not isinstance(value, str):
            raise ConfigError(
                f'{name} holds no key: want privkey: and 64 hex digits, or {{"PrivateKey": '
                '"privkey:…"}'
            )
        text = value
    try:
        return NodePrivate.parse(text)
    except InvalidKey as e:
        raise ConfigError(f"{name} holds no usable key: {e}") from None


def _read(path: Path, name: str) -> str:
    try:
        if path == STDIN:
            data = read_stdin(_MAX_KEY)
        else:
            with path.open("rb") as file:
                data = file.read(_MAX_KEY)
    except FileNotFoundError:
        raise ConfigError(f"{name} is not there; make one with: pyderp key new -o {path}") from None
    except IsADirectoryError as e:
        raise ConfigError(f"cannot read {name}: {e.strerror}; give a file, not a folder") from e
    except OSError as e:
        raise ConfigError(f"cannot read {name}: {e.strerror}") from e
    # Bytes that are not text are no key, and the caller's error does not show them.
    return data.decode(errors="replace")


def read_region(path: Path, wanted: str | None) -> DERPRegion:
    """Returns a region of the DERP map in a file. Problems of other regions are logged.

    Args:
        path: `-`: standard input.
        wanted: id or code; `None`: the only region of the map.

    Raises:
        ConfigError: the file cannot be read, or has no such region.
        InvalidMap: the file is no DERP map, or there are errors in this region.
    """
    derp_map = read_map(path)
    key = _chosen(derp_map, wanted, path)
    errors = DERPMap(regions={key: derp_map.regions[key]}).problems().errors
    if errors:
        raise InvalidMap(f"the DERP map {path} is wrong: {'; '.join(errors)}")
    problems = derp_map.problems()
    for error in problems.errors:
        log.warning("DERP map %s, in what is not used: %s", path, error)
    for warning in problems.warnings:
        log.info("DERP map %s: %s", path, warning)
    return derp_map.regions[key]


def read_map(path: Path) -> DERPMap:
    """Returns the DERP map in a file, without a search for problems.

    Args:
        path: `-`: standard input.

    Raises:
        ConfigError: the file cannot be read.
        InvalidMap: the file is no DERP map.
    """
    try:
        text = read_stdin(_MAX_MAP) if path == STDIN else path.read_bytes()
        return _parse_map(text)
    except OSError as e:
        raise ConfigError(f"cannot read the DERP map {path}: {e.strerror}") from e
    except InvalidMap as e:
        raise InvalidMap(f"DERP map {path}: {e}") from e


def _chosen(derp_map: DERPMap, wanted: str | None, path: Path) -> int:
    if wanted is None and len(derp_map.regions) == 1:
        return next(iter(derp_map.regions))
    region = None if wanted is None else derp_map.region(wanted)
    for key, each in derp_map.regions.items():
        if each is region:
            return key
    regions = derp_map.regions.values()
    if not regions:
        raise ConfigError(f"DERP map {path}: its Regions are empty: there is no relay in it")
    there = ", ".join(f"{r.region_id} ({r.region_code})" for r in regions)
    problem = "give --region" if wanted is None else f"it has no region {wanted!r}"
    raise ConfigError(f"DERP map {path}: {problem}; its regions: {there}")


def _parse_map(text: bytes) -> DERPMap:
    read_document(text, _WANTED)  # only for its errors, which end with this advice
    return DERPMap.from_json(text)
