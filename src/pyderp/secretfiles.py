"""Reads and writes files that an operator names, and secrets in them."""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Final, NamedTuple

from pyderp.errors import ConfigError
from pyderp.text import printable

__all__ = ["FileStamp", "file_stamp", "make_private_folder", "numbered_lines", "read_regular"]
__all__ += ["read_secret", "warn_if_open", "warn_if_replaceable", "write_atomically"]

log = logging.getLogger("pyderp.relay")

_MAX_SECRET: Final = 1024 * 1024
_LINE_BREAKS: Final = frozenset("\r\v\f\x1c\x1d\x1e\x85\u2028\u2029")
"""The characters at which `str.splitlines` ends a line, without LF."""


class FileStamp(NamedTuple):
    """Differs between two versions of a file, whether it was overwritten or replaced."""

    changed_ns: int
    size: int
    inode: int


def file_stamp(path: Path) -> FileStamp | None:
    """Returns the stamp of a file as of now, or `None` if it is missing or not accessible."""
    try:
        status = path.stat()
    except OSError:
        return None
    return FileStamp(status.st_mtime_ns, status.st_size, status.st_ino)


def read_regular(path: Path, limit: int) -> bytes:
    """Returns the content of a regular file; refuses a FIFO or a device.

    Reading one of these could block the whole process until another one writes to it, and a relay
    reads files again while it runs. So the shell's `<(…)` is refused, too.

    Args:
        limit: the most bytes that the file may have.

    Raises:
        OSError: it cannot be read, is not a regular file, or is larger; `strerror` says which.
    """
    # O_NONBLOCK, because opening a FIFO for reading waits for a writer. It changes nothing for
    # regular files.
    handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
    with open(handle, "rb") as file:
        mode = os.fstat(handle).st_mode
        if stat.S_ISDIR(mode):
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
        if not stat.S_ISREG(mode):
            raise OSError(errno.EINVAL, "not a regular file", str(path))
        data = file.read(limit + 1)
    if len(data) > limit:
        raise OSError(errno.EFBIG, f"larger than {limit} bytes", str(path))
    return data


def read_secret(path: Path, what: str, limit: int = _MAX_SECRET) -> str:
    """Returns the text of a file that holds a secret; warns if other users may read it.

    Args:
        what: the kind of file, for the error.
        limit: the most bytes that the file may have.

    Raises:
        ConfigError: it cannot be read, or has more bytes than `limit`; `__cause__` says which.
    """
    try:
        text = read_regular(path, limit).decode()
    except UnicodeDecodeError as e:
        raise ConfigError(f"cannot read the {what} {path}: it is not text") from e
    except (OSError, ValueError) as e:
        reason = e.strerror if isinstance(e, OSError) else "a path cannot contain NUL"
        advice = "; give a file, not a folder" if isinstance(e, IsADirectoryError) else ""
        raise ConfigError(f"cannot read the {what} {printable(str(path))}: {reason}{advice}") from e
    warn_if_open(path)
    return text


def make_private_folder(path: Path) -> None:
    """Make a folder and its missing parents, for this user only (mode 0700).

    `Path.mkdir` applies its mode to the last folder only, and the umask to its parents. Another
    user with write access to a parent could replace the folder below it.

    Raises:
        OSError: it cannot be made, or a file is in its place.
    """
    try:
        path.mkdir(mode=0o700, exist_ok=True)
    except FileNotFoundError:
        if path.parent == path:
            raise
        make_private_folder(path.parent)
        path.mkdir(mode=0o700, exist_ok=True)


def numbered_lines(text: str) -> Iterator[tuple[int, str]]:
    """Yield the lines of a text that an operator wrote, numbered from 1, without LF or CR LF.

    Other characters that end a line in some programs, such as a lone CR, are refused: an editor
    would show two lines where this function sees one.

    Raises:
        ConfigError: a line contains such a character. The text names line and character.
    """
    for number, line in enumerate(text.split("\n"), 1):
        line = line.removesuffix("\r")
        if len(line.splitlines()) > 1 or line[-1:] in _LINE_BREAKS:
            found = next(character for character in line if character in _LINE_BREAKS)
            raise ConfigError(f"line {number}: a line break U+{ord(found):04X}; end lines with LF")
        yield number, line


def warn_if_open(path: Path) -> None:
    """Log a warning if other users may read a file that holds a secret."""
    with contextlib.suppress(OSError):
        mode = stat.S_IMODE(path.stat().st_mode)
        if mode & 0o077:
            text = "the secret in %s has mode %04o: other users may read it; use 0600"
            log.warning(text, path, mode)


def warn_if_replaceable(path: Path) -> None:
    """Log a warning if other users may write to the folder of a file, and so replace the file."""
    with contextlib.suppress(OSError):
        mode = stat.S_IMODE(path.parent.stat().st_mode)
        if mode & 0o002 and not mode & stat.S_ISVTX:
            log.warning(
                "other users may write to the folder %s (mode %04o) and replace %s in it; use 0700",
                path.parent,
                mode,
                path.name,
            )


def write_atomically(path: Path, data: bytes, *, mode: int, replace: bool = True) -> bool:
    """Write a file so that it exists complete or not at all, even after a crash.

    Args:
        mode: permission bits, set before the data is written.
        replace: overwrite a file that exists already.

    Returns:
        whether the file was written; `False` only if it existed and `replace` is false.

    Raises:
        OSError: the file cannot be written.
    """
    # Imported here: it imports compression modules, and most starts of a relay write no file.
    import tempfile

    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    temporary = Path(name)
    try:
        with os.fdopen(handle, "wb") as file:
            os.fchmod(file.fileno(), mode)
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        if replace:
            temporary.replace(path)
        else:
            try:
                # Unlike a rename, a link fails if the file exists: the first of two writers wins.
                os.link(temporary, path)
            except FileExistsError:
                return False
    finally:
        with contextlib.suppress(FileNotFoundError):
            temporary.unlink()
    # The file itself is on disk now; its name is when the folder is, too.
    directory = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)
    return True
