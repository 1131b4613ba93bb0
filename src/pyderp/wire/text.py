"""Text of a peer, for an error or a line of a log."""

from __future__ import annotations

__all__ = ["printable"]


def printable(text: str) -> str:
    r"""The text, with `\n`, `\x1b`, `\u202e` and such for whatever is not printed as itself.

    So it stays in its line, and tells a terminal nothing.
    """
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else _escaped(c) for c in text)


def _escaped(character: str) -> str:
    return character.encode("unicode_escape").decode("ascii")
