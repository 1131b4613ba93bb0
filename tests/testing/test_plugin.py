"""The plugin in a pytest of its own, as users run it."""

from __future__ import annotations

import subprocess
import sys
from importlib.metadata import entry_points
from pathlib import Path

from scripts import check_docs

TESTS = """
import asyncio
import socket

import pytest


def test_without_asyncio(derp_relay):
    with socket.create_connection(derp_relay.address) as sock:
        sock.sendall(b"GET /derp/probe HTTP/1.1\\r\\nHost: r\\r\\nConnection: close\\r\\n\\r\\n")
        assert sock.recv(15) == b"HTTP/1.1 200 OK"
    assert derp_relay.counters.connections == 1


def test_with_asyncio(derp_relay):
    async def scenario():
        derp_relay.http_status(503)
        reader, writer = await asyncio.open_connection(*derp_relay.address)
        writer.write(b"GET /derp HTTP/1.1\\r\\nHost: r\\r\\nUpgrade: DERP\\r\\n\\r\\n")
        assert (await reader.read()).startswith(b"HTTP/1.1 503 ")
        writer.close()
        await writer.wait_closed()

    asyncio.run(scenario())


made = []


@pytest.mark.derp_relay(tls=True, seed=5)
@pytest.mark.parametrize("_", range(2))
def test_with_arguments(derp_relay, _):
    assert derp_relay.url.startswith("https://127.0.0.1:")
    made.append(derp_relay.junk())
    assert made == [made[0]] * len(made)


def test_clients(derp_relay, derp_clients):
    a, b = derp_clients
    a.send(b.self_public_key, b"hello")
    assert b.recv(timeout=10).data == b"hello"
    derp_relay.cut()
    assert derp_relay.counters.cut == 2


@pytest.mark.derp_relay(tls=True)
def test_clients_with_tls(derp_relay, derp_clients):
    a, b = derp_clients
    b.send(a.self_public_key, b"hello")
    assert a.recv(timeout=10).data == b"hello"
    assert a.tls_state is not None


@pytest.mark.derp_relay(tls=True)
def test_a_program_that_takes_a_url(derp_relay):
    import urllib.request

    url = derp_relay.url.replace("127.0.0.1", "localhost") + "/probe"
    with urllib.request.urlopen(url, context=derp_relay.ssl_context()) as answer:
        assert answer.status == 200
    assert derp_relay.ca_file.read_text().startswith("-----BEGIN CERTIFICATE-----")


def test_each_has_its_own(derp_relay):
    assert derp_relay.counters.connections == 0
    assert derp_relay.url.startswith("http://127.0.0.1:")
"""


def run_pytest(folder: Path, *args: str) -> str:
    """Run pytest as a user would, in a folder without any settings; returns its output."""
    installed = any(each.name == "pyderp" for each in entry_points(group="pytest11"))
    plugin = () if installed else ("-p", "pyderp.testing.plugin")
    done = subprocess.run(
        [sys.executable, "-W", "error", "-m", "pytest", "-p", "no:cacheprovider", *plugin, *args],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=50,
        check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_each_test_has_its_own_relay(tmp_path: Path) -> None:
    """With and without asyncio, with the arguments of the marker."""
    (tmp_path / "test_it.py").write_text(TESTS)
    out = run_pytest(tmp_path, "--strict-markers", "-q", "-W", "error")
    assert "8 passed" in out


def test_the_examples_in_the_documentation_pass(tmp_path: Path) -> None:
    """Unchanged."""
    pages = [check_docs.ROOT / "docs" / name for name in ("howto/in-tests.md", "index.md")]
    blocks = [block for page in pages for block in check_docs.blocks(page)]
    examples = [block.text for block in blocks if "(derp_relay" in block.text]
    for number, text in enumerate(examples):
        (tmp_path / f"test_{number}.py").write_text(text)
    assert "6 passed" in run_pytest(tmp_path, "-q", "-W", "error")


def test_fixture_and_marker_are_in_the_lists_of_pytest(tmp_path: Path) -> None:
    assert "derp_relay -- " in run_pytest(tmp_path, "--fixtures").replace(" [plugin]", "")
    assert "@pytest.mark.derp_relay(config=None, *, seed=0, tls=False)" in run_pytest(
        tmp_path, "--markers"
    )


def test_loading_the_plugin_imports_little() -> None:
    """Neither the relay nor the client nor the faults."""
    code = (
        "import sys, pyderp; before = set(sys.modules); import pyderp.testing.plugin;"
        "print(sorted(n for n in set(sys.modules) - before if n.startswith('pyderp')))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=50, check=True
    )
    assert done.stdout.strip() == "['pyderp.testing', 'pyderp.testing.plugin']"
