"""`pyderp doctor`: output, exit statuses, watching, Ctrl-C, and invalid targets."""

from __future__ import annotations

import contextlib
import functools
import http.server
import json
import os
import pty
import re
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeAlias

import pytest

from pyderp.cli.doctorlines import line_of
from pyderp.doctor.finding import Finding, failed
from pyderp.testing import RelayThread
from pyderp.text import printable

from .commands import Done, command, run
from .process import BOUND, environment

Here: TypeAlias = Callable[..., Done]

FLAGS = ("--stun-port=-1", "--http-port=1", "--timeout=20")
DEAD = ("--stun-port=-1", "--http-port=1", "--timeout=1")


def make_map(path: Path, *nodes: dict[str, Any]) -> Path:
    region = {"RegionID": 900, "RegionCode": "lab", "Nodes": list(nodes)}
    path.write_text(json.dumps({"Regions": {"900": region}}))
    return path


def node(name: str, relay: RelayThread | None = None, **more: Any) -> dict[str, Any]:
    port = 1 if relay is None else relay.address[1]
    base = {"Name": name, "RegionID": 900, "HostName": "127.0.0.1", "DERPPort": port}
    return base | {"STUNPort": -1, "IPv6": "none"} | more


@pytest.fixture
def tls_relay() -> Iterator[RelayThread]:
    with RelayThread(tls=True) as relay:
        yield relay


def pin_of(relay: RelayThread) -> str:
    return relay.region.nodes[0].cert_name


def test_a_healthy_relay_has_no_problems(relay: RelayThread, here: Here) -> None:
    done = here("doctor", relay.url, *FLAGS)
    assert done.code == 0, done.out
    lines = done.out.splitlines()
    assert lines[0] == "ok    names.ipv4       127.0.0.1"
    assert all(line[:6] in ("ok    ", "skip  ") for line in lines[:-1])
    assert any(line.startswith("ok    relay.packet     both ways") for line in lines)
    assert lines[-1].startswith("ok: ")
    assert not done.err


def test_the_report_in_json(relay: RelayThread, here: Here) -> None:
    done = here("doctor", relay.url, *FLAGS, "--json")
    assert done.code == 0
    checks = [event for event in done.events if event["type"] == "check"]
    names = [each["check"] for each in checks]
    assert len(names) == len(set(names)) > 15
    speed = next(each for each in checks if each["check"] == "relay.speed")
    assert speed["group"] == "relay"
    assert speed["data"]["bytes_per_second"] > 0
    summary = done.event("summary")
    assert (summary["result"], summary["fail"], summary["not_done"]) == ("ok", 0, 0)
    assert summary["ok"] + summary["skip"] == len(checks)


def test_exit_statuses_are_those_of_the_worst_result(
    relay: RelayThread, tls_relay: RelayThread, here: Here
) -> None:
    assert here("doctor", tls_relay.url, *FLAGS, "--pin", pin_of(tls_relay)).code == 0
    warned = here("doctor", tls_relay.url, *FLAGS, "--insecure")
    assert warned.code == 1
    assert warned.out.splitlines()[-1].startswith("warn: ")
    failed = here("doctor", tls_relay.url, *FLAGS)
    assert failed.code == 2
    assert failed.out.splitlines()[-1].startswith("fail: ")


def test_quiet_prints_problems_only(relay: RelayThread, tls_relay: RelayThread, here: Here) -> None:
    good = here("doctor", relay.url, *FLAGS, "--quiet")
    assert (good.code, good.out, good.err) == (0, "", "")
    bad = here("doctor", tls_relay.url, *FLAGS, "-q")
    assert bad.code == 2
    lines = bad.out.splitlines()
    assert {line[:4] for line in lines[:-1]} == {"fail"}
    assert "sha256-raw:" in bad.out


def test_each_problem_has_advice(here: Here) -> None:
    done = here("doctor", "127.0.0.1:1", *DEAD)
    assert done.code == 2
    (line,) = [line for line in done.out.splitlines() if line.startswith("fail  ")]
    assert " -> nothing listens at this address and port" in line


def test_each_node_of_a_map_is_checked(
    relay: RelayThread, tls_relay: RelayThread, tmp_path: Path, here: Here
) -> None:
    path = make_map(
        tmp_path / "map.json", node("900a", tls_relay, CertName=pin_of(tls_relay)), node("900b")
    )
    done = here("doctor", path, "--http-port=1", "--timeout=2")
    assert done.code == 2
    assert "ok    900a  relay.packet" in done.out
    assert "fail  900b  tcp.ipv4" in done.out
    assert "skip  region 900 (lab)  region.mesh" in done.out
    first = here("doctor", path, "--http-port=1", "--max-nodes=1")
    assert first.code == 0
    assert "1 node left out (--max-nodes)" in first.out


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        ("{", "line 1, column 2: want a DERP map"),
        ('{"Regions": {"x": {}}}', "Regions"),
        ('{"Regions": {"900": {"Nodes": [{"DERPPort": "a"}]}}}', r"Nodes[0].DERPPort"),
        ('{"Regions": {"900": {"Nodes": 7}}}', "Nodes"),
        ('{"Regions": {}}', "the DERP map has no nodes"),
    ],
)
def test_a_map_that_cannot_be_used(tmp_path: Path, here: Here, content: str, problem: str) -> None:
    path = tmp_path / "map.json"
    path.write_text(content)
    done = here("doctor", path)
    assert done.code == 2
    assert problem in done.err
    assert not done.out


