"""Text of a peer, for an error or a line of a log."""

from __future__ import annotations

__all__ = ["printable"]


def printable(text: str, longest: int | None = None) -> str:
    r"""The text, with `\n`, `\x1b`, `\u202e` and such for whatever is not printed as itself.

    So it stays in its line, and tells a terminal nothing.

    Args:
        text: what a stranger said.
        longest: characters of the outcome; what has more is cut, and ends in `…`.
    """
    if longest is not None:
        text = text[: longest + 1]
    if not text.isprintable():
        text = "".join(c if c.isprintable() else _escaped(c) for c in text)
    if longest is not None and len(text) > longest:
        return text[: longest - 1] + "…"
    return text


def _escaped(character: str) -> str:
    return character.encode("unicode_escape").decode("ascii")
