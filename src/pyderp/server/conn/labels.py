"""The labels that the operator gave to keys, for log lines and pages."""

from __future__ import annotations

from typing import Protocol

from pyderp.keys import NodePublic

__all__ = ["Labels", "label_of"]


class Labels(Protocol):
    """A file of the operator that may have a label for a key."""

    def label(self, key: NodePublic) -> str:
        """Return the label of a key; empty if there is none."""


def label_of(key: NodePublic, *sources: Labels | None) -> str:
    """Return the first label that a source has for a key; empty if none has one."""
    labels = (source.label(key) for source in sources if source is not None)
    return next(filter(None, labels), "")
