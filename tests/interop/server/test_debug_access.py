"""Access to the debug pages: both relays get requests from many addresses, in a network namespace.

All these addresses are on its loopback device: public ones, those of Tailscale, and those that the
environment of the relays names. Nothing leads out of it.
"""

from __future__ import annotations

import itertools
import json
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pytest

from tests.interop.peers import REPOSITORY, need
from tests.interop.relays import DERPERS, KINDS, NEWER, OLDER, Kind
from tests.interop.tailscaled.namespaces import Namespace
from tests.interop.tailscaled.peers import need_namespaces
from tests.interop.tailscaled.processes import daemon

from .support import BOUND, Answer

HERE, HERE6 = "203.0.113.1", "2001:db8::1"
PUBLIC, PUBLIC6 = "8.8.8.8", "2001:db8::2"
ALLOWED = "9.9.9.9"
TRUSTED = "10.0.0.0/8, 192.168.1.0/24, fd00::/8,"
KEY = "open sesame"
LOOPBACK = "127.0.0.1"
MAY = (
    LOOPBACK,
    "100.100.100.100",
    "100.115.94.1",
    "fd7a:115c:a1e0::5",
    ALLOWED,
    "10.1.2.3",
    "192.168.1.50",
    "fd00::1",
)
MAY_NOT = (
    PUBLIC,
    PUBLIC6,
    "9.9.9.8",
    "192.168.2.1",
    "172.16.0.1",
    # These are of ChromeOS, not of Tailscale.
    "100.115.92.1",
    "100.115.93.1",
    "100.128.0.1",
)
QUERY = "?debugkey=open%20sesame"
PORTS: dict[Kind, tuple[int, int]] = {
    OLDER: (8443, 80),
    "pyderp": (8444, 81),
    NEWER: (8445, 82),
}
"""With TLS, and without beside it."""
_serial = itertools.count(1)


@dataclass(frozen=True)
class Question:
    source: str
    target: str = "/debug/"
    headers: tuple[str, ...] = ()
    method: str = "GET"
    tls: bool = True

    def task(self, kind: Kind) -> list[object]:
        secure, plain = PORTS[kind]
        here = HERE6 if ":" in self.source else HERE
        if self.source == LOOPBACK:
            here = LOOPBACK
        port = secure if self.tls else plain
        return [port, self.tls, self.method, self.target, self.source, here, self.headers]


