"""A relay that cannot start prints one line with cause, place and remedy, and leaves nothing."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeAlias

import pytest

from pyderp import NodePrivate
from tests.cli.process import BOUND, environment
from tests.interop.peers import need
from tests.interop.tailscaled.peers import missing
from tests.server.certificates import write_pair

from .support import service
from .test_notify import Manager

Prepare: TypeAlias = Callable[[Path], list[str]]
"""Puts a problem into a folder; returns the flags of a relay that finds it."""

PLAIN = ["-a", "127.0.0.1:0", "--no-stun"]
TLS = [*PLAIN, "--certmode=manual", "--hostname=localhost", "--http-port=-1"]


def written(name: str, text: str, *flags: str) -> Prepare:
    """A file, and the flags that name it as `%`."""

    def prepare(folder: Path) -> list[str]:
        path = folder / name
        path.write_text(text)
        path.chmod(0o600)
        return [*PLAIN, *(flag.replace("%", str(path)) for flag in flags)]

    return prepare


def certificate(name: str, days: int = 60) -> Prepare:
    def prepare(folder: Path) -> list[str]:
        write_pair(folder, "localhost", names=[name], days=days)
        return [*TLS, f"--certdir={folder}"]

    return prepare


def half_a_certificate(folder: Path) -> list[str]:
    certificate("localhost")(folder)
    path = folder / "localhost.key"
    path.write_bytes(path.read_bytes()[:-80])
    return [*TLS, f"--certdir={folder}"]


def a_folder_as_key(folder: Path) -> list[str]:
    (folder / "relay.json").mkdir()
    return PLAIN


PROBLEMS: dict[str, tuple[Prepare, str]] = {
    "key is a folder": (a_folder_as_key, "cannot read the key file %/relay.json: Is a directory"),
    "TOML": (
        written("relay.toml", 'home = "blank"\nhome = 1\n', "--config-file=%"),
        "settings file %/relay.toml, line 2",
    ),
    "rates": (written("rate", '{\n"PerKey":\n', "--rate-config=%"), "rate config %/rate, line 3"),
    "allowed keys": (
        written("keys", f"{NodePrivate.generate().public}\nme\n", "--allow-keys-file=%"),
        "%/keys, line 2",
    ),
    "no allowed keys": (lambda folder: [*PLAIN, f"--allow-keys-file={folder}/keys"], "%/keys"),
    "broken key of a certificate": (half_a_certificate, "%/localhost.key"),
    "no such folder": (
        lambda folder: ["-a", f"unix:{folder}/none/sock", "--no-stun"],
        "cannot listen on unix:%/none/sock: No such file or directory",
    ),
}


@contextlib.contextmanager
def taken_ports() -> Iterator[dict[str, tuple[Prepare, str]]]:
    """Ports of each kind that other sockets use."""
    with (
        socket.create_server(("127.0.0.1", 0)) as tcp,
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as udp,
    ):
        udp.bind(("127.0.0.1", 0))
        taken, stun = tcp.getsockname()[1], udp.getsockname()[1]

        def side(folder: Path) -> list[str]:
            certificate("localhost")(folder)
            return [*TLS[:-1], f"--certdir={folder}", f"--http-port={taken}"]

        yield {
            "port": (
                lambda _: ["-a", f"127.0.0.1:{taken}", "--no-stun"],
                f"cannot listen on 127.0.0.1:{taken}: the port is taken; stop what uses it",
            ),
            "STUN port": (
                lambda _: ["-a", "127.0.0.1:0", f"--stun-port={stun}"],
                f"{stun}",
            ),
            "port of plain HTTP": (side, f"127.0.0.1:{taken}: the port is taken"),
        }


def test_each_refusal_is_one_line(tmp_path: Path) -> None:
    """All at once, as starts take the most time."""
    started: list[tuple[str, Path, list[str], str, subprocess.Popen[str]]] = []
    with taken_ports() as ports, contextlib.ExitStack() as stack:
        for number, (name, (prepare, expected)) in enumerate({**PROBLEMS, **ports}.items()):
            folder = tmp_path / str(number)
            folder.mkdir()
            flags = prepare(folder)
            before = sorted(os.listdir(folder))
            process = stack.enter_context(
                subprocess.Popen(
                    [sys.executable, "-m", "pyderp", "relay", f"-c{folder}/relay.json", *flags],
                    stdout=subprocess.PIPE,
                    stderr=subprocess.STDOUT,
                    text=True,
                    env=environment(),
                )
            )
            stack.callback(process.kill)
            started.append((name, folder, before, expected.replace("%", str(folder)), process))
        for name, folder, before, expected, process in started:
            output, _ = process.communicate(timeout=BOUND)
            lines = output.splitlines()
            assert process.returncode == 1, (name, output)
            assert lines[-1].startswith("pyderp: "), (name, output)
            assert expected in lines[-1], (name, output)
            assert "Traceback" not in output
            # A key is made only for a relay that can start.
            assert sorted(os.listdir(folder)) == before, name


def on_a_full_disk(folder: Path, then: str) -> list[str]:
    """Commands in front of a command, so that `folder` is on its own disk, which is full.

    Args:
        then: what a shell does with the rest of the command, "$@".
    """
    if os.geteuid() != 0:
        missing("permission for `unshare --mount`", "run as root")
    script = (
        'mount -t tmpfs -o size=16k none "$0" && chmod 700 "$0" && '
        f'head -c 16384 /dev/zero > "$0/fill"; {then}'
    )
    folder.mkdir()
    return [str(need("unshare")), "--mount", "sh", "-c", script, str(folder)]


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        (["-c", "%/relay.json"], "cannot make the key file %/relay.json: No space left on device"),
        (
            ["--certmode=manual", "--hostname=127.0.0.1", "--http-port=-1", "--certdir=%"],
            "cannot save the self-signed certificate in %: No space left on device",
        ),
    ],
    ids=["key", "certificate"],
)
def test_a_full_disk_is_reported_and_no_part_of_a_file_is_left(
    flags: list[str], expected: str, tmp_path: Path
) -> None:
    folder = tmp_path / "full"
    before = on_a_full_disk(folder, '"$@"; code=$?; ls -A "$0"; exit $code')
    flags = [f"-c{tmp_path}/relay.json", *PLAIN, *flags]
    flags = [flag.replace("%", str(folder)) for flag in flags]
    done = subprocess.run(
        [*before, sys.executable, "-m", "pyderp", "relay", *flags],
        capture_output=True,
        text=True,
        env=environment(),
        timeout=BOUND,
        check=False,
    )
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1] == "pyderp: " + expected.replace("%", str(folder))
    assert done.stdout == "fill\n"


def test_on_a_full_disk_a_relay_with_acme_serves(tmp_path: Path) -> None:
    """It logs that it cannot save its attempts, and it stops as usual."""
    folder = tmp_path / "full"
    before = on_a_full_disk(folder, 'exec "$@"')
    flags = [*PLAIN, f"-c{tmp_path}/relay.json", "--hostname=relay.example.com", "--http-port=-1"]
    flags += [f"--certdir={folder}", "--certmode=letsencrypt"]
    flags += ["--acme-directory=https://127.0.0.1:1/none"]
    with service(*flags, log=tmp_path / "log", before=before) as relay:
        relay.wait_for(f"cannot write {folder}/relay.example.com.state.json: No space left")
        with socket.create_connection(("127.0.0.1", relay.port), timeout=BOUND):
            assert os.listdir(f"/proc/{relay.popen.pid}/root{folder}") == ["fill"]
        relay.signal(signal.SIGTERM)
        assert relay.popen.wait(BOUND) == 0


def test_a_relay_whose_log_is_full_goes_on_serving(tmp_path: Path) -> None:
    """Lines are lost, but clients are served."""
    manager = Manager(tmp_path / "notify")
    key = tmp_path / "relay.json"
    try:
        flags = [*PLAIN, f"-c{key}"]
        with service(*flags, log=Path("/dev/full"), extra=manager.environment) as relay:
            status = manager.next_state()["STATUS"]
            port = int(status.partition(",")[0].rpartition(":")[2])
            for _ in range(3):
                with socket.create_connection(("127.0.0.1", port), timeout=BOUND) as sock:
                    sock.sendall(b"GET /derp HTTP/1.1\r\nHost: x\r\nUpgrade: junk\r\n\r\n")
                    assert sock.recv(100).startswith(b"HTTP/1.1 426")
            relay.signal(signal.SIGTERM)
            assert relay.popen.wait(BOUND) == 0
    finally:
        manager.close()
