"""Write what the fragments in `changelog/` say into CHANGELOG.md, as the version in the making.

Fragments stay where they are; `towncrier build` moves them into CHANGELOG.md at a release. With
`--check` nothing is written: it fails if a fragment has a wrong name, is empty, or needs more than
one entry of a list.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final

import pyderp

__all__ = ["CHANGELOG", "draft", "fragments", "main", "problems", "spliced"]

ROOT: Final = Path(__file__).resolve().parents[1]
CHANGELOG: Final = ROOT / "CHANGELOG.md"
_NEXT: Final = re.compile(r"(?<=<!-- next -->\n).*?(?=<!-- released -->\n)", re.DOTALL)


def fragments(root: Path = ROOT) -> list[Path]:
    """Return all fragments below `root`, in the order of their paths."""
    return sorted(path for path in (root / "changelog").rglob("*.md") if path.name != "README.md")


def problems(paths: Sequence[Path]) -> Iterator[str]:
    """Yield what is wrong in the text of fragments, as `path: problem`."""
    for path in paths:
        text = path.read_text()
        if not text.strip():
            yield f"{path}: empty"
        elif re.search(r"^(#|[-*] |<)", text, re.MULTILINE):
            yield f"{path}: a fragment is one entry of a list: no headings, lists or HTML in it"


def draft(version: str, root: Path = ROOT) -> str:
    """Return the section of a version as `towncrier` makes it.

    Raises:
        ValueError: a fragment has a wrong kind or is in a wrong folder; the text names it.
    """
    command = [sys.executable, "-m", "towncrier", "build", "--draft", "--version", version]
    command += ["--date", "not released yet", "--dir", str(root)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise ValueError(done.stderr.strip() or done.stdout.strip())
    return done.stdout.strip() + "\n"


def spliced(changelog: str, section: str) -> str:
    """Return the text of CHANGELOG.md with another section of the version in the making."""
    between = f"\n{section}\n" if section else "\n"
    return _NEXT.sub(lambda _: between, changelog, count=1)


def main(args: Sequence[str] | None = None) -> int:
    """Write CHANGELOG.md, or check the fragments; return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else None)
    parser.add_argument("--check", action="store_true", help="check fragments, write nothing")
    options = parser.parse_args(args)
    paths = fragments()
    wrong = list(problems(paths))
    section = ""
    try:
        section = draft(pyderp.__version__) if paths else ""
    except ValueError as error:
        wrong.append(str(error))
    sys.stderr.writelines(f"{line}\n" for line in wrong)
    if not wrong and not options.check:
        CHANGELOG.write_text(spliced(CHANGELOG.read_text(), section))
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
