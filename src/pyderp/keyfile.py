"""Files that an operator names, and secrets in them: a relay's key as `derper` keeps it."""

from __future__ import annotations

import contextlib
import errno
import json
import logging
import os
import stat
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Final, NamedTuple

from pyderp import gojson
from pyderp.errors import ConfigError, InvalidKey
from pyderp.keys import MeshKey, NodePrivate

__all__ = ["FileStamp", "file_stamp", "load_key", "load_or_create_key"]
__all__ += ["make_private_folder", "numbered_lines", "read_mesh_key", "read_regular"]
__all__ += ["read_secret", "warn_if_open", "write_atomically"]

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
    except (OSError, UnicodeDecodeError) as e:
        reason = e.strerror if isinstance(e, OSError) else "it is not text"
        raise ConfigError(f"cannot read the {what} {path}: {reason}") from e
    warn_if_open(path)
    return text


def load_or_create_key(path: Path) -> NodePrivate:
    """The key in a file of `derper`'s form, `{"PrivateKey": "privkey:…"}`.

    A missing file is made, with its parents: mode 0600 and 0700, complete or not at all. Two relays
    that start at once on one path end up with the same key.

    Raises:
        ConfigError: the file cannot be read, made, or holds no key; its content is never shown.
    """
    for _ in range(2):
        try:
            text = read_secret(path, "key file")
        except ConfigError as e:
            if not isinstance(e.__cause__, FileNotFoundError):
                raise
        else:
            _warn_if_replaceable(path)
            return _parse(path, text)
        key = NodePrivate.generate()
        document = json.dumps({"PrivateKey": key.to_text()}, indent="\t")
        try:
            make_private_folder(path.parent)
            if write_atomically(path, document.encode(), mode=0o600, replace=False):
                return key
        except OSError as e:
            raise ConfigError(f"cannot make the key file {path}: {e.strerror}") from e
    raise ConfigError(f"the key file {path} appears and disappears; cannot read it")


def load_key(path: Path, *, create: bool = False) -> NodePrivate:
    """As `NodePrivate.load`."""
    try:
        text = read_secret(path, "key file").strip()
    except ConfigError as e:
        if not isinstance(e.__cause__, FileNotFoundError):
            raise
        if create:
            return load_or_create_key(path)
        raise ConfigError(
            f"the key file {path} is not there; give create=True, or run: pyderp key new -o {path}"
        ) from e.__cause__
    if not text.startswith("privkey:"):
        return _parse(path, text)
    try:
        return NodePrivate.parse(text)
    except InvalidKey as e:
        raise ConfigError(f"the key file {path} holds no usable key: {e}") from None


def _parse(path: Path, text: str) -> NodePrivate:
    try:
        document = gojson.parse(text)
    except ValueError:
        # The parser's error would quote the file.
        raise ConfigError(f"the key file {path} is not JSON") from None
    value = document.get("PrivateKey") if isinstance(document, dict) else None
    if not isinstance(value, str):
        raise ConfigError(
            f'the key file {path} lacks "PrivateKey"; it must hold {{"PrivateKey": "privkey:…"}}'
        )
    try:
        return NodePrivate.parse(value)
    except InvalidKey as e:
        raise ConfigError(f"the key file {path} holds no usable key: {e}") from None


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


def _warn_if_replaceable(path: Path) -> None:
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


def read_mesh_key(path: Path) -> MeshKey:
    """The mesh key in a file: 64 hex digits, white space around them ignored.

    Raises:
        ConfigError: the file cannot be read or holds no mesh key.
    """
    text = read_secret(path, "mesh key file")
    try:
        return MeshKey.parse(text)
    except InvalidKey as e:
        raise ConfigError(f"the mesh key file {path} cannot be used: {e}") from None


def write_atomically(path: Path, data: bytes, *, mode: int, replace: bool = True) -> bool:
    """Write a file so that it is there whole or not at all, even after a crash.

    Args:
        mode: its permission bits, from the first moment on.
        replace: overwrite a file that exists already.

    Returns:
        whether the file was written; `False` only if it existed and `replace` is false.
    """
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
