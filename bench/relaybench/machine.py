"""Describes the machine and the versions of programs, without paths or names."""

from __future__ import annotations

import json
import os
import platform
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from .peers import REPO

if TYPE_CHECKING:
    from collections.abc import Sequence

_PROBE = """
import importlib.metadata as m, json, platform, ssl
def version(name):
    try: return m.version(name)
    except m.PackageNotFoundError: return None
print(json.dumps({
    "Python": platform.python_implementation() + " " + platform.python_version(),
    "pyderp": version("pyderp"), "uvloop": version("uvloop"),
    "OpenSSL": ssl.OPENSSL_VERSION,
}))
"""


def machine() -> dict[str, str]:
    """Return the hardware, the kernel and the load."""
    cpu = re.search(r"^model name\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    memory = re.search(r"^MemTotal:\s*(\d+)", Path("/proc/meminfo").read_text())
    return {
        "CPU": cpu[1] if cpu else platform.machine(),
        "cores": str(os.cpu_count()),
        "kernel": f"{platform.system()} {platform.release()}",
        "memory": f"{int(memory[1]) / 2**20:.1f} GiB" if memory else "unknown",
        "load average at the start": f"{os.getloadavg()[0]:.2f}",
    }


def one_line() -> str:
    """Return the machine and the versions of this Python, as a sentence."""
    facts = machine()
    versions = python_versions(sys.executable)
    return (
        f"{versions['Python']}, uvloop {versions['uvloop']}, {versions['OpenSSL']}, "
        f"{facts['cores']} cores ({facts['CPU']})."
    )


def python_versions(python: str) -> dict[str, str]:
    """Return the versions in a Python on which pyderp's speed depends."""
    probed = json.loads(_output([python, "-c", _PROBE]) or "{}")
    out = {k: str(v) for k, v in probed.items() if v}
    revision = _output(["git", "rev-parse", "--short=12", "HEAD"])
    if revision and _output(["git", "status", "--porcelain", "--", "src"]):
        revision += ", with uncommitted changes"
    out["pyderp"] = f"{out.get('pyderp', 'not installed')} (git {revision or 'no commit'})"
    out.setdefault("uvloop", "none")
    return out


def module_version(program: Path) -> str:
    """Return the versions of Tailscale's module and of Go that a program was built with."""
    if not shutil.which("go"):
        return "unknown"
    info = _output(["go", "version", "-m", str(program)])
    module = re.search(r"\b(?:mod|dep)\s+tailscale\.com\s+(v\S+)", info)
    go = re.search(r":\s*(go\S+)", info)
    return " ".join([module[1] if module else "unknown", *([f"({go[1]})"] if go else [])])


def derper_version(derper: Path) -> str:
    """Return the version of a derper, and of the Go that built it."""
    built = module_version(derper)
    if not built.startswith("unknown"):
        return built
    return program_version(derper, "-version")


def program_version(program: Path, flag: str = "--version") -> str:
    """Return the first line that a program prints with the flag; "unknown" if there is none."""
    version = _output([str(program), flag]).splitlines()
    return version[0].strip() if version else "unknown"


def _output(argv: Sequence[str]) -> str:
    try:
        done = subprocess.run(
            argv, cwd=REPO, capture_output=True, text=True, timeout=60, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""
