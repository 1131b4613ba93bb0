"""The package as users install it: built, installed elsewhere, and run from there."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps"]
    command += ["--no-build-isolation", "--disable-pip-version-check", "-w", str(out), str(ROOT)]
    subprocess.run(command, check=True)
    (path,) = out.glob("pyderp-*.whl")
    return path


@pytest.mark.slow
def test_the_wheel_holds_every_module_the_type_marker_and_the_roots(wheel: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    source = ROOT / "src"
    wanted = {str(p.relative_to(source)) for p in (source / "pyderp").rglob("*.py")}
    assert wanted | {"pyderp/py.typed", "pyderp/net/letsencrypt.pem"} <= names
    assert not [name for name in names if name.startswith(("tests/", "fuzz/", "bench/"))]


@pytest.mark.slow
def test_an_installed_relay_starts_listens_and_stops(wheel: Path, tmp_path: Path) -> None:
    target = tmp_path / "site"
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index"]
    command += ["--disable-pip-version-check", "--target", str(target), str(wheel)]
    subprocess.run(command, check=True)
    environment = os.environ | {"PYTHONPATH": str(target)}
    relay = subprocess.Popen(
        [str(target / "bin" / "pyderp"), "relay", "--dev", "-a", "127.0.0.1:0", "--drain=0"],
        cwd=tmp_path,
        env=environment,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert relay.stderr is not None
        log = ""
        while "listening on" not in log:
            line = relay.stderr.readline()
            assert line, log
            log += line
        assert re.search(r"listening on 127\.0\.0\.1:\d+", log)
        relay.send_signal(signal.SIGTERM)
        assert relay.wait(timeout=20) == 0
    finally:
        relay.kill()
        relay.communicate()


def pinned(name: str) -> set[str]:
    """The packages that a requirements file pins."""
    return set(re.findall(r"^([\w.-]+)==", (ROOT / name).read_text(), re.MULTILINE))


def test_build_tools_are_not_needed_to_run() -> None:
    build = pinned("requirements-build.txt")
    assert {"hatchling", "editables"} <= build
    assert not build & pinned("requirements.txt")


@pytest.mark.parametrize("name", ["requirements.txt", "requirements-build.txt"])
def test_every_requirement_is_pinned_with_its_hashes(name: str) -> None:
    blocks = re.split(r"^(?=\S)", (ROOT / name).read_text(), flags=re.MULTILINE)[1:]
    assert blocks
    for block in blocks:
        assert re.match(r"[\w.-]+==\S+ .*\\\n(    --hash=sha256:[0-9a-f]{64}( \\)?\n)+\Z", block), (
            block
        )
