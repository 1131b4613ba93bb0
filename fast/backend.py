"""The build backend: collects the licences of all crates in the wheel, then calls maturin.

As a script, `python fast/backend.py`, it only writes the licences to `fast/THIRD-PARTY.txt`.
"""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

HERE: Final = Path(__file__).resolve().parent
NOTICES: Final = HERE / "THIRD-PARTY.txt"
LICENCE_NAMES: Final = ("licen", "copying", "copyright", "notice", "unlicense")
"""Prefixes of the names of licence files, in lower case."""
RULE: Final = "=" * 78

Settings = Mapping[str, Any] | None


def main() -> None:
    """Write the licences to `THIRD-PARTY.txt`."""
    NOTICES.write_text("\n\n".join(notices(packages())) + "\n", encoding="utf-8")


def packages() -> list[dict[str, Any]]:
    """Return Cargo's metadata of the crates that are compiled into the module, sorted by name."""
    manifest = ["--manifest-path", str(HERE / "Cargo.toml")]
    # `cargo tree` knows which optional crates are in use, `cargo metadata` where their files are.
    tree = _output("cargo", "tree", *manifest, "--edges=normal,no-proc-macro", "--prefix=none")
    linked = {tuple(line.split()[:2]) for line in tree.splitlines()}
    metadata = json.loads(_output("cargo", "metadata", "--format-version=1", *manifest))
    found = [
        package
        for package in metadata["packages"]
        if (package["name"], f"v{package['version']}") in linked
        and package["id"] != metadata["resolve"]["root"]
    ]
    return sorted(found, key=lambda package: (package["name"], package["version"]))


def notices(found: list[dict[str, Any]]) -> Iterator[str]:
    """Yield the text of `THIRD-PARTY.txt` in parts.

    Raises:
        SystemExit: a crate has no file with its licence.
    """
    yield "The module pyderp_fast has code of these crates in it. Their licences follow."
    yield "\n".join(f"{p['name']} {p['version']}: {p['license']}" for p in found)
    for package in found:
        folder = Path(package["manifest_path"]).parent
        files = sorted(
            path
            for path in folder.iterdir()
            if path.is_file() and path.name.lower().startswith(LICENCE_NAMES)
        )
        if not files:
            raise SystemExit(f"{package['name']} {package['version']} ships no licence")
        for path in files:
            yield f"{RULE}\n{package['name']} {package['version']}: {path.name}\n{RULE}"
            yield path.read_text(encoding="utf-8", errors="replace").strip()


def _output(*command: str) -> str:
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout


# The functions that pip calls (PEP 517). maturin is installed only while pip builds.


def build_wheel(
    wheel_directory: str, config_settings: Settings = None, metadata_directory: str | None = None
) -> str:
    """Build a wheel (PEP 517)."""
    import maturin

    main()
    name: str = maturin.build_wheel(wheel_directory, config_settings, metadata_directory)
    return name


def build_sdist(sdist_directory: str, config_settings: Settings = None) -> str:
    """Pack the sources (PEP 517)."""
    import maturin

    main()
    name: str = maturin.build_sdist(sdist_directory, config_settings)
    return name


def get_requires_for_build_wheel(config_settings: Settings = None) -> list[str]:
    """Return an empty list: nothing but maturin is needed (PEP 517)."""
    return []


get_requires_for_build_sdist = get_requires_for_build_wheel


if __name__ == "__main__":
    main()
