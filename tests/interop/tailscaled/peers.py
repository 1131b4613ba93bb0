"""Programs that this test needs, and what happens when one is missing.

A missing peer skips the test and names itself. Where peers are required (CI), the environment
variable ``PYDERP_REQUIRE_PEERS=1`` turns that skip into a failure.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path
from typing import NoReturn

import pytest

REPOSITORY = Path(__file__).resolve().parents[3]


def missing(what: str, remedy: str) -> NoReturn:
    """Skip the test as ``what`` is missing, or fail it where peers are required."""
    reason = f"{what} is missing: {remedy}"
    if os.environ.get("PYDERP_REQUIRE_PEERS") == "1":
        pytest.fail(reason)
    pytest.skip(reason)


def need(name: str) -> Path:
    """Return the program ``name``, from ``.peers/bin`` or else from ``PATH``."""
    built = REPOSITORY / ".peers" / "bin" / name
    if built.is_file() and os.access(built, os.X_OK):
        return built
    if found := shutil.which(name):
        return Path(found)
    missing(f"peer {name}", "run `make peers`")


def need_namespaces() -> None:
    """Require root and an ``ip netns`` that works here (it does not in every container)."""
    for program, package in {"ip": "iproute2", "ss": "iproute2", "setpriv": "util-linux"}.items():
        if shutil.which(program) is None:
            missing(f"program {program}", f"install the package {package}")
    if os.geteuid() != 0:
        missing("permission for `ip netns add`", "run as root")
    probe = f"pyderp-{os.getpid()}-probe"
    added = subprocess.run(["ip", "netns", "add", probe], capture_output=True, text=True)
    if added.returncode != 0:
        missing("working `ip netns`", added.stderr.strip())
    subprocess.run(["ip", "netns", "del", probe], check=True)
