"""`pyderp relay --show-map`: DERP maps in the forms that other programs read."""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from pyderp.cli.relay.showmap import show_map
from pyderp.maps.derpmap import DERPMap, own_node
from tests.cli.commands import Done
from tests.interop.peers import need
from tests.server.certificates import write_pair

IP = ("--hostname=203.0.113.7", "-c", "k")


@pytest.fixture
def shown(
    here: Callable[..., Done], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> Callable[..., Done]:
    monkeypatch.setenv("STATE_DIRECTORY", str(tmp_path))
    return lambda form, *args: here("relay", f"--show-map={form}", *args)


def test_json_is_a_map_of_this_relay_with_the_pin(
    shown: Callable[..., Done], tmp_path: Path
) -> None:
    done = shown("json", *IP, "-a", ":8443", "--certmode=manual", "--stun-port=3479")
    assert done.code == 0
    derp_map = DERPMap.from_json(done.out)
    derp_map.check()
    (region,) = derp_map.regions.values()
    (node,) = region.nodes
    assert (region.region_id, region.region_code) == (900, "relay")
    assert (node.name, node.host_name, node.ipv4) == ("900a", "203.0.113.7", "203.0.113.7")
    assert (node.derp_port, node.stun_port) == (8443, 3479)
    assert re.fullmatch("sha256-raw:[0-9a-f]{64}", node.cert_name)
    # The certificate is kept; the key is not made.
    assert (tmp_path / "certs" / "203.0.113.7.crt").exists()
    assert not (tmp_path / "relay.key").exists()
    assert (
        shown("json", *IP, "-a", ":8443", "--certmode=manual", "--stun-port=3479").out == done.out
    )


def test_usual_ports_are_left_out(shown: Callable[..., Done]) -> None:
    nodes = DERPMap.from_json(shown("json", "--hostname=derp1.example.com").out).regions[900].nodes
    assert json.loads(shown("json", "--hostname=derp1.example.com").out) == {
        "Regions": {
            "900": {
                "RegionID": 900,
                "RegionCode": "derp1",
                "RegionName": "derp1.example.com",
                "Nodes": [{"Name": "900a", "RegionID": 900, "HostName": "derp1.example.com"}],
            }
        }
    }
    assert nodes[0].stun_port == 0


def test_a_relay_without_stun_has_it_in_its_map(shown: Callable[..., Done]) -> None:
    done = shown("json", "--hostname=derp1.example.com", "--no-stun")
    assert DERPMap.from_json(done.out).regions[900].nodes[0].stun_port == -1


def test_behind_a_proxy_the_port_is_that_of_the_proxy(shown: Callable[..., Done]) -> None:
    for address in ("127.0.0.1:8080", "unix:/run/derp.sock"):
        done = shown("json", "-a", address, "--hostname=derp.example.com", "--public-port=443")
        (node,) = DERPMap.from_json(done.out).regions[900].nodes
        assert (node.host_name, node.derp_port) == ("derp.example.com", 0)


def test_the_port_of_a_proxy_before_plain_http_must_be_given(shown: Callable[..., Done]) -> None:
    """A Tailscale client speaks TLS, so a map with the relay's own port cannot work."""
    name = "--hostname=derp.example.com"
    plain = (("-a", ":8443", "--no-tls"), ("--dev",), ("-a", "unix:/run/x"))
    for line in (*plain, ("-a", "127.0.0.1:8443"), ("-a", "127.0.0.1:8443", "--no-tls")):
        done = shown("json", *line, name)
        assert (done.code, done.out) == (1, "")
        assert "this relay speaks plain HTTP on " in done.err
        assert "give --public-port, the port of the proxy" in done.err
        done = shown("json", *line, name, "--public-port=444")
        (node,) = DERPMap.from_json(done.out).regions[900].nodes
        assert node.derp_port == 444
    (node,) = DERPMap.from_json(shown("json", "-a", ":8443", name).out).regions[900].nodes
    assert (node.derp_port, node.stun_port) == (8443, 0)


def test_behind_a_proxy_stun_is_in_the_map_if_clients_reach_it(shown: Callable[..., Done]) -> None:
    line = ("-a", "127.0.0.1:8080", "--hostname=derp.example.com", "--public-port=443")
    (node,) = DERPMap.from_json(shown("json", *line).out).regions[900].nodes
    assert node.stun_port == -1
    for flags, port in ((("--stun-host=::",), 0), (("--stun-host=192.0.2.1",), 0)):
        (node,) = DERPMap.from_json(shown("json", *line, *flags).out).regions[900].nodes
        assert (node.derp_port, node.stun_port) == (0, port)


def test_certificates_from_files_are_not_pinned(shown: Callable[..., Done], tmp_path: Path) -> None:
    write_pair(tmp_path, "derp.example.com")
    done = shown("json", "--certmode=manual", "--certdir", tmp_path, "--hostname=derp.example.com")
    assert DERPMap.from_json(done.out).regions[900].nodes[0].cert_name == ""


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        (["--dev"], "give --hostname"),
        ([*IP, "--certmode=manual", "-a", ":0"], "port 0 is another one at each start"),
        ([*IP, "--no-derp"], "/derp, which this relay does not serve: --derp is off"),
        (
            [*IP, "--certmode=manual", "-a", "127.0.0.1:9"],
            "only this machine reaches 127.0.0.1:9, and a DERP map would send clients to 203.0",
        ),
        ([*IP, "--stun-port=0"], "port 0 is another one at each start"),
    ],
)
def test_a_relay_that_clients_cannot_find_has_no_map(
    shown: Callable[..., Done], flags: list[str], expected: str
) -> None:
    done = shown("json", *flags)
    assert (done.code, done.out) == (1, "")
    assert expected in done.err


NODE = own_node("relay.example.com", derp_port=8443, stun_port=3479)


def test_the_policy_file_s_member_is_its_json() -> None:
    text = show_map(NODE, "policy")
    assert json.loads("{" + text.removesuffix(",") + "}") == {
        "derpMap": json.loads(show_map(NODE, "json"))
    }


def test_all_forms_are_shown_under_headings() -> None:
    text = show_map(NODE, "all")
    for form in ("policy", "headscale", "json"):
        assert show_map(NODE, form) in text
    assert text.count("# For ") == 3


def test_tailscale_s_prober_reads_the_map(shown: Callable[..., Done], tmp_path: Path) -> None:
    derpprobe = need("derpprobe")
    path = tmp_path / "map.json"
    path.write_text(shown("json", *IP, "-a", ":9", "--certmode=manual").out)
    intervals = [f"-{each}-interval=0" for each in ("mesh", "tls", "stun")]
    done = subprocess.run(
        [derpprobe, "-once", f"-derp-map=file://{path}", *intervals],
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert "good: derpmap-probe" in done.stdout + done.stderr
