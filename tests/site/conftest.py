"""The site, built once for all processes of a run, and a browser."""

from __future__ import annotations

import fcntl
import functools
import http.server
import importlib.util
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from scripts import check_docs

from tests.interop.peers import need

from .browser import Browser, running


@pytest.fixture(scope="session")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the built site. What Sphinx warns of fails the test."""
    if importlib.util.find_spec("sphinx") is None:
        reason = "Sphinx is missing: run `make site`"
        if os.environ.get("PYDERP_REQUIRE_PEERS") == "1":
            pytest.fail(reason)
        pytest.skip(reason)
    folder = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        folder = folder.parent  # that of all workers
    result = folder / "site.log"
    with (folder / "site.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not result.exists():
            result.write_text(build(folder / "site"))
    if warnings := result.read_text():
        pytest.fail(warnings, pytrace=False)
    return folder / "site"


def build(folder: Path) -> str:
    """Build the site as `make site` does; returns what Sphinx warned of."""
    command = [sys.executable, "-m", "sphinx", "-q", "-E", "-W", "--keep-going"]
    command += ["-d", f"{folder}.cache", "-c", "docs", ".", str(folder)]
    built = subprocess.run(command, cwd=check_docs.ROOT, capture_output=True, text=True)
    return built.stderr or ("" if built.returncode == 0 else f"exit status {built.returncode}")


class _Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture(scope="module")
def url(site: Path) -> Iterator[str]:
    """The address at which the site is served, on 127.0.0.1."""
    handler = functools.partial(_Quiet, directory=str(site))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()


# For a module only: the thread of its websocket would disturb tests of what connections leave.
@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    """A headless Chromium with one tab."""
    with running(need("chromium"), tmp_path_factory.mktemp("chromium")) as tab:
        yield tab
