"""`pyderp doctor` beside real relays: Go's of both versions, pyderp's, and all of them in a
mesh."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest

from .mesh.nodes import OTHER_MESH_KEY, mesh
from .relays import KINDS, NEWER, OLDER

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from .mesh.nodes import Node
    from .relays import Kind, Relay, Setup


def doctor(*args: object, ca: Path | None = None) -> tuple[int, dict[tuple[str, str], Any]]:
    """Run it; returns the exit status and the findings by subject and check."""
    command = [sys.executable, "-m", "pyderp", "doctor", "--json", "--timeout=20", *map(str, args)]
    command += ["--http-port=1"]
    env = {name: value for name, value in os.environ.items() if "proxy" not in name.lower()}
    if ca is not None:
        command += ["--ca", str(ca)]
    done = subprocess.run(command, capture_output=True, text=True, env=env, timeout=50)
    assert not done.stderr, done.stderr
    events = [json.loads(line) for line in done.stdout.splitlines()]
    checks = {(e["subject"], e["check"]): e for e in events if e["type"] == "check"}
    return done.returncode, checks


@pytest.mark.parametrize("setup", ["plain", "named", "pinned"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_healthy_relay_has_no_problem(
    relays: Callable[[Kind, Setup], Relay], kind: Kind, setup: Setup
) -> None:
    """All that clients need is ok, and each relay has the same results."""
    relay = relays(kind, setup)
    host = "localhost" if setup == "named" else "127.0.0.1"
    url = f"{'http' if setup == 'plain' else 'https'}://{host}:{relay.port}/derp"
    args = [url, "--stun-port=-1", *(["--pin", relay.pin] if relay.pin else [])]
    code, found = doctor(*args, ca=relay.ca)
    bad = {key: e["seen"] for key, e in found.items() if e["result"] in ("warn", "fail")}
    # `localhost` may have an IPv6 address, at which these relays do not listen.
    bad = {key: seen for key, seen in bad.items() if key[1] != "tcp.ipv6"}
    assert not bad
    assert code in ((0, 2) if setup == "named" else (0,))
    good = {check for (_, check), e in found.items() if e["result"] == "ok"}
    needed = {"http.upgrade", "http.websocket", "http.latency", "http.identity"}
    needed |= {f"relay.{name}" for name in ("admission", "packet", "large", "burst", "speed")}
    if setup != "plain":
        needed |= {"tls.handshake", "tls.meta", "http.faststart"}
    if kind != "pyderp":
        needed |= {"http.clock"}
    assert needed <= good


def node(name: str, each: Node) -> dict[str, Any]:
    return {
        "Name": name,
        "RegionID": 900,
        "HostName": "localhost",
        "IPv4": "127.0.0.1",
        "IPv6": "none",
        "DERPPort": each.port,
        "STUNPort": -1,
    }


def write_map(path: Path, nodes: Sequence[Node]) -> Path:
    found = [node(f"900{letter}", each) for letter, each in zip("abcd", nodes, strict=False)]
    region = {"RegionID": 900, "RegionCode": "lab", "Nodes": found}
    path.write_text(json.dumps({"Regions": {"900": region}}))
    return path


REGION = "region 900 (lab)"


@pytest.mark.timeout(120)
def test_a_mixed_mesh_passes_and_a_split_one_is_reported(tmp_path: Path) -> None:
    """Go's relays of both versions and pyderp's; then one of them has another mesh key."""
    with mesh([OLDER, NEWER, "pyderp"], tmp_path) as nodes:
        path = write_map(tmp_path / "map.json", nodes)
        code, found = doctor(path, ca=tmp_path / "localhost.crt")
        result = found[REGION, "region.mesh"]
        assert (code, result["result"]) == (0, "ok"), result
        assert len(result["data"]["seconds"]) == 6
    apart = tmp_path / "apart"
    apart.mkdir()
    keys = [OTHER_MESH_KEY, "0123456789abcdef" * 4]
    with mesh([OLDER, "pyderp"], apart, keys=keys) as nodes:
        path = write_map(apart / "map.json", nodes)
        code, found = doctor(path, "--timeout=5", ca=apart / "localhost.crt")
        result = found[REGION, "region.mesh"]
        assert (code, result["result"]) == (2, "fail"), result
        assert set(result["data"]["broken"]) == {"900a to 900b", "900b to 900a"}
