"""Text that a peer chose: what its name may be, and how it is shown in errors and logs."""

from __future__ import annotations

import re
from typing import Final

__all__ = ["LOG_FIELDS", "MAX_APP_NAME_LEN", "invalid_app_name", "is_app_name", "printable"]

LOG_FIELDS: Final = "pyderp_fields"
"""Attribute of a log record: a dict of what a JSON log has beside the text."""
MAX_APP_NAME_LEN: Final = 32
"""Bytes of a client's AppName."""
_APP_NAME: Final = re.compile(rf"[ -~]{{0,{MAX_APP_NAME_LEN}}}")


def is_app_name(name: str) -> bool:
    """Whether a client may give this as its AppName: printable ASCII, at most 32; may be empty."""
    return _APP_NAME.fullmatch(name) is not None


def invalid_app_name(name: str) -> str:
    """What an error says of a name that breaks the rule."""
    return f'invalid AppName "{printable(name, 40)}"'


def printable(text: str, longest: int | None = None) -> str:
    r"""The text, with `\n`, `\x1b`, `\u202e` and such for whatever is not printed as itself.

    So it stays in its line, and tells a terminal nothing.

    Args:
        text: what a peer said.
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
