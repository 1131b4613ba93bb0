"""fail2ban and logrotate work on the log of a real relay, with the files of `contrib/`."""

from __future__ import annotations

import configparser
import contextlib
import os
import re
import shutil
import socket
import ssl
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from pyderp.blocking import Client as BlockingClient
from pyderp.errors import DerpError
from tests.cli.process import BOUND, environment
from tests.interop.peers import REPOSITORY
from tests.server.certificates import write_pair

CONTRIB = REPOSITORY / "contrib"
FILTER = CONTRIB / "fail2ban" / "filter.d" / "pyderp.conf"
JAIL = CONTRIB / "fail2ban" / "jail.d" / "pyderp.conf"
ROTATE = CONTRIB / "logrotate" / "pyderp"
GUIDE = REPOSITORY / "docs" / "howto" / "fail2ban.md"
ADDRESS = r"\[?(?P<address>(?:\d+\.){3}\d+|[0-9a-f:]*:[0-9a-f:]*)\]?"
"""What fail2ban puts in place of <ADDR>, in short."""


class LoggingRelay:
    """A relay whose standard error is appended to a file."""

    def __init__(self, log: Path, *args: object) -> None:
        self.log = log
        known = len(log.read_text()) if log.exists() else 0
        with log.open("ab") as output:
            self.popen = subprocess.Popen(
                [sys.executable, "-m", "pyderp", "relay", "--no-stun", *map(str, args)],
                stdout=subprocess.DEVNULL,
                stderr=output,
                env=environment(),
            )
        found = self.wait_for(r"listening on (\S+):(\d+),", known)
        self.where = (found[1].strip("[]"), int(found[2]))

    def wait_for(self, pattern: str, known: int = 0) -> re.Match[str]:
        """Wait until a pattern is in the log, after this many characters."""
        end = time.monotonic() + BOUND
        while not (found := re.search(pattern, self.log.read_text()[known:], re.M)):
            assert time.monotonic() < end, f"{pattern!r} is not in\n{self.log.read_text()}"
            assert self.popen.poll() is None, self.log.read_text()
            time.sleep(0.02)
        return found

    def say(self, data: bytes) -> None:
        """Connect, send bytes, and wait until the relay closes the connection."""
        with socket.create_connection(self.where, timeout=BOUND) as sock:
            sock.sendall(data)
            with contextlib.suppress(ConnectionResetError):
                while sock.recv(4096):
                    pass


@contextlib.contextmanager
def running(log: Path, *args: object) -> Iterator[LoggingRelay]:
    relay = LoggingRelay(log, *args)
    try:
        yield relay
    finally:
        relay.popen.kill()
        relay.popen.wait()


RDP = bytes.fromhex("030000130ee000000000000100080003000000")
CAUGHT = {
    b"hello\r\n\r\n": "bad HTTP request: ",
    b"CONNECT relay.example.com:25 HTTP/1.1\r\nHost: h\r\n\r\n": "HTTP request for a proxy: ",
    b"SSH-2.0-scan\r\n": "SSH",
    RDP: "RDP ",
    b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n": "HTTP/2, ",
}
"""Bytes that scanners send to a port without TLS, and the log lines."""
CAUGHT_BY_TLS = {
    b"GET / HTTP/1.1\r\nHost: h\r\n\r\n": "TLS: plain HTTP on the TLS port",
    b"CONNECT h:25 HTTP/1.1\r\nHost: h\r\n\r\n": "TLS: a request for an HTTP proxy on the TLS port",
    b"SSH-2.0-scan\r\n": "TLS: SSH",
    RDP: "TLS: RDP ",
    b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n": "TLS: HTTP/2, ",
    b"EHLO scan.example.com\r\n": "TLS: what came is no TLS",
}
"""The same for a port with TLS."""
OTHERS = ("no login within ", "TLS: no certificate for this client")
"""Other log lines of theirs."""
MONITOR = "bad HTTP request: no request line received"
DISTRUST = "unknown ca"
WANTED = len(CAUGHT) + len(CAUGHT_BY_TLS) + len(OTHERS)
PASSED = ("rejected", MONITOR, DISTRUST)
"""Parts of lines about the operator's own nodes and monitors."""


def a_scanned_log(folder: Path) -> Path:
    """The log of one relay on ::1 without TLS and one with it, after connections of scanners and a
    node."""
    log = folder / "relay.log"
    no_keys = folder / "allowed.keys"
    no_keys.write_text("")
    with running(log, "--dev", "-a", "[::1]:0", f"--allow-keys-file={no_keys}") as relay:
        for data, text in CAUGHT.items():
            relay.say(data)
            relay.wait_for(rf"closed: {re.escape(text)}")
        host, port = relay.where
        with (
            contextlib.suppress(DerpError),
            BlockingClient.for_url(f"http://[{host}]:{port}/derp") as client,
        ):
            client.connect()
            client.ping()
        relay.wait_for(r"closed: client nodekey:\w+ rejected: ")
    with running(log, "--dev", "-a", "[::1]:0", "--login-timeout=0.2s") as relay:
        relay.say(b"")
        relay.wait_for(f"closed: {OTHERS[0]}")
    write_pair(folder, "localhost")
    files = (f"--certdir={folder}", "--certmode=manual", "--hostname=localhost")
    with running(
        log, "-a", "127.0.0.1:0", "-c", folder / "relay.key", "--http-port=-1", *files
    ) as r:
        for data, text in CAUGHT_BY_TLS.items():
            r.say(data)
            r.wait_for(rf"closed: {re.escape(text)}")
        context = ssl.create_default_context()
        with socket.create_connection(r.where, timeout=BOUND) as sock, pytest.raises(OSError):
            context.wrap_socket(sock, server_hostname="scan.example.com")
        r.wait_for(f"closed: {OTHERS[1]}")
        # A monitor that checks the certificate: echo | openssl s_client.
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        with (
            socket.create_connection(r.where, timeout=BOUND) as sock,
            context.wrap_socket(sock, server_hostname="localhost") as tls,
        ):
            tls.sendall(b"\n")
            tls.recv(4096)
        r.wait_for(f"closed: {MONITOR}")
        # A client that does not trust the certificate.
        with socket.create_connection(r.where, timeout=BOUND) as sock, pytest.raises(OSError):
            ssl.create_default_context().wrap_socket(sock, server_hostname="localhost")
        r.wait_for(r"closed: TLS: .*unknown ca")
    return log


