"""A file of the node keys that may not come in, whatever else says that they may."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path

from pyderp.admission.allowlist import read_allow_list
from pyderp.admission.verdict import Verdict
from pyderp.errors import ConfigError
from pyderp.keys import NodePublic
from pyderp.secretfiles import FileStamp, file_stamp
from pyderp.text import counted

__all__ = ["DenyList", "read_deny_list"]

log = logging.getLogger("pyderp.admission")


def read_deny_list(path: Path) -> dict[NodePublic, str]:
    """Read a file of denied keys, which is written as one of allowed keys is.

    Returns:
        the label of each key, such as why it is denied; empty for none.

    Raises:
        ConfigError: it cannot be read or is malformed.
    """
    return read_allow_list(path, "deny file")


class DenyList:
    """The keys of a file. Before the first `load` no key is denied.

    Args:
        path: the file.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.trouble = ""
        """Why the file as it is now is not used; empty: it is."""
        self._labels: Mapping[NodePublic, str] = {}
        self._read: FileStamp | None = None
        """What the file looked like when it was last taken over as a whole, or refused."""
        self._seen: FileStamp | None = None
        """What it looked like at the last look."""

    def __len__(self) -> int:
        return len(self._labels)

    def label(self, key: NodePublic) -> str:
        """What the file calls a key; empty for nothing."""
        return self._labels.get(key, "")

    def verdict(self, key: NodePublic) -> Verdict | None:
        """Why the key is denied; `None`: it is not."""
        label = self._labels.get(key)
        if label is None:
            return None
        return Verdict(False, f"peer {key} denied (in the deny file{label and ': '}{label})")

    def load(self) -> None:
        """Read the file for the first time.

        Raises:
            ConfigError: it cannot be read or is malformed.
        """
        self._read = self._seen = file_stamp(self.path)
        self._labels = read_deny_list(self.path)
        self._tell()

    def look(self) -> bool:
        """Read the file again if it changed. Call it every few seconds.

        Keys that were added are denied at the first look. The file may be half written then, so a
        key that is missing is let in again only if the file did not change since the last look.

        Returns:
            whether the list changed. If the file cannot be used the old one stays, which is logged
            once, and not while it still changes.
        """
        before, self._seen = self._seen, file_stamp(self.path)
        if self._seen == self._read:
            return False
        return self._take(whole=self._seen == before)

    def reload(self) -> bool:
        """Read the file now, and take it over as a whole; otherwise as `look`."""
        self._seen = file_stamp(self.path)
        return self._take(whole=True)

    def _take(self, *, whole: bool) -> bool:
        if whole:
            self._read = self._seen
        try:
            labels = read_deny_list(self.path)
        except ConfigError as e:
            if whole:
                log.error("denied keys not reloaded, the old list of %d stays: %s", len(self), e)
                keys = counted(len(self), "denied key")
                self.trouble = f"the old list of {keys} stays in use: {e}"
            return False
        self.trouble = ""
        if not whole:
            labels = {**self._labels, **labels}
        if labels == self._labels:
            return False
        self._labels = labels
        self._tell()
        return True

    def _tell(self) -> None:
        are = "is" if len(self) == 1 else "are"
        log.info("%s of %s %s denied", counted(len(self), "key"), self.path, are)
