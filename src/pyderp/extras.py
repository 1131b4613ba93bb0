"""Libraries that come only with an extra of this package: `pip install 'pyderp[relay]'`."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from pyderp.errors import MissingExtra

__all__ = ["install_line", "needs"]


def install_line(extra: str) -> str:
    """Returns the command that installs an extra."""
    return f"pip install 'pyderp[{extra}]'"


@contextmanager
def needs(extra: str, what: str) -> Iterator[None]:
    """Turn a failed import inside the block into an error that says what to install.

    Args:
        extra: name in `pyproject.toml` of the extra that brings the libraries.
        what: the feature that needs them, a plural, for the error.

    Raises:
        MissingExtra: one of the libraries is not installed.
    """
    try:
        yield
    except ModuleNotFoundError as e:
        library = (e.name or "").partition(".")[0]
        if library in ("", "pyderp"):  # a mistake in this package, which no install fixes
            raise
        text = f"{what} need the package {library}, which is not installed: {install_line(extra)}"
        raise MissingExtra(text, extra=extra) from e
