"""Go's decoder accepts and refuses the same maps as pyderp's, and its encoder writes the same
bytes."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

import pytest

from pyderp.errors import InvalidMap
from pyderp.maps.derpmap import DERPMap
from pyderp.maps.formats import MapKind, read_map_text
from tests.interop.peers import need
from tests.interop.tailscaled.namespaces import HUB_ADDRESS, private_network
from tests.interop.tailscaled.processes import daemon, quiet_environment
from tests.interop.tailscaled.tailnet import Node

_BOUND = 60.0
_REGION = '{"Regions":{"900":{"RegionID":900,"RegionCode":"lab","Nodes":[%s]}}}'
_NODE = '{"Name":"900a","RegionID":900,"HostName":"h"%s}'

TEXTS = {
    "empty object": "{}",
    "null": "null",
    "names in any case": '{"regions":{"900":{"REGIONID":900,"nodes":[{"hostname":"h"}]}}}',
    "unknown members": _REGION % (_NODE % ',"New":[1,{"x":null}]'),
    "later of two": _REGION % (_NODE % ',"STUNPort":"x","STUNPort":1').replace('"x"', "2"),
    "id with a sign and zeros": '{"Regions":{"+0900":{"RegionID":900}}}',
    "id below one": '{"Regions":{"-1":{"RegionID":-1}}}',
    "id beyond 2^53": '{"Regions":{"9007199254740993":{}}}',
    "null members": _REGION % (_NODE % ',"IPv4":null,"STUNOnly":null'),
    "half of a pair": _REGION % (_NODE % r',"IPv4":"\ud800"'),
    "exponent in a float": '{"Regions":{"1":{"Latitude":1e1}}}',
    "array": "[]",
    "text": '"x"',
    "trailing comma": '{"Regions":{},}',
    "comment": '{"Regions": /* x */ {}}',
    "regions in an array": '{"Regions":[]}',
    "id with a space": '{"Regions":{" 1":{}}}',
    "id with a point": '{"Regions":{"1.0":{}}}',
    "id that is text": '{"Regions":{"x":{}}}',
    "id of 65 bits": '{"Regions":{"9223372036854775808":{}}}',
    "port as text": _REGION % (_NODE % ',"DERPPort":"443"'),
    "port as a float": _REGION % (_NODE % ',"DERPPort":443.0'),
    "port of 65 bits": _REGION % (_NODE % ',"DERPPort":9223372036854775808'),
    "flag as a number": _REGION % (_NODE % ',"STUNOnly":1'),
    "name as a number": _REGION % '{"Name":900}',
    "nodes in an object": '{"Regions":{"1":{"Nodes":{}}}}',
    "latitude out of range": '{"Regions":{"1":{"Latitude":1e999}}}',
    "score as text": '{"HomeParams":{"RegionScore":{"1":"1"}}}',
    "byte order mark": "\ufeff{}",
}


@pytest.mark.parametrize("name", TEXTS)
def test_the_same_texts_are_maps(name: str, tmp_path: Path) -> None:
    """By derpprobe with only the probe of the map itself.

    It reads the first value of a file only; clients read a map that is the whole of a text.
    """
    path = tmp_path / "map.json"
    path.write_text(TEXTS[name])
    done = subprocess.run(
        [
            str(need("derpprobe")),
            *("-once", "-spread=false", f"-derp-map=file://{path}"),
            *("-mesh-interval=0", "-stun-interval=0", "-tls-interval=0"),
        ],
        env=dict(os.environ),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=_BOUND,
        check=False,
    )
    verdict = re.search(r"(good|bad): derpmap-probe: (.*)", done.stdout)
    assert verdict is not None, done.stdout
    try:
        read_map_text(path.read_bytes(), MapKind.JSON)
        ours = "good"
    except InvalidMap:
        ours = "bad"
    assert verdict[1] == ours, verdict[0]


FULL = """{
  "omitDefaultRegions": true,
  "Regions": {
    "900": {"RegionID": 900, "RegionCode": "lab", "RegionName": "<Lab> & Söhne \\u2028 🇩🇪",
      "Latitude": 48.1371, "Longitude": -1e-7, "New": {"x": 1},
      "Nodes": [
        {"Name": "900a", "RegionID": 900, "HostName": "a.example.com", "IPv4": "203.0.113.5",
         "IPv6": "none", "STUNPort": -1, "CanPort80": true, "Newer": [1]},
        {"Name": "900b", "RegionID": 900, "HostName": "b.example.com", "DERPPort": 8443,
         "CertName": "front.example.com", "STUNOnly": true, "InsecureForTests": true}]},
    "10": {"RegionID": 10, "RegionCode": "ten", "RegionName": "", "NoMeasureNoHome": true,
      "Nodes": [{"Name": "10a", "RegionID": 10, "HostName": "c.example.com"}]},
    "9": {"RegionID": 9, "RegionCode": "nine", "RegionName": "", "Avoid": true,
      "Nodes": [{"Name": "9a", "RegionID": 9, "HostName": "d.example.com"}]}
  },
  "HomeParams": {"RegionScore": {"900": 0.5, "10": 1}},
  "Unknown": true
}"""


def test_go_writes_the_same_bytes(tmp_path: Path) -> None:
    """A map passes through a control server and a tailscaled, which drop unknown members."""
    for program in ("tailscaled", "tailscale", "controlserver"):
        need(program)
    path = tmp_path / "map.json"
    path.write_text(FULL)
    with private_network() as network:
        args = [str(need("controlserver")), "-listen", f"{HUB_ADDRESS}:0", "-derp-map", str(path)]
        env = quiet_environment(tmp_path)
        with daemon(network.hub, args, tmp_path / "control.log", env) as control:
            url = control.wait_for_line(r"^ready (\S+)$")
            node = Node("a", network.a, tmp_path / "a")
            node.directory.mkdir()
            with node.run(tls=True):
                node.log_in(url)
                done = node.cli("debug", "derp-map")
    assert done.returncode == 0, done.stderr
    ours = DERPMap.from_json(FULL)
    lines = [line for line in ours.to_json(pretty=True).splitlines() if line]
    theirs = done.stdout.splitlines()
    assert DERPMap.from_json(done.stdout) == ours
    assert theirs == without_unknown(lines)


def without_unknown(lines: list[str]) -> list[str]:
    """Without the members that Go drops, which follow all others of their object."""
    text = re.sub(
        r',\n\t*"(?:Unknown|New|Newer)": (?:true|\{[^{}]*\}|\[[^\[\]]*\])', "", "\n".join(lines)
    )
    return text.splitlines()
