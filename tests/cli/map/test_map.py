"""`pyderp map`: its output as text and as JSON, and its exit status."""

from __future__ import annotations

import json
import socket
from collections.abc import Callable
from pathlib import Path

import pytest

from pyderp.maps.derpmap import DERPMap
from pyderp.maps.formats import read_map_text
from pyderp.testing import RelayThread
from tests.cli.commands import Done, command
from tests.cli.process import BOUND
from tests.mapio.serving import serving

Here = Callable[..., Done]

TWO = """{
  "Regions": {
    "900": {"RegionID": 900, "RegionCode": "fra", "RegionName": "Frankfurt", "Nodes": [
      {"Name": "900a", "RegionID": 900, "HostName": "a.example.com",
       "IPv4": "192.0.2.7", "CanPort80": true, "X": [1]}]},
    "901": {"RegionID": 901, "RegionCode": "nyc", "Nodes": [
      {"Name": "901a", "RegionID": 901, "HostName": "b.example.com", "STUNPort": -1},
      {"Name": "901b", "RegionID": 901, "HostName": "c.example.com", "IPv4": "192.0.2.1"}]}
  }, "comment": "mine"
}"""


@pytest.fixture
def two(tmp_path: Path) -> Path:
    path = tmp_path / "two.json"
    path.write_text(TWO)
    return path


def test_show_prints_regions_and_nodes(here: Here, two: Path) -> None:
    done = here("map", "show", two)
    assert done.code == 0
    assert done.out.splitlines() == [
        f"{two}: 2 regions, 3 nodes",
        "",
        "900 fra, Frankfurt",
        "  900a  a.example.com  port 443  STUN 3478  IPv4 192.0.2.7  IPv6 by name  port 80",
        "",
        "901 nyc",
        "  901a  b.example.com  port 443  no STUN    IPv4 by name    IPv6 by name",
        "  901b  c.example.com  port 443  STUN 3478  IPv4 192.0.2.1  IPv6 by name",
    ]


def test_show_names_all_that_is_unusual(here: Here, tmp_path: Path) -> None:
    path = tmp_path / "map.json"
    nodes = [
        {"Name": "1a", "HostName": "a", "CertName": f"sha256-raw:{'ab' * 32}", "DERPPort": 8443},
        {"Name": "1b", "HostName": "b", "CertName": "c.example.com", "InsecureForTests": True},
        {"Name": "1c", "HostName": "c", "STUNOnly": True, "STUNTestIP": "192.0.2.9"},
    ]
    region = {"RegionID": 1, "RegionCode": "x", "NoMeasureNoHome": True, "Avoid": True}
    regions = {
        "1": region | {"Nodes": [{"RegionID": 1, **node} for node in nodes]},
        "2": {"RegionID": 2, "RegionCode": "y", "Nodes": []},
    }
    scores = {"RegionScore": {"1": 0.5}}
    path.write_text(
        json.dumps({"Regions": regions, "omitDefaultRegions": True, "HomeParams": scores})
    )
    assert here("map", "show", path).out.splitlines() == [
        f"{path}: 2 regions, 3 nodes",
        "without Tailscale's own regions",
        "",
        "1 x, never home, avoided, latency times 0.5",
        "  1a  a  port 8443  STUN 3478  IPv4 by name  IPv6 by name  pin abababababab…",
        "  1b  b  port 443   STUN 3478  IPv4 by name  IPv6 by name  "
        "certificate for c.example.com, certificate not verified",
        "  1c  c  no DERP    STUN 3478  IPv4 by name  IPv6 by name  STUN at 192.0.2.9",
        "",
        "2 y",
        "  no nodes",
    ]


def test_show_prints_json(here: Here, two: Path) -> None:
    shown = json.loads(here("map", "show", two, "--json").out)
    assert shown.pop("map") == json.loads(DERPMap.from_json(TWO).to_json())
    assert shown == {"origin": str(two), "kind": "json", "copied": None, "warnings": []}


