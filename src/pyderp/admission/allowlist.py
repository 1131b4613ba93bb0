"""Files of node keys that are read again when they change, and the one of allowed keys."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar, Final

from pyderp.admission.verdict import Verdict
from pyderp.errors import ConfigError, InvalidKey
from pyderp.keys import NodePublic
from pyderp.secretfiles import FileStamp, file_stamp, numbered_lines, read_regular
from pyderp.text import counted

__all__ = ["AllowList", "KeyList", "parse_allow_list", "read_allow_list"]

log = logging.getLogger("pyderp.admission")

_LONGEST_LABEL: Final = 200
_LARGEST: Final = 16 * 1024 * 1024
"""Bytes of a file, about 200,000 keys."""


def parse_allow_list(data: bytes, where: str) -> dict[NodePublic, str]:
    """Parse an allow file or deny file. A line has a node key, white space and an optional label.

    ```
    # office
    nodekey:0123…cdef  alice's laptop
    nodekey:4567…89ab  build server  # until May
    ```

    A key is written as `tailscale status --json` shows it, with `nodekey:`. Bare digits are
    refused, because they could be a secret that was pasted by mistake. `#` begins a comment at
    the start of a line or after white space. Empty lines are skipped.

    Args:
        data: the file, UTF-8.
        where: its name, for errors.

    Returns:
        the label of each key; empty if it has none.

    Raises:
        ConfigError: anything else in a line, another line break than LF or CR LF, a key twice,
            the zero key. The text names the line and quotes nothing of it, as it may be secret.
    """
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as e:
        bad = data.count(b"\n", 0, e.start) + 1
        raise ConfigError(f"{where}, line {bad}: not UTF-8 text") from None
    labels: dict[NodePublic, str] = {}
    lines: dict[NodePublic, int] = {}
    try:
        for number, line in numbered_lines(text):
            try:
                entry = _parse_line(line)
                if entry is not None and entry[0] in lines:
                    raise ConfigError(f"the same key as in line {lines[entry[0]]}")
            except (ConfigError, InvalidKey) as e:
                raise ConfigError(f"line {number}: {e}") from None
            if entry is not None:
                labels.update((entry,))
                lines[entry[0]] = number
    except ConfigError as e:
        raise ConfigError(f"{where}, {e}") from None
    return labels


def _parse_line(line: str) -> tuple[NodePublic, str] | None:
    words = line.split()
    for n, word in enumerate(words):
        if word.startswith("#"):
            del words[n:]
            break
    if not words:
        return None
    if not words[0].startswith("nodekey:"):
        raise ConfigError("not a node key; want nodekey: and 64 hex digits, then a label if any")
    key = NodePublic.parse(words[0])
    if key.is_zero():
        raise ConfigError("the zero key is not the key of a node")
    if any("nodekey:" in word.lower() for word in words[1:]):
        raise ConfigError("two keys in one line; want one a line")
    label = " ".join(words[1:])
    if len(label) > _LONGEST_LABEL:
        raise ConfigError(f"a label of {len(label)} characters; at most {_LONGEST_LABEL}")
    if not label.isprintable():
        raise ConfigError("a label with control characters")
    return key, label


def read_allow_list(path: Path, what: str = "allow file") -> dict[NodePublic, str]:
    """Read an allow file or a deny file in the format of `parse_allow_list`.

    Args:
        what: the name of this kind of file in errors.

    Raises:
        ConfigError: it cannot be read or is malformed.
    """
    try:
        data = read_regular(path, _LARGEST)
    except OSError as e:
        raise ConfigError(f"cannot read the {what} {path}: {e.strerror or e}") from e
    return parse_allow_list(data, f"{what} {path}")


class KeyList:
    """The keys and labels of a file, read again when the file changes. Empty before `load`.

    The subclasses differ in which keys of a file count while it still changes: it may be half
    written then.

    Args:
        path: the file.
    """

    what: ClassVar[str]
    """The name of this kind of file in errors and logs."""
    _key: ClassVar[str]
    """The name of one of its keys in logs."""
    _adds_early: ClassVar[bool]
    """Whether new keys of a file that still changes count at once."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.trouble = ""
        """Why the current content of the file is not in use; empty if it is in use."""
        self._labels: Mapping[NodePublic, str] = {}
        self._read: FileStamp | None = None
        """The stamp of the file when it was last taken over as a whole, or refused."""
        self._seen: FileStamp | None = None
        """The stamp of the file at the last `look`, `load` or `reload`."""

    def __len__(self) -> int:
        return len(self._labels)

    def label(self, key: NodePublic) -> str:
        """Return the label of a key in the file; empty if there is none."""
        return self._labels.get(key, "")

    def load(self) -> None:
        """Read the file for the first time.

        Raises:
            ConfigError: it cannot be read or is malformed.
        """
        self._read = self._seen = file_stamp(self.path)
        self._labels = read_allow_list(self.path, self.what)
        self._log_size()

    def look(self) -> bool:
        """Read the file again if it changed. Call it every few seconds.

        The keys of the file replace the list once two looks in a row see the same file. Before
        that, an `AllowList` does not change, and a `DenyList` adds the new keys.

        Returns:
            whether the list changed. If the file cannot be used, the old list stays, which is
            logged once, and not while the file still changes.
        """
        before, self._seen = self._seen, file_stamp(self.path)
        if self._seen == self._read:
            return False
        settled = self._seen == before
        return (settled or self._adds_early) and self._take(settled=settled)

    def reload(self) -> bool:
        """Read the file now and take it over as a whole; otherwise as `look`."""
        self._seen = file_stamp(self.path)
        return self._take(settled=True)

    def _take(self, *, settled: bool) -> bool:
        if settled:
            self._read = self._seen
        try:
            labels = read_allow_list(self.path, self.what)
        except ConfigError as e:
            if settled:
                log.error("%ss not reloaded, the old list of %d stays: %s", self._key, len(self), e)
                keys = counted(len(self), self._key)
                self.trouble = f"the old list of {keys} stays in use: {e}"
            return False
        self.trouble = ""
        if not settled:
            labels = {**self._labels, **labels}
        if labels == self._labels:
            return False
        self._labels = labels
        self._log_size()
        return True

    def _log_size(self) -> None:
        """Log how many keys the new list has."""
        raise NotImplementedError


class AllowList(KeyList):
    """The allowed keys of a file. Before `load` no key is allowed.

    A file that still changes is not read: half a list would close the connections of the clients
    in the other half.
    """

    what = "allow file"
    _key = "key"
    _adds_early = False

    def verdict(self, key: NodePublic) -> Verdict:
        """Return whether the key is in the file."""
        label = self._labels.get(key)
        if label is None:
            return Verdict(False, f"peer {key} not authorized (not in the allow file)")
        return Verdict(True, label=label)

    def _log_size(self) -> None:
        if self._labels:
            log.info("read %s from %s", counted(len(self), "key"), self.path)
        else:
            log.warning("the allow file %s allows no client", self.path)
