"""A file of the node keys that are refused, whatever the other sources say."""

from __future__ import annotations

import logging
from pathlib import Path

from pyderp.admission.allowlist import KeyList, read_allow_list
from pyderp.admission.verdict import Verdict
from pyderp.keys import NodePublic
from pyderp.text import counted

__all__ = ["DenyList", "read_deny_list"]

log = logging.getLogger("pyderp.admission")


def read_deny_list(path: Path) -> dict[NodePublic, str]:
    """Read a file of denied keys, which has the format of `parse_allow_list`.

    Returns:
        the label of each key, such as why it is denied; empty if it has none.

    Raises:
        ConfigError: it cannot be read or is malformed.
    """
    return read_allow_list(path, DenyList.what)


class DenyList(KeyList):
    """The denied keys of a file. Before `load` no key is denied.

    Of a file that still changes, added keys are denied at once. A key that is missing in it may
    only be missing because the file is half written, so it stays denied until the file settles.
    """

    what = "deny file"
    _key = "denied key"
    _adds_early = True

    def verdict(self, key: NodePublic) -> Verdict | None:
        """Return why the key is denied; `None` if it is not."""
        label = self._labels.get(key)
        if label is None:
            return None
        return Verdict(False, f"peer {key} denied (in the deny file{label and ': '}{label})")

    def _log_size(self) -> None:
        are = "is" if len(self) == 1 else "are"
        log.info("%s of %s %s denied", counted(len(self), "key"), self.path, are)
