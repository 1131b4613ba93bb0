"""What the operator calls a client, in log lines and on pages alike."""

from __future__ import annotations

from typing import Protocol

from pyderp.keys import NodePublic

__all__ = ["Labels", "label_of"]


class Labels(Protocol):
    """A file that may have a label for a key."""

    def label(self, key: NodePublic) -> str:
        """What the operator calls a key; empty for nothing."""


def label_of(key: NodePublic, *sources: Labels | None) -> str:
    """The first label that there is for a key; empty: none of the sources has one."""
    labels = (source.label(key) for source in sources if source is not None)
    return next(filter(None, labels), "")