def test_a_map_by_url_and_from_standard_input(tls_relay: RelayThread, tmp_path: Path) -> None:
    path = make_map(tmp_path / "map.json", node("900a", tls_relay, CertName=pin_of(tls_relay)))
    piped = run("doctor", "-", "--http-port=1", stdin=path.read_bytes())
    assert piped.code == 0, piped
    handler = functools.partial(_Quiet, directory=str(tmp_path))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{server.server_address[1]}"
        good = run("doctor", f"{url}/map.json", "--http-port=1")
        missing = run("doctor", f"{url}/nothing.json", "--http-port=1")
        server.shutdown()
    assert good.code == 0, good
    assert missing.code == 2
    assert "404" in missing.err


class _Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        pass


def test_a_map_with_ten_thousand_nodes(tmp_path: Path, here: Here) -> None:
    """The first nodes are checked, and the summary has the number of the others."""
    path = make_map(tmp_path / "map.json", *(node(f"n{number}") for number in range(10_000)))
    done = here("doctor", path, "--http-port=1", "--max-nodes=3", "-q")
    assert done.code == 2
    assert [line[:10] for line in done.out.splitlines()[:3]] == [f"fail  n{n}  " for n in range(3)]
    assert "9997 nodes left out (--max-nodes)" in done.out


@pytest.mark.parametrize(
    "arguments",
    [
        ("no such file.json",),
        ("two words",),
        ("ftp://host/derp",),
        ("https://[bad",),
        ("http://127.0.0.1:1", "--region=1"),
        ("http://127.0.0.1:1", "--every=5"),
        ("map.json", "--insecure"),
        ("127.0.0.1:1", "--insecure", "--cert-name=x"),
        ("127.0.0.1:1", "--pin=xyz"),
        ("127.0.0.1:1", "--ca=/nowhere"),
        ("127.0.0.1:1", "--key=/nowhere"),
        ("127.0.0.1:1", "--mesh-key=/nowhere"),
        (),
    ],
    ids=lambda arguments: " ".join(arguments),
)
def test_an_invalid_target_is_refused(here: Here, arguments: tuple[str, ...]) -> None:
    done = here("doctor", *arguments)
    assert done.code == 2, done
    assert done.err
    assert not done.out


def test_a_name_that_does_not_resolve_is_a_problem(here: Here) -> None:
    """The name is one that no resolver may know (RFC 6761)."""
    done = here("doctor", "relay.invalid", *DEAD)
    assert done.code == 2
    assert "fail" in done.out
    assert "relay.invalid" in done.out


def test_text_of_a_peer_cannot_control_the_terminal(here: Here) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve() -> None:
            while True:
                try:
                    peer, _ = server.accept()
                except OSError:
                    return
                with peer:
                    peer.recv(4096)
                    peer.sendall(b"HTTP/1.1 404 Not Found\r\n\r\n\x1b[31mred\x07\x1b]0;x")

        threading.Thread(target=serve, daemon=True).start()
        done = here("doctor", f"http://127.0.0.1:{server.getsockname()[1]}", *DEAD)
        server.shutdown(socket.SHUT_RDWR)
    assert done.code == 2
    assert "\x1b" not in done.out
    assert "red" in done.out


def test_escaped_text_is_not_escaped_again() -> None:
    text = printable("<html>\r\n\x1b[31m")
    line = line_of(Finding("relay", "http.upgrade", failed(text, "look\x07"), 0.0), several=False)
    assert line.endswith(r"<html>\r\n\x1b[31m -> look\x07")


def test_watching_prints_changes_only(relay: RelayThread) -> None:
    with command("doctor", relay.url, *DEAD, "--watch", "--every=1", "--json") as watching:
        watching.wait_for_out('"summary"')
        before = len(watching.out.splitlines())
        relay.refuse()
        watching.wait_for_out('"change".*"before": "ok".*"tcp.ipv4".*"fail"')
        relay.accept()
        watching.wait_for_out('"change".*"before": "fail".*"tcp.ipv4".*"ok"')
        watching.interrupt()
        done = watching.end()
    assert done.code == 130
    later = done.events[before:]
    changes = [event for event in later if event["type"] == "change"]
    assert all(event["before"] != event["result"] for event in changes)
    assert not [event for event in later if event["type"] == "check"]