def test_text_of_a_map_cannot_control_a_terminal(here: Here, tmp_path: Path) -> None:
    path = tmp_path / "map.json"
    path.write_text('{"Regions": {"1": {"RegionName": "\\u001b[2J\\n", "Nodes": [{}]}}}')
    for name in ("show", "lint"):
        done = here("map", name, path)
        assert "\x1b" not in done.out
    assert "\\x1b[2J\\n" in here("map", "show", path).out


def test_show_describes_a_running_relay(here: Here) -> None:
    """The node is the one that the relay has itself, as far as it can be asked."""
    with RelayThread(tls=True) as relay:
        host, port = relay.address
        shown = json.loads(here("map", "show", f"https://{host}:{port}", "--json").out)
    (node,) = shown["map"]["Regions"]["900"]["Nodes"]
    assert shown["kind"] == "relay"
    assert (node["HostName"], node["DERPPort"]) == (host, port)
    assert node["CertName"].startswith("sha256-raw:")


@pytest.mark.parametrize(
    ("text", "code", "last"),
    [
        (TWO.replace('"X": [1]', '"IPv6": ""').replace(', "comment": "mine"', ""), 0, "nothing f"),
        (TWO, 0, "2 hints"),
        (TWO.replace('"CanPort80": true', '"CanPort80": false'), 1, "1 warning, 2 hints"),
        (TWO.replace("901b", "900a"), 2, "1 error, 2 hints"),
    ],
)
def test_lint_ends_with_a_summary_and_a_status(
    here: Here, tmp_path: Path, text: str, code: int, last: str
) -> None:
    path = tmp_path / "map.json"
    path.write_text(text)
    done = here("map", "lint", path)
    assert done.code == code, done.out
    assert done.out.splitlines()[-1].startswith(f"{path}: {last}")


def test_lint_prints_place_and_advice(here: Here, two: Path) -> None:
    two.write_text(TWO.replace("901b", "900a"))
    done = here("map", "lint", two, "--ignore", "unknown-member")
    assert done.out.splitlines() == [
        'error: Regions["901"].Nodes[1].Name: \'900a\' is the name of Regions["900"].Nodes[0], '
        "too: measurements of one count for the other, and derpprobe refuses the map "
        "[duplicate-name]",
        "  give each node a name that is unique in the map, such as 901b",
        f"{two}: 1 error",
    ]


@pytest.mark.parametrize(
    ("host", "shown"), [(r"a\rb", r"'a\rb'"), (r"a\u001b[1mb", r"'a\x1b[1mb'")]
)
def test_quoted_values_are_escaped_once(here: Here, two: Path, host: str, shown: str) -> None:
    text = TWO.replace('"HostName": "', f'"HostName": "{host}')
    assert text != TWO
    new = two.with_name("new.json")
    new.write_text(text)
    assert f"HostName {shown[:-1]}" in here("map", "lint", new).out
    assert f"becomes {shown[:-1]}" in here("map", "diff", two, new).out


