"""Results of `tailscale debug derp` and of `pyderp doctor` for the same relay."""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING, Any

import pytest

from .namespaces import HUB_ADDRESS
from .peers import need_namespaces
from .tailnet import REGION_CODE, REGION_ID, Relay, tailnet

if TYPE_CHECKING:
    from pathlib import Path

    from tests.interop.relays import Kind

    from .tailnet import Node

pytestmark = pytest.mark.timeout(120)


def debug_derp(node: Node) -> dict[str, list[str]]:
    """Its own output."""
    outcome = node.cli("debug", "derp", REGION_CODE, timeout=60)
    assert outcome.returncode == 0, outcome.stderr
    found = json.loads(outcome.stdout)
    return {name: found.get(name) or [] for name in ("Info", "Warnings", "Errors")}


def doctor(node: Node, path: Path) -> tuple[int, dict[str, Any]]:
    """pyderp's results for the same map, from the same namespace; by check."""
    command = [sys.executable, "-m", "pyderp", "doctor", str(path), "--json", "--timeout=20"]
    done = node.namespace.run(*command)
    assert "Traceback" not in done.stderr, done.stderr
    events = [json.loads(line) for line in done.stdout.splitlines()]
    return done.returncode, {e["check"]: e for e in events if e["type"] == "check"}


@pytest.mark.parametrize("kind", ["derper", "derper-v1.104.7", "pyderp"])
def test_both_agree_about_a_relay(tmp_path: Path, kind: Kind) -> None:
    """Every result of Go's has an equal one of pyderp's, which has more checks, and takes a missing
    IPv6 for no error."""
    need_namespaces()
    with tailnet(Relay(kind, tls=True), tmp_path) as net:
        theirs = debug_derp(net.a)
        code, ours = doctor(net.a, tmp_path / "derpmap.json")
    said = {name: " | ".join(lines) for name, lines in theirs.items()}
    assert f"{REGION_ID}" in said["Info"]
    # Its message: "Successfully established a DERP connection with node …".
    assert "established a DERP connection" in said["Info"], theirs
    assert ours["http.upgrade"]["result"] == ours["relay.admission"]["result"] == "ok"
    # It takes a node without IPv6 for an error; the map says so, and pyderp skips the check.
    assert "IPv6" in said["Errors"] or "v6" in said["Errors"], theirs
    assert ours["names.ipv6"]["result"] == "skip"
    # It sends STUN to port 65535, where the map says that there is no STUN.
    assert "STUN response" in said["Warnings"], theirs
    assert ours["stun.ipv4"]["result"] == "skip"
    # No server listens on port 80 in this network.
    assert "generate_204" in said["Warnings"] or "port 80" in said["Warnings"], theirs
    assert ours["http.port80"]["result"] == "skip"
    assert code == 0, [e for e in ours.values() if e["result"] in ("warn", "fail")]
    # Checks that Go's does not have.
    assert ours["relay.packet"]["result"] == ours["relay.burst"]["result"] == "ok"
    assert ours["tls.pin"]["result"] == ours["http.faststart"]["result"] == "ok"


def test_both_report_a_relay_that_is_down(tmp_path: Path) -> None:
    need_namespaces()
    relay = Relay("pyderp", tls=True)
    with tailnet(relay, tmp_path) as net:
        path = tmp_path / "derpmap.json"
        document = json.loads(path.read_text())
        document["Regions"][str(REGION_ID)]["Nodes"][0]["DERPPort"] = 1
        path.write_text(json.dumps(document))
        code, ours = doctor(net.a, path)
    assert code == 2
    assert ours["tcp.ipv4"]["result"] == "fail"
    assert HUB_ADDRESS in ours["tcp.ipv4"]["seen"]
