"""Flags that several commands share: the relay, the client's key, and trust in certificates."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeAlias

import pytest

from pyderp import NodePrivate
from pyderp.testing import RelayThread
from tests.interop.relays import Kind, Setup, each_derper
from tests.interop.relays import running as interop_running
from tests.server.certificates import write_pair

from .commands import Done, listening
from .commands import run as run_pyderp
from .process import running

Here: TypeAlias = Callable[..., Done]

NAME = "localhost"
OTHER = "derp.example.com"
ONCE = ("-c1", "-i0")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("certificates")


@pytest.fixture(scope="module")
def named(folder: Path) -> Iterator[int]:
    """The port of a relay whose certificate is for `NAME` and for `OTHER`."""
    write_pair(folder, NAME, names=[NAME, OTHER])
    flags = ("--certmode=manual", "--http-port=-1", "--certdir", folder, "--hostname", NAME)
    with running("--dev", "-a", "127.0.0.1:0", *flags) as process:
        yield process.address()[1]


@pytest.fixture(scope="module")
def pinned() -> Iterator[RelayThread]:
    with RelayThread(tls=True) as relay:
        yield relay


# URLs


@pytest.mark.parametrize("tail", ["/derp", "", "/"])
def test_a_url_without_a_path_gets_slash_derp(relay: RelayThread, here: Here, tail: str) -> None:
    assert here("ping", relay.url.removesuffix("/derp") + tail, *ONCE).code == 0


@pytest.mark.parametrize("flags", [[], ["--websocket"], ["--ipv6"]])
def test_options_to_connect_work(relay: RelayThread, here: Here, flags: list[str]) -> None:
    assert here("ping", relay.url, *ONCE, *flags).code == 0


def test_ca_makes_a_certificate_trusted(here: Here, folder: Path, named: int) -> None:
    url = f"https://{NAME}:{named}/derp"
    ca = folder / f"{NAME}.crt"
    assert here("ping", url, *ONCE, "--ca", ca).code == 0
    assert here("ping", url, *ONCE, "--ca", ca, "--websocket").code == 0
    assert here("ping", url, *ONCE).code == 1


def test_cert_name_is_the_name_that_is_verified(here: Here, folder: Path, named: int) -> None:
    flags = (f"https://{NAME}:{named}", *ONCE, "--ca", folder / f"{NAME}.crt", "--cert-name")
    assert here("ping", *flags, OTHER).code == 0
    assert here("ping", *flags, "third.example.com").code == 1


def test_insecure_takes_any_certificate_and_warns(here: Here, pinned: RelayThread) -> None:
    assert here("ping", pinned.url, *ONCE).code == 1
    done = run_pyderp("ping", pinned.url, *ONCE, "--insecure")
    assert done.code == 0
    assert "pyderp: --insecure: any machine in between can pose as the relay\n" in done.err


def test_a_pin_is_accepted_in_all_its_forms(here: Here, pinned: RelayThread) -> None:
    pin = pinned.region.nodes[0].cert_name
    digits = pin.removeprefix("sha256-raw:")
    spaced = ":".join(digits[i : i + 2] for i in range(0, 64, 2)).upper()
    for form in (pin, digits, spaced):
        assert here("ping", pinned.url, *ONCE, "--pin", form).code == 0


def test_the_pin_of_a_self_signed_relay_is_accepted(here: Here, pinned: RelayThread) -> None:
    pin = pinned.region.nodes[0].cert_name
    with listening(pinned.url, "--pin", pin, "--count", 1) as (listener, key):
        assert here("send", pinned.url, key, "--pin", pin, "-m", "hello").code == 0
        assert listener.end().code == 0


# Maps


def write_map(path: Path, *relays: RelayThread) -> Path:
    regions = {}
    for number, relay in enumerate(relays, start=900):
        node = relay.region.nodes[0]
        regions[str(number)] = {
            "RegionID": number,
            "RegionCode": f"r{number}",
            "Nodes": [
                {
                    "Name": f"{number}a",
                    "RegionID": number,
                    "HostName": node.host_name,
                    "DERPPort": node.derp_port,
                    "CertName": node.cert_name,
                }
            ],
        }
    path.write_text(json.dumps({"Regions": regions}))
    return path


def test_the_only_region_of_a_map_need_not_be_named(
    here: Here, tmp_path: Path, pinned: RelayThread
) -> None:
    path = write_map(tmp_path / "map.json", pinned)
    assert here("ping", "--derp-map", path, *ONCE).code == 0
    done = run_pyderp("ping", "--derp-map", "-", *ONCE, stdin=path.read_bytes())
    assert done.code == 0


@pytest.mark.parametrize("region", ["901", "r901"])
def test_a_region_is_named_by_number_or_code(
    here: Here, tmp_path: Path, pinned: RelayThread, region: str
) -> None:
    with RelayThread(tls=True) as wrong:
        path = write_map(tmp_path / "map.json", wrong, pinned)
        assert here("ping", "--derp-map", path, "--region", region, *ONCE).code == 0
        assert wrong.counters.connections == 0


def test_an_unknown_region_lists_the_regions(
    here: Here, tmp_path: Path, pinned: RelayThread
) -> None:
    path = write_map(tmp_path / "map.json", pinned, pinned)
    done = here("ping", "--derp-map", path)
    assert done.code == 2
    assert "give --region; its regions: 900 (r900), 901 (r901)" in done.err
    assert "it has no region 'fra'" in here("ping", "--derp-map", path, "--region", "fra").err


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (None, "cannot read the DERP map"),
        ("not JSON", "map.json: "),
        ('{"Regions": {"x": {}}}', "map.json: "),
        ('{"Regions": {}}', "its Regions are empty"),
        ("{}", "its Regions are empty"),
        ('{"Region": {}}', "it has no Regions: a DERP map in JSON is wanted"),
        ('{"derpMap": {"Regions": {}}}', "a policy file of Tailscale: a DERP map in JSON"),
        ('{"acls": []}', "a policy file of Tailscale: a DERP map in JSON"),
        ('// ours\n{"derpMap": {"Regions": {}},}', "a policy file of Tailscale, with comments"),
        ('{"Regions": {}, // none\n}', "comments or trailing commas (HuJSON)"),
        ('/* none */ {"Regions": {}}', "comments or trailing commas (HuJSON)"),
        ("# ours\nregions:\n  900:\n    regionid: 900\n", "this is YAML, as headscale reads it"),
        ('\ufeff{"Regions": {}}', "it begins with a byte order mark"),
    ],
)
def test_a_map_that_cannot_be_used_is_named(
    here: Here, tmp_path: Path, text: str | None, expected: str
) -> None:
    path = tmp_path / "map.json"
    if text is not None:
        path.write_text(text)
    done = here("ping", "--derp-map", path)
    assert done.code == 2
    assert expected in done.err
    assert done.err.count("\n") == 1


# Keys


def test_the_key_and_the_mesh_key_come_from_files(
    relay: RelayThread, here: Here, tmp_path: Path
) -> None:
    key, mesh = tmp_path / "key", tmp_path / "mesh"
    mine = NodePrivate.generate()
    key.write_text(mine.to_text())
    mesh.write_text("ab" * 32)
    done = here("listen", relay.url, "--key", key, "--mesh-key", mesh, "--timeout", 0.2)
    assert f"listening as {mine.public}" in done.err
    mesh.write_text("secret")
    done = here("listen", relay.url, "--mesh-key", mesh)
    assert "the mesh key file" in done.err
    assert "secret" not in done.err
    assert "pyderp key new -o" in here("listen", relay.url, "--key", tmp_path / "none").err


# Flags that exclude each other


@pytest.mark.parametrize(
    ("args", "expected"),
    [
        ([], "give the relay's URL, or --derp-map"),
        (["http://h", "--region", "1"], "--region needs --derp-map"),
        (["http://h", "--derp-map", "f"], "a URL or --derp-map, not both"),
        (["--derp-map", "f", "--pin", "0" * 64], "--pin: not with --derp-map, whose nodes have"),
        (["https://h", "--pin", "0" * 63], "want 64 hex digits"),
        (["https://h", "--pin", "0" * 64, "--cert-name", "x"], "give one of them"),
        (["http://h", "--pin", "0" * 64], "only with https://"),
        (["http://h", "--insecure"], "only with https://"),
        (["https://h", "--insecure", "--pin", "0" * 64], "not with --pin or --cert-name"),
        (["https://h", "--insecure", "--cert-name", "x"], "not with --pin or --cert-name"),
        (["https://h/else", "--insecure"], "only with a URL like https://HOST[:PORT]/derp"),
        (["https://h", "--connect-timeout", "0"], "0.001"),
    ],
)
def test_a_wrong_command_line_is_exit_status_2(here: Here, args: list[str], expected: str) -> None:
    done = here("ping", *args)
    assert done.code == 2
    assert expected in done.err
    assert expected in here("ping", *args, "--json").event("error")["error"]


@pytest.mark.parametrize(
    "url", ["ftp://h/derp", "relay.example.com", "http://[::1/derp", "http://h:x"]
)
@pytest.mark.parametrize("flags", [[], ["--ipv6"]])
def test_an_invalid_url_is_refused(here: Here, url: str, flags: list[str]) -> None:
    done = here("ping", url, *flags, "--json")
    assert done.code == 2
    assert done.err.startswith("pyderp: ")
    assert done.err == f"pyderp: {done.event('error')['error']}\n"
    assert "NewClient" not in done.err + done.out


def test_a_url_without_a_scheme_is_refused_with_the_whole_url(here: Here) -> None:
    done = here("ping", "127.0.0.1:3340")
    assert done.code == 2
    assert done.err.startswith(
        "pyderp: '127.0.0.1:3340' has no scheme: write https://127.0.0.1:3340/derp, or http://"
    )


@pytest.mark.parametrize("proxy", ["ftp://me:secret@h:1", "http://me:secret@", "\x00me:secret@h"])
def test_an_invalid_proxy_is_refused_and_no_password_shown(here: Here, proxy: str) -> None:
    done = here("ping", "https://h", "--proxy", proxy)
    assert done.code == 2
    assert "pyderp: --proxy: " in done.err
    assert "secret" not in done.err


@pytest.mark.parametrize(
    "url",
    [
        "joe:secret@127.0.0.1/derp",
        "http:/joe:secret@127.0.0.1/derp",
        "http://127.0.0.1:secret/derp",
        "http://secret@127.0.0.1:1/derp",
        "https://joe:secret@127.0.0.1:1/derp",
    ],
)
@pytest.mark.parametrize("flags", [["-v"], ["--json", "--insecure"]])
def test_no_part_of_a_password_in_a_url_is_shown(here: Here, url: str, flags: list[str]) -> None:
    done = here("ping", url, "-c1", *flags)
    assert done.code != 0
    assert "secret" not in done.out + done.err


def test_no_part_of_an_invalid_proxy_is_shown(
    here: Here, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("HTTPS_PROXY", "http://h:x/secret")
    done = here("ping", "https://relay.invalid", "-c1", "--ipv6", "-v")
    assert "ignoring HTTPS_PROXY" in caplog.text
    assert "secret" not in done.out + done.err + caplog.text


# Checked before anything is connected


@pytest.mark.parametrize("flags", [["--pin", "0" * 64], ["--cert-name", "x"]])
def test_the_environment_does_not_turn_off_the_tls_of_a_url(
    here: Here, relay: RelayThread, monkeypatch: pytest.MonkeyPatch, flags: list[str]
) -> None:
    monkeypatch.setenv("TS_DEBUG_USE_DERP_HTTP", "1")
    done = here("ping", relay.url.replace("http://", "https://"), "-c1", *flags)
    assert done.code == 1
    assert "the server does not speak TLS on this port" in done.err


def test_a_pin_holds_with_any_environment(
    here: Here, pinned: RelayThread, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TS_DEBUG_USE_DERP_HTTP", "1")
    pin = pinned.region.nodes[0].cert_name
    assert here("ping", pinned.url, *ONCE, "--pin", pin).code == 0
    assert here("ping", pinned.url, *ONCE, "--pin", "0" * 64).code == 1


@pytest.mark.parametrize("content", [None, "no certificate"])
def test_a_ca_that_cannot_be_used_is_refused_at_once(
    here: Here, tmp_path: Path, content: str | None
) -> None:
    path = tmp_path / "ca.pem"
    if content is not None:
        path.write_text(content)
    done = here("ping", "http://127.0.0.1:1", "--ca", path)
    assert done.code == 2
    assert f"pyderp: --ca: {path}: no certificates could be read" in done.err


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"DERPPort": 99999}, "DERPPort 99999 is not from 0 to 65535"),
        ({"HostName": ""}, "no HostName"),
        ({"CertName": "sha256-raw:" + "A" * 64}, "must have 64 lower-case hex digits after it"),
    ],
)
def test_a_map_that_is_wrong_is_refused(
    here: Here, tmp_path: Path, pinned: RelayThread, change: dict[str, object], expected: str
) -> None:
    path = write_map(tmp_path / "map.json", pinned)
    document = json.loads(path.read_text())
    document["Regions"]["900"]["Nodes"][0] |= change
    path.write_text(json.dumps(document))
    done = here("ping", "--derp-map", path, *ONCE, "--json")
    assert done.code == 2
    assert f"the DERP map {path} is wrong: region 900, node '900a': " in done.err
    assert expected in done.event("error")["error"]


def test_errors_in_other_regions_are_warnings(
    here: Here, tmp_path: Path, pinned: RelayThread, caplog: pytest.LogCaptureFixture
) -> None:
    path = write_map(tmp_path / "map.json", pinned, pinned)
    document = json.loads(path.read_text())
    document["Regions"]["901"]["Nodes"][0]["DERPPort"] = 99999
    path.write_text(json.dumps(document))
    assert here("ping", "--derp-map", path, "--region", 900, *ONCE).code == 0
    assert "in what is not used: region 901, node '901a': DERPPort 99999" in caplog.text
    done = here("ping", "--derp-map", path, "--region", 901, *ONCE)
    assert done.code == 2
    assert "is wrong: region 901" in done.err


def test_a_node_without_a_host_name_is_reached_by_its_address(
    here: Here, tmp_path: Path, pinned: RelayThread
) -> None:
    """As by Go's client, without a server name in the handshake."""
    path = write_map(tmp_path / "map.json", pinned)
    document = json.loads(path.read_text())
    node = document["Regions"]["900"]["Nodes"][0]
    node |= {"HostName": "", "CertName": "", "IPv4": "127.0.0.1", "InsecureForTests": True}
    path.write_text(json.dumps(document))
    done = here("ping", "--derp-map", path, *ONCE)
    assert (done.code, done.err) == (0, "")


