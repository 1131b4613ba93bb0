"""Upstream's prober against a region of pyderp's relays."""

from __future__ import annotations

import json
import os
import re
import subprocess
from typing import TYPE_CHECKING

from tests.interop.peers import need

from .nodes import mesh

if TYPE_CHECKING:
    from pathlib import Path

_BOUND = 40.0
"""Seconds for all probes together; a failing one takes twelve."""


def test_the_prober_finds_no_problem(tmp_path: Path) -> None:
    """TLS and STUN of each node, and packets between each two of them."""
    derpprobe = need("derpprobe")
    with mesh(["pyderp", "pyderp"], tmp_path, stun=True) as nodes:
        for node in nodes:
            node.logs("mesh with .*: connected")
        region = {
            "RegionID": 900,
            "RegionCode": "lab",
            "RegionName": "Lab",
            "Nodes": [
                {
                    "Name": f"900{letter}",
                    "RegionID": 900,
                    "HostName": "localhost",
                    "IPv4": "127.0.0.1",
                    "DERPPort": node.port,
                    "STUNPort": node.stun_port,
                }
                for letter, node in zip("ab", nodes, strict=True)
            ],
        }
        derp_map = tmp_path / "map.json"
        derp_map.write_text(json.dumps({"Regions": {"900": region}}))
        done = subprocess.run(
            [
                str(derpprobe),
                "-once",
                "-spread=false",
                f"-derp-map=file://{derp_map}",
                f"-mesh-psk-file={tmp_path / 'mesh0.key'}",
                "-bw-interval=15s",
                "-bw-probe-size-bytes=300000",
            ],
            env={**os.environ, **nodes[0].environment},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=_BOUND,
            check=False,
        )
    assert "bad: " not in done.stdout, done.stdout
    assert done.returncode == 0, done.stdout
    good = set(re.findall(r" good: (\S+):", done.stdout))
    pairs = [f"900{a}/900{b}" for a in "ab" for b in "ab"]
    assert good == {
        "derpmap-probe",
        *(f"derp/lab/900{a}/{what}" for a in "ab" for what in ("tls", "udp")),
        *(f"derp/lab/{pair}/{what}" for pair in pairs for what in ("mesh", "bw")),
    }, done.stdout
