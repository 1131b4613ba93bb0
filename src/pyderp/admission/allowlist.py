"""A file of the node keys that may come in, read again when it changes."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from pyderp.admission.verdict import Verdict
from pyderp.errors import ConfigError, InvalidKey
from pyderp.keys import NodePublic
from pyderp.secretfiles import FileStamp, file_stamp, numbered_lines, read_regular
from pyderp.text import counted

__all__ = ["AllowList", "parse_allow_list", "read_allow_list"]

log = logging.getLogger("pyderp.admission")

_LONGEST_LABEL: Final = 200
_LARGEST: Final = 16 * 1024 * 1024
"""Bytes of a file: some 200,000 keys."""


def parse_allow_list(data: bytes, where: str) -> dict[NodePublic, str]:
    """Parse a key file: a node key a line, then, after white space, an optional label.

    ```
    # office
    nodekey:0123…cdef  alice's laptop
    nodekey:4567…89ab  build server  # until May
    ```

    A key is written as `tailscale status --json` shows it, with `nodekey:`: bare digits could
    as well be a secret that was pasted by mistake. `#` begins a comment at the start of a line
    or after white space. Empty lines are skipped.

    Args:
        data: the file, UTF-8.
        where: its name, for errors.

    Returns:
        the label of each key, empty for none.

    Raises:
        ConfigError: anything else in a line, another line break than LF or CR LF, a key twice,
            the zero key. The text names the line and repeats nothing of it, as it may be secret.
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
        raise ConfigError("the zero key is nobody's")
    if any("nodekey:" in word.lower() for word in words[1:]):
        raise ConfigError("two keys in one line; want one a line")
    label = " ".join(words[1:])
    if len(label) > _LONGEST_LABEL:
        raise ConfigError(f"a label of {len(label)} characters; at most {_LONGEST_LABEL}")
    if not label.isprintable():
        raise ConfigError("a label with control characters")
    return key, label


def read_allow_list(path: Path, what: str = "key file") -> dict[NodePublic, str]:
    """Read a key file, as `parse_allow_list` describes it.

    Args:
        what: how errors call the file.

    Raises:
        ConfigError: it cannot be read or is malformed.
    """
    try:
        data = read_regular(path, _LARGEST)
    except OSError as e:
        raise ConfigError(f"cannot read the {what} {path}: {e.strerror or e}") from e
    return parse_allow_list(data, f"{what} {path}")


class AllowList:
    """The keys of a file. Before the first `load` no key is allowed.

    Args:
        path: the file.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._labels: Mapping[NodePublic, str] = {}
        self._read: FileStamp | None = None
        """What the file looked like when it was last read, or tried to."""
        self._seen: FileStamp | None = None
        """What it looked like at the last look."""
        self.trouble = ""
        """Why the file as it is now is not used; empty: it is."""

    def __len__(self) -> int:
        return len(self._labels)

    def label(self, key: NodePublic) -> str:
        """What the file calls a key; empty for nothing."""
        return self._labels.get(key, "")

    def verdict(self, key: NodePublic) -> Verdict:
        """Whether the key is in the file."""
        label = self._labels.get(key)
        if label is None:
            return Verdict(False, f"peer {key} not authorized (not in the key file)")
        return Verdict(True, label=label)

    def load(self) -> None:
        """Read the file for the first time.

        Raises:
            ConfigError: it cannot be read or is malformed.
        """
        self._read = self._seen = file_stamp(self.path)
        self._labels = read_allow_list(self.path)
        self._tell()

    def look(self) -> bool:
        """Read the file again if it changed since it was read and not since the last look.

        One that still changes may be half written, and half a list would close the connections
        of the other half. Call it every few seconds.

        Returns:
            whether there is a new list. If the file cannot be used the old one stays, which is
            logged once.
        """
        before, self._seen = self._seen, file_stamp(self.path)
        if self._seen == self._read or self._seen != before:
            return False
        return self.reload()

    def reload(self) -> bool:
        """Read the file now; otherwise as `look`."""
        self._read = self._seen = file_stamp(self.path)
        try:
            labels = read_allow_list(self.path)
        except ConfigError as e:
            log.error("keys not reloaded, the old list of %d stays: %s", len(self), e)
            self.trouble = f"the old list of {counted(len(self), 'key')} stays in use: {e}"
            return False
        self.trouble = ""
        if labels == self._labels:
            return False
        self._labels = labels
        self._tell()
        return True

    def _tell(self) -> None:
        if self._labels:
            log.info("read %s from %s", counted(len(self), "key"), self.path)
        else:
            log.warning("the key file %s allows nobody", self.path)