def test_lint_accepts_headscale_without_tailscale_s_regions(here: Here, tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    path.write_text(
        "server_url: https://a.example.com\nderp:\n  urls: []\n  server:\n    enabled: true\n"
    )
    findings = json.loads(here("map", "lint", path, "--json").out)["findings"]
    assert "derp.urls" in [f["path"] for f in findings if f["rule"] == "omits-default-regions"]


def test_new_with_port_80_names_what_is_missing(here: Here, tmp_path: Path) -> None:
    path = tmp_path / "map.json"
    path.write_text(here("map", "new", "derp.example.com", "--can-port-80").out)
    done = here("map", "lint", path)
    assert (done.code, "[port-80-unused]" in done.out) == (1, True)


def test_lint_prints_json(here: Here, two: Path) -> None:
    done = here("map", "lint", two, "--json")
    report = json.loads(done.out)
    assert (report["origin"], report["errors"], report["warnings"]) == (str(two), 0, 0)
    assert report["hints"] == 2
    assert {tuple(finding) for finding in report["findings"]} == {
        ("severity", "rule", "path", "text", "advice")
    }


def test_lint_online_asks_the_relay(here: Here, tmp_path: Path) -> None:
    """A running pinned relay is fine; after its end it is reported."""
    with RelayThread(tls=True) as relay:
        host, port = relay.address
        shown = json.loads(here("map", "show", f"https://{host}:{port}", "--json").out)
        path = tmp_path / "map.json"
        path.write_text(json.dumps(shown["map"]))
        found = json.loads(here("map", "lint", path, "--online", "--json").out)["findings"]
        assert not [f for f in found if f["severity"] == "error"]
        assert "netcheck MAP --relay" in here("map", "lint", path, "--online").err
    done = here("map", "lint", path, "--online", "--json")
    assert done.code == 2
    errors = [f for f in json.loads(done.out)["findings"] if f["severity"] == "error"]
    assert [error["rule"] for error in errors] == ["node-silent"]


def test_progress_is_printed_on_terminals_only(
    here: Here, two: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pyderp.cli.map.check._PAUSE", 0.0)
    two.write_text(TWO.replace("example.com", "invalid").replace('"192.0.2.1"', '"127.0.0.1"'))
    assert "nodes tried" not in here("map", "lint", two, "--online", "--timeout", 1).err


def test_ctrl_c_prints_what_was_found_so_far(tmp_path: Path) -> None:
    """The relay accepts the connection and never answers."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        node = {
            "Name": "900a",
            "RegionID": 900,
            "HostName": "127.0.0.1",
            "DERPPort": listener.getsockname()[1],
            "STUNPort": -1,
        }
        path = tmp_path / "map.json"
        path.write_text(json.dumps({"Regions": {"900": {"RegionID": 900, "Nodes": [node]}}}))
        with command("map", "lint", path, "--online", "--timeout", 60) as running:
            listener.settimeout(BOUND)
            with listener.accept()[0]:
                running.interrupt()
                done = running.end()
    assert done.code == 130
    assert "stopped after 0 nodes" in done.err
    assert "[ip-without-pin]" in done.out


def test_diff_prints_changes_for_clients(here: Here, two: Path, tmp_path: Path) -> None:
    new = tmp_path / "new.json"
    new.write_text(TWO.replace('"192.0.2.1"', '"none"'))
    assert here("map", "diff", two, two).out == "no change for clients\n"
    done = here("map", "diff", two, new)
    assert done.code == 1
    assert done.out.splitlines()[-1] == (
        "Regions[\"901\"].Nodes[1].IPv4: region 901 (nyc), 901b: IPv4 '192.0.2.1' becomes 'none': "
        "clients no longer reach it by IPv4"
    )
    report = json.loads(here("map", "diff", two, new, "--json").out)
    assert (report["old"], report["new"], len(report["changes"])) == (str(two), str(new), 2)


@pytest.mark.parametrize("form", ["json", "headscale", "policy"])
def test_convert_keeps_unknown_members(here: Here, two: Path, tmp_path: Path, form: str) -> None:
    """Converted there and back, the map is the same to the byte."""
    done = here("map", "convert", two, "--to", form)
    assert (done.code, done.err) == (0, "")
    other = tmp_path / "other"
    other.write_text(done.out)
    back = here("map", "convert", other, "--to", "json")
    assert back.out.rstrip("\n") == DERPMap.from_json(TWO).to_json(pretty=True)
    assert '"mine"' in back.out


def test_convert_names_what_is_lost(here: Here, two: Path) -> None:
    two.write_text('{"Regions": {}, "omitDefaultRegions": true, /* x */}')
    done = here("map", "convert", two, "--to", "headscale")
    assert "has comments or trailing commas" in done.err
    assert "headscale does not look at omitdefaultregions" in done.err
    for args in (["show", two], ["lint", two], ["diff", two, two]):
        assert here("map", *args).err == ""


def test_new_prints_a_map_of_host_names(here: Here) -> None:
    done = here("map", "new", "derp1.example.com", "derp2.example.com", "--port", 8443)
    derp_map = DERPMap.from_json(done.out)
    (region,) = derp_map.regions.values()
    assert (region.region_id, region.region_code, region.region_name) == (
        900,
        "derp1",
        "derp1.example.com",
    )
    assert [(n.name, n.host_name, n.derp_port) for n in region.nodes] == [
        ("900a", "derp1.example.com", 8443),
        ("900b", "derp2.example.com", 8443),
    ]


def test_new_takes_an_address_with_a_pin(here: Here) -> None:
    pin = "AB:" * 31 + "AB"
    args = ["192.0.2.1", "--pin", pin, "--no-stun", "--region", 950, "--code", "x"]
    done = here("map", "new", *args, "--to", "headscale", "--ipv6", "2001:db8::1")
    (region,) = read_map_text(done.out.encode()).map.regions.values()
    (node,) = region.nodes
    assert (region.region_id, region.region_code) == (950, "x")
    assert (node.name, node.ipv4, node.ipv6) == ("950a", "192.0.2.1", "2001:db8::1")
    assert (node.cert_name, node.stun_port) == ("sha256-raw:" + "ab" * 32, -1)


@pytest.mark.parametrize(
    ("args", "error"),
    [
        (["new", "a:443"], "give the name alone, and the port as --port"),
        (["new", "https://a/"], "give the name alone"),
        (["new", "a", "A."], "a host is given twice"),
        (["new", "a", "--pin", "x"], "want 64 hex digits"),
        (["new", "a", "--ipv4", "::1"], "'::1' is neither an IPv4 address nor none"),
        (["new", "a", "b", "--ipv4", "192.0.2.1"], "give one HOST"),
        (["new", "a", "--to", "yaml"], "want one of json, headscale, policy"),
        (["show", "x", "--from", "yaml"], "want one of json, policy, headscale, relay"),
        (["lint", "x", "--ignore", "all"], "no rule 'all'; there are no-regions, "),
        (["show", "/missing"], "cannot read the DERP map /missing: No such file"),
        (["lint", "/missing"], "cannot read the DERP map /missing: No such file"),
        (["show", "http://127.0.0.1:1"], "with TLS, and http:// has none"),
        (["show", "x", "--cache", "y"], "x is not a URL"),
        (["show", ""], "no DERP map is given"),
        (["show", "ftp://u:secret@x/y"], "want http:// or https://, or a file"),
        (["diff", "-", "-"], "standard input can be one of the two maps only"),
    ],
)
def test_a_wrong_command_line_exits_2(here: Here, args: list[str], error: str) -> None:
    """A map that cannot be read exits 2 as well."""
    done = here("map", *args)
    assert done.code == 2
    assert error in " ".join(done.err.replace("│", " ").split())
    assert "Traceback" not in done.err
    assert "secret" not in done.err


def test_a_number_out_of_range_names_the_whole_range(here: Here) -> None:
    done = here("map", "new", "derp.example.com", "--region", "0")
    assert done.code == 2
    assert "want 1 to 9007199254740991" in done.err


def test_a_mistake_in_a_map_has_its_place(here: Here, two: Path) -> None:
    two.write_text(TWO.replace('"STUNPort": -1', '"STUNPort": "x"'))
    done = here("map", "lint", two, "--json")
    assert done.code == 2
    wanted = f'{two}: Regions["901"].Nodes[0].STUNPort: want an integer, got a string'
    assert done.event("error")["error"] == wanted
    two.write_text(TWO.replace("}]},", "}]}", 1))
    done = here("map", "show", two)
    wanted = "not JSON: expecting ',' delimiter in line 6, column 5: want a DERP map: JSON, "
    assert f"{two}: {wanted}" in done.err


def test_a_map_from_a_url_can_have_a_copy(
    here: Here, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The name of the copy may be in the environment."""
    cache = tmp_path / "copy.json"
    monkeypatch.setenv("PYDERP_MAP_CACHE", str(cache))
    with serving(body=TWO.encode()) as server:
        assert here("map", "show", server.url).code == 0
    done = here("map", "show", server.url)
    assert done.code == 0
    assert "so this is the copy of " in done.err
    monkeypatch.delenv("PYDERP_MAP_CACHE")
    done = here("map", "show", server.url)
    assert (done.code, done.out) == (2, "")


def test_help_has_examples(here: Here) -> None:
    for name in ("show", "lint", "diff", "new", "convert"):
        done = here("map", name, "--help")
        assert done.code == 0
        assert f"pyderp map {name}" in done.out
