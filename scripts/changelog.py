"""Write what the fragments in `changelog/` say into CHANGELOG.md, under "Not released yet".

Fragments stay where they are; `towncrier build` moves them into CHANGELOG.md at a release. With
`--check` nothing is written: it fails if a file in `changelog/` has a wrong name, if a fragment is
empty or needs more than one entry of a list, or if CHANGELOG.md does not have what they say.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final

__all__ = ["CHANGELOG", "draft", "fragments", "main", "problems", "renewed", "spliced"]

ROOT: Final = Path(__file__).resolve().parents[1]
CHANGELOG: Final = ROOT / "CHANGELOG.md"
_NEXT: Final = re.compile(r"(?<=<!-- next -->\n).*?(?=<!-- released -->\n)", re.DOTALL)

_NOT_RELEASED: Final = "Not released yet"
"""Instead of a version. `changelog/template.md.jinja` writes no date beside it."""
_NO_FRAGMENTS: Final = ("README.md", "template.md.jinja", ".gitkeep")
_NOT_ONE_ENTRY: Final = re.compile(r"^\s*([-*+] |\d+[.)] |#|<)", re.MULTILINE)


def fragments(root: Path = ROOT) -> list[Path]:
    """Return all fragments below `root`, in the order of their paths."""
    return [path for path in _files(root) if path.suffix == ".md"]


def _files(root: Path) -> list[Path]:
    """Return the files in `changelog/` that must be fragments."""
    found = (path for path in (root / "changelog").rglob("*") if not path.is_dir())
    return sorted(path for path in found if path.name not in _NO_FRAGMENTS)


def problems(root: Path = ROOT) -> Iterator[str]:
    """Yield what is wrong in the names and texts of the files in `changelog/`, as `path: problem`.

    `towncrier` takes no notice of some wrong names, and of others its message says to change the
    settings.
    """
    settings = tomllib.loads((root / "pyproject.toml").read_text())["tool"]["towncrier"]
    kinds = [kind["directory"] for kind in settings["type"]]
    parts = [section["path"] for section in settings["section"]]
    name = re.compile(rf"[^.\s]+\.({'|'.join(kinds)})(\.\d+)?\.md")
    for path in _files(root):
        folder = path.parent.relative_to(root / "changelog").as_posix()
        if folder.removeprefix(".") not in parts:
            folders = ", ".join(f"changelog/{part}" for part in parts if part)
            yield f"{path}: fragments are in {folders} or changelog itself"
        if not name.fullmatch(path.name):
            yield f"{path}: want NAME.KIND.md or NAME.KIND.N.md, where KIND is {_either(kinds)}"
            continue
        text = path.read_text()
        if not text.strip():
            yield f"{path}: empty"
        elif _NOT_ONE_ENTRY.search(text):
            yield f"{path}: a fragment is one entry of a list: no headings, lists or HTML in it"


def _either(words: Sequence[str]) -> str:
    return f"{', '.join(words[:-1])} or {words[-1]}"


def draft(root: Path = ROOT) -> str:
    """Return the section that `towncrier` makes of the fragments; empty without fragments.

    Raises:
        ValueError: `towncrier` refused a fragment; the text is its message.
    """
    if not fragments(root):
        return ""
    command = [sys.executable, "-m", "towncrier", "build", "--draft", "--version", _NOT_RELEASED]
    done = subprocess.run(
        [*command, "--dir", str(root)], capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise ValueError(done.stderr.strip() or done.stdout.strip())
    return done.stdout.strip() + "\n"


def spliced(changelog: str, section: str) -> str:
    """Return the text of CHANGELOG.md with another section of what is not released."""
    between = f"\n{section}\n" if section else "\n"
    return _NEXT.sub(lambda _: between, changelog, count=1)


def renewed(root: Path = ROOT) -> str:
    """Return the text that CHANGELOG.md below `root` must have.

    Raises:
        ValueError: as for `draft`.
    """
    return spliced((root / CHANGELOG.name).read_text(), draft(root))


def main(args: Sequence[str] | None = None, root: Path = ROOT) -> int:
    """Write CHANGELOG.md, or check it and the fragments; return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else None)
    parser.add_argument(
        "--check", action="store_true", help="check fragments and CHANGELOG.md, write nothing"
    )
    options = parser.parse_args(args)
    file = root / CHANGELOG.name
    wrong = list(problems(root))
    if not wrong:
        try:
            text = renewed(root)
        except ValueError as error:
            wrong.append(str(error))
        else:
            if not options.check:
                file.write_text(text)
            elif text != file.read_text():
                wrong.append(f"{file}: not what the fragments say: run `make changelog`")
    sys.stderr.writelines(f"{line}\n" for line in wrong)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