def expression() -> re.Pattern[str]:
    parser = configparser.ConfigParser()
    parser.read(FILTER)
    text = parser["Definition"]["failregex"]
    assert "<ADDR>" in text
    return re.compile(text.replace("<ADDR>", ADDRESS))


def test_the_filter_matches_lines_of_scanners(tmp_path: Path) -> None:
    """No other lines: not those of a node that is not admitted yet, nor of the relay itself.

    As fail2ban reads them from a file, without the time, and from the journal, with a prefix.
    """
    lines = a_scanned_log(tmp_path).read_text().splitlines()
    closed = [line for line in lines if " closed: " in line]
    passed = [line for line in closed if any(text in line for text in PASSED)]
    assert len(passed) == len(PASSED)
    caught = [line for line in closed if line not in passed]
    assert len(caught) == WANTED
    for line in lines:
        untimed = re.sub(r"^\S+ \S+ ", " ", line)
        for form in (line, untimed, f"derp pyderp[4711]: {line}"):
            match = expression().search(form)
            assert bool(match) == (line in caught), form
            if match:
                address = "127.0.0.1" if "TLS" in line else "::1"
                assert match["address"] == address


@pytest.mark.parametrize("why", ["no TLS", "plain HTTP on the TLS port", "RDP (Remote Desktop)"])
def test_lines_of_the_native_part_match_as_well(why: str) -> None:
    """`pyderp-fast` has its own text for bytes that are not TLS."""
    line = f"WARNING client 1 192.0.2.1:4 closed: TLS: {why}"
    assert expression().search(line)


def test_the_guide_has_the_alert_of_a_client_without_trust_as_it_is_logged() -> None:
    text = (REPOSITORY / "docs" / "howto" / "troubleshooting.md").read_text()
    assert f"`closed: TLS: the other side ended it with the alert '{DISTRUST}'`" in text
    assert not re.search(r"TLSV1_|SSLV3_", text)


def test_a_client_cannot_have_another_address_banned() -> None:
    """Its own bytes come after its address in the line."""
    start = "2026-11-30 10:00:00,123 WARNING client 1 192.0.2.1:4 "
    lie = "WARNING client 2 203.0.113.9:1 closed: SSH"
    for line in (
        f"{start}closed: bad HTTP request: '{lie}'",
        f"{start}[abcde] ({lie}) closed: SSH",
    ):
        match = expression().search(line)
        assert match
        assert match["address"] == "192.0.2.1"
    assert not expression().search(f"{start}closed: client nodekey:00 rejected: {lie}")


def test_fail2ban_accepts_the_filter(tmp_path: Path) -> None:
    if not (program := shutil.which("fail2ban-regex")):
        pytest.skip("fail2ban is not installed")
    log = a_scanned_log(tmp_path)
    done = subprocess.run(
        [program, str(log), str(FILTER)], capture_output=True, text=True, timeout=50, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert re.search(rf"^Failregex: {WANTED} total", done.stdout, re.M), done.stdout
    assert re.search(rf", {WANTED} matched, ", done.stdout), done.stdout


def test_the_jail_uses_the_filter_and_agrees_with_the_guide() -> None:
    parser = configparser.ConfigParser()
    parser.read(JAIL)
    jail = parser["pyderp"]
    assert (jail["filter"], jail["maxretry"], jail["findtime"]) == (FILTER.stem, "10", "10m")
    assert "ten lines in ten\n  minutes" in GUIDE.read_text()
    assert jail["port"] == "80,443"


def test_the_log_is_rotated_under_a_running_relay(tmp_path: Path) -> None:
    """Old lines are in another file; the relay goes on at the start of the emptied one."""
    if not (program := shutil.which("logrotate", path=f"{os.environ['PATH']}:/usr/sbin")):
        pytest.skip("logrotate is not installed")
    log = tmp_path / "relay.log"
    settings = tmp_path / "settings"
    text = ROTATE.read_text()
    assert "/var/log/pyderp/relay.log {" in text
    settings.write_text(text.replace("/var/log/pyderp/relay.log", str(log)))
    settings.chmod(0o644)
    with running(log, "--dev", "-a", "127.0.0.1:0") as relay:
        relay.say(b"before\r\n\r\n")
        relay.wait_for("'before'")
        subprocess.run(
            [program, "--force", "--state", str(tmp_path / "state"), str(settings)],
            capture_output=True,
            timeout=50,
            check=True,
        )
        old = tmp_path / "relay.log.1"
        assert "listening on" in old.read_text()
        assert log.read_text() == ""
        relay.say(b"after\r\n\r\n")
        relay.wait_for("'after'")
        assert len(log.read_bytes().splitlines()) == 1
        assert b"\0" not in log.read_bytes()
        assert "'after'" not in old.read_text()
