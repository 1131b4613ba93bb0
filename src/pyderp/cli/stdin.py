"""Standard input, read without holding up the event loop or the end of the command."""

from __future__ import annotations

import asyncio
import contextlib
import os
import sys
import threading
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Final

from pyderp.errors import ConfigError, LocalProtocolError

__all__ = ["Stdin", "chunks_of", "lines_of", "read_stdin"]

_READ: Final = 64 * 1024

Read = Callable[[], Awaitable[bytes]]


def read_stdin(limit: int) -> bytes:
    """All of standard input, at most `limit` bytes.

    Raises:
        ConfigError: it is closed.
        OSError: it cannot be read.
    """
    with open(_fileno(), "rb", closefd=False) as file:
        return file.read(limit)


def _fileno() -> int:
    if sys.stdin is None:
        # Its number may be that of a socket by now.
        raise ConfigError("standard input is closed")
    return sys.stdin.fileno()


class Stdin:
    """Reads in a thread of its own, which the end of the process does not wait for.

    A pipe, a file and a terminal are all read alike. A read that blocks does not keep the
    process from ending, as it would in one of asyncio's own threads.

    Raises:
        ConfigError: it is closed.
    """

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._wanted = threading.Semaphore(0)
        self._results: asyncio.Queue[bytes | OSError] = asyncio.Queue()
        self._fileno = _fileno()
        threading.Thread(target=self._read_all, name="pyderp stdin", daemon=True).start()

    async def read(self) -> bytes:
        """Some bytes, as soon as there are any; `b""` at the end.

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
    """The lines of a stream, without their ends; each as soon as it is whole.

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
    """A stream in pieces of at most `size` bytes, each as soon as it is there."""
    while data := await read():
        for start in range(0, len(data), size):
            yield data[start : start + size]
