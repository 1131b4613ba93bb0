"""Figures in the pages are those of the code."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest

from pyderp import defaults
from pyderp.cli.process import EXIT_LOGIN_REFUSED
from pyderp.cli.send import EPILOG, EXIT_PEER_GONE
from pyderp.server.conn import context, limits
from pyderp.server.conn.accept import _RESERVE as RESERVED_FILES
from tests.interop.peers import REPOSITORY

DOCS = REPOSITORY / "docs"
SMALL = f"{context.SMALL_READ // 1024} KiB"
READ = f"{defaults.RECEIVE_BUFFER // 1024} KiB"
SMOOTH_FROM = f"{defaults.RECEIVE_BUFFER / limits._SMOOTH / 1e6:.1f} MB/s"
"""From this limit on the relay reads a client in large pieces."""
LINES = f"{context._LOGGED_AT_ONCE}"
RATE = f"{1 / context._LOG_INTERVAL:g}"
QUEUE = f"{defaults.SEND_QUEUE_BYTES // 1024} KiB"

FIGURES = [
    ("howto/limits.md", f"up to {SMALL}, for limits from {SMOOTH_FROM} on up to {READ}."),
    ("differences.md", f"one read: {SMALL}; from {SMOOTH_FROM} on, up to {READ}."),
    ("architecture.md", f"the {READ} that one read of each ready socket brings"),
    ("howto/limits.md", f"has not logged in {defaults.LOGIN_TIMEOUT:g} seconds after the accept"),
    ("howto/limits.md", f"The relay keeps {RESERVED_FILES} for itself"),
    ("security.md", f"about clients, all together | {LINES}, then {RATE} a second |"),
    ("reference/log-and-counters.md", f"{LINES} at once, then {RATE} lines a second"),
    ("howto/systemd.md", f"{LINES} lines at once, then {RATE} a second"),
    ("howto/monitoring.md", f"cut: {LINES} lines at once, then {RATE} a second"),
    ("howto/log-rotation.md", f"{LINES} lines at once about clients that do wrong, then {RATE} a"),
    ("howto/fail2ban.md", f"({LINES} at once, then {RATE} a second)"),
    ("howto/fail2ban.md", f"lives for {defaults.LOGIN_TIMEOUT:g} seconds at most"),
    ("security.md", f"TLS and HTTP included | {defaults.LOGIN_TIMEOUT:g} s (`--login-timeout`) |"),
    ("security.md", f"| HTTP head; login | {defaults.MAX_HTTP_HEAD // 1024} KiB; "),
    ("security.md", f"{defaults.SEND_QUEUE_DEPTH} and {defaults.SEND_QUEUE_DEPTH}, {QUEUE} in all"),
    ("security.md", f"although something waits | {defaults.WRITE_TIMEOUT:g} s |"),
    (
        "security.md",
        f"pongs | {defaults.NOT_HERE_BURST:g} and then one a second; one at a time |",
    ),
    ("security.md", f"wait for a client | {defaults.MAX_PENDING_CONTROL:,}; then PeerGone"),
    ("security.md", f"wait for a watcher | {defaults.MAX_PENDING_CHANGES:,} beyond the"),
    ("security.md", f"relay of the mesh may have | {defaults.MAX_MESH_KEYS:,}; "),
    (
        "security.md",
        f"waiting for a verdict on a client | {defaults.ADMISSION_WAIT:g} s; {READ} of",
    ),
    ("security.md", f"verdicts that are remembered | {defaults.ADMISSION_CACHE:,} |"),
    ("howto/memory.md", f"that does not read, {QUEUE} of packets at most"),
    ("howto/memory.md", f"up to {defaults.TCP_NOTSENT_LOWAT // 1024} KiB of what it has\nnot sent"),
    (
        "reference/cli.md",
        f"**Exit status {EXIT_PEER_GONE}** means that the relay said that the",
    ),
    ("reference/cli.md", f"{EXIT_PEER_GONE} from\n`pyderp send` if the relay says"),
    (
        "reference/cli.md",
        f"{EXIT_LOGIN_REFUSED} from `listen`, `send` and `ping` if the relay",
    ),
]


@pytest.mark.parametrize(
    ("page", "text"), FIGURES, ids=[f"{page}: {text[:40]}" for page, text in FIGURES]
)
def test_a_figure_of_the_code_is_in_the_page(page: str, text: str) -> None:
    assert " ".join(text.split()) in " ".join((DOCS / page).read_text().split())


def test_the_exit_statuses_of_send_are_those_of_its_help() -> None:
    """The page and `pyderp send --help` have the same ones."""
    help_text = EPILOG.partition("**Exit status**: ")[2].partition(". In every")[0]
    known = set(re.findall(r"(?:^|[;,]\s+)(\d+)\s", help_text))
    assert known == {"0", "1", "2", str(EXIT_PEER_GONE), str(EXIT_LOGIN_REFUSED), "130", "143"}
    text = (DOCS / "reference" / "cli.md").read_text()
    general = text.partition("**Exit status**: ")[2].partition("\n\n")[0]
    assert known <= set(re.findall(r"\b\d+\b", general))
    section = text.partition("\n## pyderp send\n")[2].partition("\n## ")[0]
    assert f"exit status 1, or {EXIT_LOGIN_REFUSED} if" in section
    assert set(re.findall(r"[Ee]xit status (\d+)", section)) <= known


def test_the_pages_have_the_commands_to_install_what_they_call() -> None:
    """`pyderp` is found where the units look, and a virtual environment can be made on Debian."""
    text = (DOCS / "howto" / "install.md").read_text()
    made, linked = (
        text.index("/opt/pyderp/bin/pip install --no-deps"),
        text.index("ln -s /opt/pyderp/bin/pyderp /usr/local/bin/pyderp"),
    )
    assert made < linked
    assert 0 < text.index("python3-venv") < text.index("python3 -m venv build/tools")
    page = (DOCS / "howto" / "systemd.md").read_text()
    assert page.index("[Install](install.md)") < page.index("/opt/pyderp/bin/pyderp relay")
    unit = (REPOSITORY / "contrib" / "systemd" / "pyderp.service").read_text()
    assert "ExecStart=/opt/pyderp/bin/pyderp relay" in unit
    for path in (REPOSITORY / "README.md", DOCS / "tutorial.md"):
        assert "`python3-venv`" in path.read_text()


def test_a_ping_of_a_self_signed_relay_has_its_pin() -> None:
    """In every page: without a pin the certificate is refused."""
    pages: list[Path] = [*DOCS.rglob("*.md"), REPOSITORY / "README.md"]
    found = 0
    for page in pages:
        for line in page.read_text().splitlines():
            if re.search(r"pyderp (ping|listen|send) https://\d", line):
                found += 1
                assert "--pin" in line, f"{page}: {line}"
    assert found >= 2


def test_installs_by_pipx_and_uvx_have_the_command() -> None:
    """The page's extras contain the libraries of the command line."""
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
    needs_extra = not any(each.startswith("typer") for each in project["dependencies"])
    source = "'.[cli]'" if needs_extra else "."
    installs = re.findall(
        r"^(?:pipx|uv|uvx) .*?(?:install|--from|--spec)(?: --constraints \S+)? (\S+)",
        (DOCS / "howto" / "pipx.md").read_text(),
        re.MULTILINE,
    )
    assert len(installs) == 5
    assert set(installs) == {source}
