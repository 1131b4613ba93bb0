"""A serving relay has imported only what its settings need.

Each further module costs memory for as long as the relay runs, and time at its start.
"""

from __future__ import annotations

import re
import signal
import ssl
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from http.client import HTTPConnection, HTTPSConnection
from pathlib import Path

import pytest

from pyderp import NodePrivate, ServerInfo, blocking
from tests.cli.process import Process, environment

RELAY = """
import gc, signal, sys

def tell(*_):
    print(f"collects {gc.isenabled()}", *sys.modules, "end", sep="\\n", flush=True)

signal.signal(signal.SIGUSR1, tell)
from pyderp.cli.main import main
main()
"""

OURS_FOR_LESS = {
    "pyderp.admission.gate",
    "pyderp.blocking",
    "pyderp.certs.acme",
    "pyderp.certs.leaf",
    "pyderp.certs.manual",
    "pyderp.cli.advice",
    "pyderp.cli.app",
    "pyderp.cli.relay.check",
    "pyderp.cli.relay.options",
    "pyderp.cli.relay.tomlfile",
    "pyderp.client",
    "pyderp.net.tls",
    "pyderp.server.conn.limits",
    "pyderp.server.conn.websocket",
    "pyderp.server.mesh",
    "pyderp.server.site.pages",
    "pyderp.wire.websocket",
}
"""Modules that a relay by `--dev` does not need."""
PLAIN = {"_cffi_backend", "h11", "nacl", "pyderp", "uvloop"}
"""Packages that such a relay needs, beside Python's own."""


class Relay(Process):
    """A relay that lists its imported modules."""

    def __init__(self, *words: object) -> None:
        self.popen = subprocess.Popen(
            [sys.executable, "-c", RELAY, *map(str, words)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=environment(),
        )
        self.text = ""

    def modules(self) -> set[str]:
        """All modules imported so far; the cyclic collector is at work."""
        self.popen.send_signal(signal.SIGUSR1)
        assert self.popen.stdout is not None
        assert self.popen.stdout.readline() == b"collects True\n"
        lines = iter(self.popen.stdout.readline, b"")
        found = {line.decode().strip() for line in iter(lambda: next(lines), b"end\n")}
        return {name for name in found if not name.startswith("__")}


@contextmanager
def running(*words: object) -> Iterator[tuple[Relay, int]]:
    relay = Relay(*words)
    try:
        port = int(relay.wait_for(r"INFO listening on 127\.0\.0\.1:(\d+)")[1])
        relay.wait_for("admits every client")
        yield relay, port
    finally:
        relay.popen.kill()
        relay.popen.communicate()


def packages(modules: set[str]) -> set[str]:
    """The packages that are not Python's own."""
    tops = {name.partition(".")[0] for name in modules} - set(sys.stdlib_module_names)
    # Modules that extension modules register, and those that set up an environment.
    beside = re.compile("_sodium|_openssl|_?cython_.*|_distutils_hack|sitecustomize|usercustomize")
    return {name for name in tops if not beside.fullmatch(name)}


@pytest.mark.parametrize(
    "words",
    [
        ["relay", "--dev", "--address=127.0.0.1:0"],
        ["relay", "--address", "127.0.0.1:0", "-c", "KEY", "--no-stun"],
        ["derper", "-a=127.0.0.1:0", "-c=KEY", "-stun=false"],
    ],
)
def test_a_plain_relay_has_imported_what_it_needs(words: list[str], tmp_path: Path) -> None:
    NodePrivate.load(tmp_path / "key", create=True)
    words = [word.replace("KEY", f"{tmp_path}/key") for word in words]
    with running(*words, "--native=off") as (relay, port):
        with blocking.Client.for_url(f"http://127.0.0.1:{port}/derp") as client:
            assert isinstance(client.recv(timeout=20), ServerInfo)
        modules = relay.modules()
    assert packages(modules) == PLAIN
    assert not modules & OURS_FOR_LESS


def test_modules_needed_later_are_imported_later() -> None:
    with running("relay", "--dev", "--address=127.0.0.1:0", "--native=off") as (relay, port):
        web = HTTPConnection("127.0.0.1", port, timeout=20)
        web.request("GET", "/debug/")
        assert b"pyderp debug" in web.getresponse().read()
        web.close()
        assert "pyderp.server.site.pages" in relay.modules()


def test_a_relay_with_its_own_certificate_imports_no_acme(tmp_path: Path) -> None:
    flags = ["--hostname=127.0.0.1", "--certmode=manual", f"--certdir={tmp_path}"]
    flags += ["--http-port=-1", f"--key-file={tmp_path}/key", "--native=off", "--no-stun"]
    for _ in range(2):  # the first time, key and certificate are made
        with running("relay", "--address=127.0.0.1:0", *flags) as (relay, port):
            trusting = ssl.create_default_context()
            trusting.check_hostname = False
            trusting.verify_mode = ssl.CERT_NONE
            web = HTTPSConnection("127.0.0.1", port, timeout=20, context=trusting)
            web.request("GET", "/derp/probe")
            assert web.getresponse().status == 200
            web.close()
            modules = relay.modules()
    assert packages(modules) == PLAIN | {"cryptography"}
    unused = OURS_FOR_LESS - {"pyderp.certs.leaf", "pyderp.certs.manual"}
    assert not modules & unused
