"""Runs one target in its own process: `python -m fuzz.child TARGET [libFuzzer's arguments]`.

`fuzz/run.py` starts it. With `--replay FILE …` it needs no atheris and plays those inputs only.
"""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

from fuzz.targets import load

__all__ = ["main"]

_INSTRUMENTED = ["pyderp", "h11", "websockets", "fuzz.targets"]


def main(argv: list[str]) -> None:
    """Fuzz or replay; a finding ends the process with its traceback."""
    name, *rest = argv[1:]
    if rest[:1] == ["--replay"]:
        one_input = load(name).one_input
        for path in rest[1:]:
            one_input(Path(path).read_bytes())
            print(f"{path}: nothing wrong")
        return
    # By name, since atheris does not exist for every Python and has no types.
    atheris = importlib.import_module("atheris")
    with atheris.instrument_imports(include=_INSTRUMENTED):
        target = load(name)
    atheris.Setup([argv[0], *rest], target.one_input)
    atheris.Fuzz()


if __name__ == "__main__":
    main(sys.argv)
