"""Libraries that come only with an extra of this package: `pip install 'pyderp[relay]'`."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from pyderp.errors import MissingExtra

__all__ = ["install_line", "needs"]


def install_line(extra: str) -> str:
    """The command that installs an extra."""
    return f"pip install 'pyderp[{extra}]'"


@contextmanager
def needs(extra: str, what: str) -> Iterator[None]:
    """The block imports what needs the libraries of an extra.

    Args:
        extra: its name in `pyproject.toml`.
        what: what needs them, a plural, for the error.

    Raises:
        MissingExtra: one of them is not installed.
    """
    try:
        yield
    except ModuleNotFoundError as e:
        library = (e.name or "").partition(".")[0]
        if library in ("", "pyderp"):
            raise
        text = f"{what} need the package {library}, which is not installed: {install_line(extra)}"
        raise MissingExtra(text, extra=extra) from e