def test_warnings_about_a_map_are_logged(
    here: Here, tmp_path: Path, pinned: RelayThread, caplog: pytest.LogCaptureFixture
) -> None:
    path = write_map(tmp_path / "map.json", pinned)
    assert here("ping", "--derp-map", path, *ONCE, "-v").code == 0
    assert "only one region: if it fails, clients have no other" in caplog.text


# Go's relay


@each_derper
@pytest.mark.parametrize("setup", ["plain", "named", "pinned"])
def test_all_commands_work_with_go_s_relay(
    here: Here, tmp_path: Path, setup: Setup, derper: Kind
) -> None:
    with interop_running(derper, setup, tmp_path) as relay:
        host = "localhost" if setup == "named" else "127.0.0.1"
        url = f"{'http' if setup == 'plain' else 'https'}://{host}:{relay.port}/derp"
        flags: list[object] = ["--ca", relay.ca] if relay.ca else []
        flags += ["--pin", relay.pin] if relay.pin else []
        with listening(url, *flags, "--sealed", "--count", 1) as (listener, key):
            done = here("ping", url, key, *ONCE, *flags)
            assert (done.code, "1 received" in done.out) == (0, True)
            assert here("ping", url, *ONCE, *flags).code == 0
            # The listener ends when it has the packet, and the relay may report that before the
            # wait ends.
            sent = here("send", url, key, "-m", "hello", "--sealed", "--wait", 0, *flags)
            assert sent.code == 0
            assert listener.end().out.endswith(" hello\n")
        assert here("send", url, key, "-m", "hello", "--wait", 1, *flags).code == 3
