"""The build backend: maturin, after the licences of all that goes into the wheel were gathered.

Also a script, for a look at them: `python fast/backend.py` writes `fast/THIRD-PARTY.txt`.
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
"""What files with a licence start with, in lower case."""
RULE: Final = "=" * 78

Settings = Mapping[str, Any] | None


def main() -> None:
    """Write the notices."""
    NOTICES.write_text("\n\n".join(notices(packages())) + "\n", encoding="utf-8")


def packages() -> list[dict[str, Any]]:
    """What Cargo says about the crates that are compiled into the module, by name."""
    manifest = ["--manifest-path", str(HERE / "Cargo.toml")]
    # Only the tree knows which optional crates are in use; only the metadata, where they are.
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
    """The text, in parts.

    Raises:
        SystemExit: a crate ships no licence.
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


# What pip calls (PEP 517). The backend is there only while a wheel is built.


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
    """Nothing beside maturin itself (PEP 517)."""
    return []


get_requires_for_build_sdist = get_requires_for_build_wheel


if __name__ == "__main__":
    main()