@dataclass(frozen=True)
class Network:
    namespace: Namespace

    def ask(self, kind: Kind, questions: Sequence[Question]) -> list[Answer]:
        """All answers of one relay."""
        command = [sys.executable, "-m", "tests.interop.server.debug_access_inside"]
        done = subprocess.run(
            self.namespace.command(command),
            cwd=REPOSITORY,
            input=json.dumps([question.task(kind) for question in questions]),
            capture_output=True,
            text=True,
            timeout=2 * BOUND,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return [
            Answer(status, {"location": location}, body.encode())
            for status, location, body in json.loads(done.stdout)
        ]

    def both(self, questions: Sequence[Question]) -> Iterator[tuple[Question, list[Answer]]]:
        """Each request with the answers of derper and of pyderp, for each version of derper."""
        ours = self.ask("pyderp", questions)
        for derper in DERPERS:
            theirs = self.ask(derper, questions)
            for question, *answers in zip(questions, theirs, ours, strict=True):
                yield question, answers


@contextmanager
def own_network() -> Iterator[Namespace]:
    """A namespace with all the addresses, and nothing else."""
    name = f"pyderp-{os.getpid()}-debug-{next(_serial)}"
    subprocess.run(["ip", "netns", "add", name], check=True)
    namespace = Namespace(name, HERE)
    try:
        lines = ["link set lo up"]
        for address in (HERE, HERE6, *MAY[1:], *MAY_NOT):
            length = "128 nodad" if ":" in address else "32"
            lines.append(f"address add dev lo {address}/{length}")
        subprocess.run(
            ["ip", "-n", name, "-batch", "-"], input="\n".join(lines).encode(), check=True
        )
        yield namespace
    finally:
        subprocess.run(["ip", "netns", "del", name], check=True)


def command(kind: Kind, directory: Path) -> list[str]:
    secure, plain = PORTS[kind]
    if kind != "pyderp":
        start = [str(need(kind)), "-stun=false"]
    else:
        # derper answers under any name.
        start = [sys.executable, "-m", "pyderp", "relay", "--no-stun", "--debug-hosts=relay.test"]
    flags = {"hostname": HERE, "certmode": "manual", "http-port": plain, "certdir": directory}
    return [
        *start,
        *("-a", f":{secure}", "-c", str(directory / f"{kind}.json")),
        *(f"--{name}={value}" for name, value in flags.items()),
    ]


@pytest.fixture(scope="module")
def network(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Network]:
    need_namespaces()
    directory = tmp_path_factory.mktemp("debug-access")
    secret = directory / "debug.key"
    secret.touch(0o600)
    secret.write_text(f"  {KEY}\n")
    environment = {
        **os.environ,
        "TS_DEBUG_KEY_PATH": str(secret),
        "TS_ALLOW_DEBUG_IP": ALLOWED,
        "TS_DEBUG_TRUSTED_CIDRS": TRUSTED,
    }
    with own_network() as namespace, ExitStack() as stack:
        for kind in KINDS:
            started = command(kind, directory)
            log = directory / f"{kind}.log"
            running = stack.enter_context(daemon(namespace, started, log, environment))
            for port in PORTS[kind]:
                running.wait_for(f"port {port}", partial(namespace.listens_on, port))
        yield Network(namespace)


def test_the_address_decides_access(network: Network) -> None:
    """To the pages, and the link to them on the page at /."""
    targets = ("/debug/", "/debug/varz", "/debug/check", "/debug/none", "/debug", "/")
    questions = [Question(s, target) for s in (*MAY, *MAY_NOT) for target in targets]
    for question, (theirs, ours) in network.both(questions):
        assert ours.status == theirs.status, question
        may = question.source in MAY
        if question.target == "/":
            for answer in (theirs, ours):
                assert (b"/debug/" in answer.body) is may, question
        elif question.target == "/debug":
            assert ours.headers == theirs.headers == {"location": "/debug/"}, question
        else:
            missing = 404 if question.target == "/debug/none" else 200
            assert ours.status == (missing if may else 403), question
            if not may:
                assert ours.body == theirs.body == b"debug access denied\n", question
            elif question.target == "/debug/check":
                assert ours.body == theirs.body


def test_the_key_and_forwarded_requests(network: Network) -> None:
    """The key opens the pages from anywhere, for GET only; a forwarded request has no address."""
    forwarded = ("X-Forwarded-For: 127.0.0.1",)
    wanted = {
        Question(PUBLIC, f"/debug/varz{QUERY}"): 200,
        Question(PUBLIC6, f"/debug/varz{QUERY}"): 200,
        Question(PUBLIC, f"/debug/varz{QUERY}", forwarded): 200,
        Question(PUBLIC, "/debug/varz?debugkey=open+sesame"): 200,
        Question(PUBLIC, f"/debug/varz?x=y&{QUERY[1:]}"): 200,
        Question(PUBLIC, f"/debug/varz{QUERY}", method="HEAD"): 403,
        Question(PUBLIC, f"/debug/varz{QUERY}", method="POST"): 403,
        Question(PUBLIC, "/debug/varz?debugkey=open"): 403,
        Question(PUBLIC, "/debug/varz?debugkey="): 403,
        Question(LOOPBACK, "/debug/varz?debugkey=open"): 200,
        Question(LOOPBACK, "/debug/varz", forwarded): 403,
        Question("10.1.2.3", "/debug/varz", ("X-Forwarded-For: 10.1.2.3",)): 403,
        Question(LOOPBACK, "/debug/varz", ("x-forwarded-for: nonsense",)): 403,
        Question(LOOPBACK, "/debug/varz", method="HEAD"): 200,
    }
    for question, (theirs, ours) in network.both(list(wanted)):
        assert theirs.status == ours.status == wanted[question], question


def test_plain_http_beside_tls(network: Network) -> None:
    """All requests are redirected to https with path and query; from /, those with access to
    /debug/."""
    location = {
        Question(PUBLIC, "/", tls=False): "https://relay.test/",
        Question(PUBLIC, "/derp?a=b&c", tls=False): "https://relay.test/derp?a=b&c",
        Question(PUBLIC, "/bootstrap-dns", method="HEAD", tls=False): (
            "https://relay.test/bootstrap-dns"
        ),
        Question("100.100.100.100", "/", tls=False): "https://relay.test/debug/",
        Question("100.100.100.100", "/?a=b", tls=False): "https://relay.test/?a=b",
        Question(PUBLIC, f"/{QUERY}", tls=False): f"https://relay.test/{QUERY}",
        Question("100.100.100.100", "/x", tls=False): "https://relay.test/x",
        Question(LOOPBACK, "/", ("X-Forwarded-For: 1.2.3.4",), tls=False): ("https://relay.test/"),
    }
    for question, answers in network.both(list(location)):
        for answer in answers:
            assert answer.status == 302, question
            assert answer.headers["location"] == location[question]
    status = {
        Question(PUBLIC, "/", method="POST", tls=False): 400,
        Question(PUBLIC, "/generate_204", tls=False): 204,
        Question(PUBLIC, "/debug/", tls=False): 403,
        Question("10.1.2.3", "/debug/varz", tls=False): 200,
    }
    for question, (theirs, ours) in network.both(list(status)):
        assert theirs.status == ours.status == status[question], question
        if question.method == "POST":
            assert theirs.body == ours.body == b"Use HTTPS\n"