def test_a_map_that_breaks_while_it_is_watched(tls_relay: RelayThread, tmp_path: Path) -> None:
    path = make_map(tmp_path / "map.json", node("900a", tls_relay, CertName=pin_of(tls_relay)))
    with command("doctor", path, "--http-port=1", "--watch", "--every=1") as watching:
        watching.wait_for_out("ok: ")
        path.write_text("{")
        watching.wait_for("the last DERP map stays in use: ")
        make_map(
            path,
            node("900a", tls_relay, CertName=pin_of(tls_relay)),
            node("900b"),
        )
        watching.wait_for_out("new -> fail  900b  tcp.ipv4")
        watching.wait_for_out("region.mesh")  # the last check: its clients are being closed
        watching.interrupt()
        assert watching.end().code == 130


def test_watching_prints_recoveries_and_removed_nodes(
    tls_relay: RelayThread, tmp_path: Path
) -> None:
    path = tmp_path / "map.json"
    alive = node("900a", tls_relay, CertName=pin_of(tls_relay))
    make_map(path, alive, node("900b"))
    with command("doctor", path, "--http-port=1", "--watch", "--every=1") as watching:
        watching.wait_for_out("fail: ")
        before = len(watching.out.splitlines())
        tls_relay.refuse()
        watching.wait_for_out("ok -> fail  900a  tcp.ipv4")
        tls_relay.accept()
        watching.wait_for_out("fail -> ok    900a  tcp.ipv4")
        make_map(path, alive)
        watching.wait_for_out("there -> gone  900b")
        watching.interrupt()
        done = watching.end()
    assert done.code == 130
    assert "skip -> ok" not in "".join(done.out.splitlines()[before:])


def test_verbose_prints_start_and_end_of_each_check(relay: RelayThread) -> None:
    with command("doctor", relay.url, *FLAGS, "-v") as asking:
        done = asking.end()
    assert re.search(r"relay\.packet begins", done.err)
    assert re.search(r"relay\.packet: ok after \d+\.\d+ s: both ways", done.err)


def test_ctrl_c_prints_finished_results(relay: RelayThread) -> None:
    """Here after the first checks: the relay accepts the connection and is silent."""
    relay.freeze()
    with command("doctor", relay.url, "--stun-port=-1", "--http-port=1", "--timeout=60") as asking:
        asking.wait_for_out("ok    tcp.ipv4")
        asking.interrupt()
        done = asking.end()
    assert done.code == 130
    # Results of other checks that had ended by then are printed as well; these vary.
    assert re.fullmatch(r"ok: .* \d+ not done, in .* s", done.out.splitlines()[-1])


def test_progress_is_shown_on_a_terminal(relay: RelayThread) -> None:
    """On a line of standard error that is erased in the end."""
    relay.freeze()
    master, slave = pty.openpty()
    asking = subprocess.Popen(
        [sys.executable, "-m", "pyderp", "doctor", relay.url, *DEAD],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=slave,
        env=environment(),
    )
    os.close(slave)
    shown = b""
    with contextlib.suppress(OSError):  # how a terminal ends
        while chunk := os.read(master, 4096):
            shown += chunk
    os.close(master)
    assert asking.wait(BOUND) == 2
    assert re.search(rb"\d+ of \d+ checks; now 127\.0\.0\.1:\d+ http\.upgrade", shown)
    assert shown.endswith(b"\r\x1b[K")


def test_a_closed_pipe_ends_it(relay: RelayThread) -> None:
    with command("doctor", relay.url, *DEAD, "--watch", "--every=1", "--json") as asking:
        asking.wait_for_out("summary")
        assert asking.popen.stdout is not None
        asking.popen.stdout.close()
        relay.refuse()  # a change, to be printed
        assert asking.popen.wait(BOUND) == 1


def test_proxies_of_the_environment_are_not_used(relay: RelayThread) -> None:
    with command("doctor", relay.url, *FLAGS, HTTPS_PROXY="http://127.0.0.1:1") as asking:
        done = asking.end()
    assert done.code == 0
    assert "the checks connect directly, and not through HTTPS_PROXY" in done.err


def test_quiet_omits_notes(tls_relay: RelayThread, tmp_path: Path) -> None:
    """cron would send a mail for them."""
    path = make_map(tmp_path / "map.hujson", node("900a", tls_relay, CertName=pin_of(tls_relay)))
    path.write_text(f"// a comment\n{path.read_text()}")
    flags = ("--http-port=1", "--timeout=20", "-q")
    with command("doctor", path, *flags, HTTPS_PROXY="http://127.0.0.1:1") as asking:
        done = asking.end()
    assert (done.code, done.out, done.err) == (0, "", "")


def test_watching_prints_once_that_a_map_cannot_be_read(
    tls_relay: RelayThread, tmp_path: Path
) -> None:
    path = make_map(tmp_path / "map.json", node("900a", tls_relay, CertName=pin_of(tls_relay)))
    with command("doctor", path, "--http-port=1", "--watch", "--every=1", "-v") as watching:
        watching.wait_for_out("ok: ")
        path.write_text("{")
        watching.wait_for("the last DERP map stays in use: ")
        watching.wait_for("round 5 begins")
        watching.interrupt()
        done = watching.end()
    assert done.err.count("stays in use") == 1
