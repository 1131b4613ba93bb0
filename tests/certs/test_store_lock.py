from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from pyderp.certs.store import order_lock

HOLD = """
import sys
from pathlib import Path
from pyderp.certs.store import order_lock
with order_lock(Path(sys.argv[1])) as free:
    print(free, flush=True)
    sys.stdin.read()
"""


def test_the_lock_is_held_by_one_at_a_time(tmp_path: Path) -> None:
    with order_lock(tmp_path) as first, order_lock(tmp_path) as second:
        assert (first, second) == (True, False)
    with order_lock(tmp_path) as again:
        assert again
    assert list(tmp_path.iterdir()) == []


def test_a_process_that_dies_releases_the_lock(tmp_path: Path) -> None:
    command = [sys.executable, "-c", HOLD, str(tmp_path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == b"True\n"
        with order_lock(tmp_path) as free:
            assert not free
        other.kill()
        other.wait()
        with order_lock(tmp_path) as free:
            assert free


def test_without_the_folder_the_lock_is_free(tmp_path: Path) -> None:
    with order_lock(tmp_path / "missing") as free:
        assert free
