"""Processes that share a directory of certificates, and ask for them one at a time."""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path

__all__ = ["order_lock"]


@contextlib.contextmanager
def order_lock(directory: Path) -> Iterator[bool]:
    """Gives at once whether nobody else holds it, in this process or another of the machine.

    Advisory, and on the directory itself: it needs no file, and so no room on a full disk, and
    ends with the process. Where the file system knows no locks, it is always given.
    """
    with contextlib.ExitStack() as stack:
        free = True
        try:
            handle = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
            stack.callback(os.close, handle)
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            free = False
        except OSError:
            pass  # a network's file system perhaps
        yield free
