"""Files that an operator names, and secrets in them."""

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
"""What `str.splitlines` ends a line at, but for LF."""


class FileStamp(NamedTuple):
    """Tells two versions of a file apart, whether it was written anew or replaced."""

    changed_ns: int
    size: int
    inode: int


def file_stamp(path: Path) -> FileStamp | None:
    """The stamp of the file that is there now; `None`: there is none, or it cannot be seen."""
    try:
        status = path.stat()
    except OSError:
        return None
    return FileStamp(status.st_mtime_ns, status.st_size, status.st_ino)


def read_regular(path: Path, limit: int) -> bytes:
    """The content of a regular file. It never waits for what is no file.

    A FIFO or a device would stop the whole process until something is written to it, and files are
    read again while a relay runs. So the shell's `<(…)` does not do either.

    Args:
        limit: bytes that it may have.

    Raises:
        OSError: it cannot be read, is no regular file, or is larger; `strerror` says which.
    """
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
    """The text of a file that holds a secret; logs a warning if others may read it.

    Raises:
        ConfigError: it cannot be read, or has more bytes than `limit`; `__cause__` says which.
    """
    try:
        text = read_regular(path, limit).decode()
    except UnicodeDecodeError as e:
        raise ConfigError(f"cannot read the {what} {path}: it is not text") from e
    except (OSError, ValueError) as e:
        reason = e.strerror if isinstance(e, OSError) else "no path has a NUL character"
        raise ConfigError(f"cannot read the {what} {printable(str(path))}: {reason}") from e
    warn_if_open(path)
    return text


def make_private_folder(path: Path) -> None:
    """Make a folder, and those above it that are missing, for this user only (0700).

    `Path.mkdir` gives its mode to the last one only, and leaves those above to the umask. A user
    who may write to one of them can put another folder in the place of the one below.

    Raises:
        OSError: it cannot be made, or something else is there.
    """
    try:
        path.mkdir(mode=0o700, exist_ok=True)
    except FileNotFoundError:
        if path.parent == path:
            raise
        make_private_folder(path.parent)
        path.mkdir(mode=0o700, exist_ok=True)


def numbered_lines(text: str) -> Iterator[tuple[int, str]]:
    """The lines of a text that an operator wrote, with their numbers, without LF or CR LF.

    What else ends a line somewhere, as a lone CR did on old systems, is refused: editors show two
    lines where this would see one, and the second would silently belong to the first.

    Raises:
        ConfigError: a line with such a character. The text names the line and the character.
    """
    for number, line in enumerate(text.split("\n"), 1):
        line = line.removesuffix("\r")
        if len(line.splitlines()) > 1 or line[-1:] in _LINE_BREAKS:
            found = next(character for character in line if character in _LINE_BREAKS)
            raise ConfigError(f"line {number}: a line break U+{ord(found):04X}; end lines with LF")
        yield number, line


def warn_if_open(path: Path) -> None:
    """Log a warning if others may read a file that holds a secret."""
    with contextlib.suppress(OSError):
        mode = stat.S_IMODE(path.stat().st_mode)
        if mode & 0o077:
            log.warning("the secret in %s has mode %04o: others may read it; use 0600", path, mode)


def warn_if_replaceable(path: Path) -> None:
    """Log a warning if others may write to the folder of a file, and so replace it."""
    with contextlib.suppress(OSError):
        mode = stat.S_IMODE(path.parent.stat().st_mode)
        if mode & 0o002 and not mode & stat.S_ISVTX:
            log.warning(
                "others may write to the folder %s (mode %04o) and put another file in the place "
                "of %s; use 0700",
                path.parent,
                mode,
                path.name,
            )


def write_atomically(path: Path, data: bytes, *, mode: int, replace: bool = True) -> bool:
    """Write a file so that it is there whole or not at all, even after a crash.

    Args:
        mode: its permission bits, from the first moment on.
        replace: overwrite a file that exists already.

    Returns:
        whether the file was written; `False` only if it existed and `replace` is false.
    """
    # Not at the top: it brings compression, and most starts write no file.
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
                os.link(temporary, path)
            except FileExistsError:
                return False
    finally:
        with contextlib.suppress(FileNotFoundError):
            temporary.unlink()
    directory = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)
    return True
