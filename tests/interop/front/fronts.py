"""nginx, HAProxy and Caddy as subprocesses, with the settings that `contrib/` has."""

from __future__ import annotations

import os
import socket
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.interop.peers import REPOSITORY, need
from tests.interop.ports import free_port
from tests.server.certificates import write_pair

NGINX_STREAM = Path("/usr/lib/nginx/modules/ngx_stream_module.so")
_BOUND = 15.0
_POLL = 0.02
_ATTEMPTS = 3

Command = Callable[[Path, str, str], list[str]]
"""Makes a command line from a folder, the settings of the proxy and of a web site beside."""


@dataclass(frozen=True)
class Front:
    """A running proxy, with its own certificate for localhost."""

    port: int
    http_port: int
    ca: Path
    log: Path


@contextmanager
def front(
    snippet: str,
    relay: str,
    directory: Path,
    changes: Mapping[str, str] | None = None,
    site: str = "",
) -> Iterator[Front]:
    """Run the proxy that a file of `contrib/` is for.

    Ports, names and paths in it are replaced by those of the test, and nothing else is.

    Args:
        snippet: the file, as `nginx/end-tls.conf`.
        relay: where the relay listens, instead of 127.0.0.1:3340 or :8443.
        changes: further texts to replace; each must be in the file.
        site: settings of a web site in the same nginx, for its `http` section.
    """
    folder = directory / snippet.replace("/", "-")
    folder.mkdir()
    ca = _write_certificate(folder)
    log = folder / "front.log"
    for attempt in range(_ATTEMPTS):
        port, http_port, site_port = free_port(), free_port(), free_port()
        text = _settings(snippet, folder, port, http_port)
        beside = _ports(site, port, http_port)
        for old, new in {
            **(changes or {}),
            "127.0.0.1:3340": relay,
            "127.0.0.1:8443": relay,
        }.items():
            assert old in text or old.startswith("127.0.0.1:"), old
            text = text.replace(old, new)
        assert relay in text
        text, beside = (
            each.replace("127.0.0.1:8444", f"127.0.0.1:{site_port}") for each in (text, beside)
        )
        command = _COMMANDS[snippet.partition("/")[0]](folder, text, beside)
        with log.open("ab") as output:
            process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                cwd=folder,
                env={
                    **os.environ,
                    "HOME": str(folder),
                    "XDG_DATA_HOME": str(folder),
                    "XDG_CONFIG_HOME": str(folder),
                },
            )
        # None of them can pick a port, so a free one is guessed; another process may take it first.
        if _listens(process, port) or attempt == _ATTEMPTS - 1:
            break
        _stop(process)
    try:
        assert process.poll() is None, log.read_text()[-2000:]
        yield Front(port, http_port, ca, log)
        assert process.poll() is None, log.read_text()[-2000:]
    finally:
        _stop(process)


def _write_certificate(folder: Path) -> Path:
    write_pair(folder, "localhost")
    crt, key = folder / "localhost.crt", folder / "localhost.key"
    (folder / "localhost.pem").write_bytes(crt.read_bytes() + key.read_bytes())
    return crt


def _settings(snippet: str, folder: Path, port: int, http_port: int) -> str:
    text = (REPOSITORY / "contrib" / snippet).read_text()
    text = text.replace("/etc/derp", str(folder))
    if snippet.startswith("caddy"):
        # The file names ports itself; the other global options are removed.
        options = (
            f"{{\n\tadmin off\n\thttps_port {port}\n\thttp_port {http_port}\n"
            "\tdefault_bind 127.0.0.1 ::1\n}\n"
        )
        return options + text.replace("derp.example.com", "localhost")
    return _ports(text.replace("derp.example.com", "localhost"), port, http_port)


def _ports(text: str, port: int, http_port: int) -> str:
    """The same text with loopback addresses instead of all addresses, and with free ports."""
    for old, new in ((443, port), (80, http_port)):
        text = text.replace(f"[::]:{old}", f"[::1]:{new}")
        for kind in ("listen ", "bind :"):
            text = text.replace(f"{kind}{old}", f"{kind.rstrip(':')}127.0.0.1:{new}")
    return text


def _nginx(folder: Path, text: str, site: str) -> list[str]:
    program = str(need("nginx"))
    head = f"daemon off;\nmaster_process off;\npid {folder}/nginx.pid;\nerror_log stderr;\n"
    kinds = ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    paths = "".join(f"{kind}_temp_path {folder}/{kind};\n" for kind in kinds)
    beside = ""
    if "stream {" in text:
        if not NGINX_STREAM.exists():
            pytest.skip("nginx has no stream module: run `make peers`")
        head = f"load_module {NGINX_STREAM};\n{head}"
        beside, text = text, ""
    text = f"{beside}events {{}}\nhttp {{\naccess_log off;\n{paths}{text}{site}}}\n"
    path = folder / "nginx.conf"
    path.write_text(head + text)
    return [program, "-p", str(folder), "-e", "stderr", "-c", str(path)]


def _haproxy(folder: Path, text: str, _: str) -> list[str]:
    path = folder / "haproxy.cfg"
    path.write_text(text)
    return [str(need("haproxy")), "-db", "-f", str(path)]


def _caddy(folder: Path, text: str, _: str) -> list[str]:
    path = folder / "Caddyfile"
    path.write_text(text)
    return [str(need("caddy")), "run", "--config", str(path), "--adapter", "caddyfile"]


_COMMANDS: dict[str, Command] = {"nginx": _nginx, "haproxy": _haproxy, "caddy": _caddy}


def _listens(process: subprocess.Popen[bytes], port: int) -> bool:
    deadline = time.monotonic() + _BOUND
    while time.monotonic() < deadline and process.poll() is None:
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
        except OSError:
            time.sleep(_POLL)
        else:
            return process.poll() is None
    return False


def _stop(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(5)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
