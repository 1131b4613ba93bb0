"""The commands of the page on backups save a relay's identity, and restore it."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

from tests.cli.process import running
from tests.interop.peers import REPOSITORY

GUIDE = (REPOSITORY / "docs" / "howto" / "backup.md").read_text()


def command(start: str, root: Path, archive: Path) -> None:
    """Run a command of the page with this folder as the root of the file system."""
    (line,) = re.findall(rf"^{start} .*$", GUIDE, re.M)
    changed = line.replace("pyderp-backup.tar.gz", str(archive)).replace("-C /", f"-C {root}")
    subprocess.run(changed.split(), check=True, timeout=50)


def identity(root: Path) -> tuple[str, str]:
    """Start a relay; returns its key and the pin of its self-signed certificate."""
    settings = root / "etc" / "pyderp" / "relay.toml"
    state = str(root / "var" / "lib" / "pyderp")
    flags = ("-a", "127.0.0.1:0", "--http-port=-1", "--no-stun", "--tls")
    with running(f"--config-file={settings}", *flags, STATE_DIRECTORY=state) as relay:
        key = relay.wait_for(r"relay key (nodekey:\w+)")[1]
        pin = relay.wait_for(r"sha256-raw:[0-9a-f]{64}")[0]
        return key, pin


@pytest.mark.parametrize("was_there", [False, True], ids=["new", "used"])
def test_a_relay_comes_back_as_it_was(tmp_path: Path, was_there: bool) -> None:
    """Key, certificate and settings; on a new machine, or on one whose service ran before, so that
    the state folder is a link, as under DynamicUser."""
    old, new = tmp_path / "old", tmp_path / "new"
    for root in (old, new):
        (root / "var" / "lib" / "private" / "pyderp").mkdir(parents=True)
        if root == old or was_there:
            (root / "var" / "lib" / "pyderp").symlink_to("private/pyderp")
    (old / "etc" / "pyderp").mkdir(parents=True)
    (old / "etc" / "pyderp" / "relay.toml").write_text('hostname = "127.0.0.1"\n')
    known = identity(old)

    archive = tmp_path / "backup.tar.gz"
    command("tar -czf", old, archive)
    command("tar -xzf", new, archive)
    assert (new / "var" / "lib" / "pyderp").is_symlink() == was_there
    assert identity(new) == known
    key = new / "var" / "lib" / "pyderp" / "relay.key"
    assert key.stat().st_mode & 0o777 == 0o600
