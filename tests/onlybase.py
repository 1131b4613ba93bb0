"""Python with pyderp's own dependencies only, as after `pip install pyderp` without an extra.

Run as a program it takes names of packages that may be imported as well, with commas between,
then a module to run and its arguments: `python -m tests.onlybase pytest,pluggy pytest -x`.
"""

from __future__ import annotations

import runpy
import sys
from collections.abc import Collection
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from typing import Any, Final

__all__ = ["BASE", "block_others"]

BASE: Final = {
    "cryptography": ("cryptography", "_cffi_backend", "cffi"),
    "h11": ("h11",),
    "pynacl": ("nacl", "_sodium"),
    "python-socks": ("python_socks",),
    "websockets": ("websockets",),
}
"""The packages that `pyproject.toml` lists → the modules of these and of their dependencies."""


class _Known(MetaPathFinder):
    """A finder that finds packages of some names only."""

    def __init__(self, finder: MetaPathFinder, known: Collection[str]) -> None:
        self._finder = finder
        self._known = known

    def find_spec(self, name: str, *args: Any) -> ModuleSpec | None:
        """Find a module (`importlib`)."""
        known = name.partition(".")[0] in self._known
        return self._finder.find_spec(name, *args) if known else None


def block_others(*beside: str) -> None:
    """Make the import of any other package fail from now on.

    Args:
        beside: packages that can be imported, beside pyderp's own dependencies.
    """
    known = {"pyderp", "tests", *beside, *sys.stdlib_module_names}
    known.update(name for names in BASE.values() for name in names)
    finders: list[Any] = sys.meta_path
    sys.meta_path[:] = [_Known(finder, known) for finder in finders]


if __name__ == "__main__":
    block_others(*filter(None, sys.argv[1].split(",")))
    del sys.argv[:2]
    runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
