"""Command lines of Go's `derper`, exactly as unit files and compose files have them."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from pyderp.cli.main import derper_main, main
from pyderp.cli.relay import run as relayrun
from pyderp.cli.relay.flags import FLAGS
from pyderp.cli.relay.goflags import usage
from pyderp.config import ACMETLS, ManualTLS
from pyderp.config.tls import GOOGLE, LETSENCRYPT
from pyderp.errors import ConfigError
from tests.cli.commands import Done
from tests.interop.peers import need
from tests.interop.relays import Kind, each_derper

from .planning import Planned, planner


@pytest.fixture(autouse=True)
def _as_root_at_home(monkeypatch: pytest.MonkeyPatch) -> None:
    for flag in FLAGS:
        monkeypatch.delenv(flag.variable, raising=False)
    for name in ("XDG_CACHE_HOME", "STATE_DIRECTORY", "TAILSCALE_DERPER_MESH_KEY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", "/nowhere")
    monkeypatch.setattr("os.geteuid", lambda: 0)


@pytest.fixture
def plan(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Planned]:
    make = planner(monkeypatch)
    return lambda line: make(*shlex.split(line), derper=True)


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., Done]:
    def never(*_: object) -> None:
        raise AssertionError("it would run")

    monkeypatch.setattr(relayrun, "_run", never)

    def run(line: str) -> Done:
        monkeypatch.setattr(sys, "argv", ["pyderp-derper", *shlex.split(line)])
        with pytest.raises(SystemExit) as caught:
            derper_main()
        out, err = capsys.readouterr()
        assert isinstance(caught.value.code, int)
        return Done(caught.value.code, out, err)

    return run


def manual(certdir: str, hostname: str, http_port: int | None = 80) -> ManualTLS:
    return ManualTLS(certdir=Path(certdir), hostname=hostname, http_port=http_port)


def acme(hostname: str, certdir: str = "/nowhere/.cache/tailscale/derper-certs") -> ACMETLS:
    return ACMETLS(certdir=Path(certdir), hostname=hostname, directory=LETSENCRYPT)


SEEN = [
    (
        "-hostname=derp.example.com -c=/data/derper.key -certdir=/data/certs",
        {"address": ":443", "tls": acme("derp.example.com", "/data/certs"), "stun_port": 3478},
    ),
    (
        "-hostname derp.example.com -certmode letsencrypt -a :443",
        {"address": ":443", "tls": acme("derp.example.com")},
    ),
    (
        "-hostname derp.example.com -a :33445 -http-port 33446 -certmode manual -certdir /etc/derp",
        {"address": ":33445", "tls": manual("/etc/derp", "derp.example.com", 33446)},
    ),
    (
        "-hostname derp.example.com -a :14662 -http-port 3478 -certmode manual -certdir /etc/derp "
        "--verify-clients",
        {"address": ":14662", "tls": manual("/etc/derp", "derp.example.com", 3478)},
    ),
    (
        "-hostname derp.example.com -certmode manual -certdir /certs -a :443 -stun -stun-port 34479"
        " -verify-client-url http://127.0.0.1:8080/verify -verify-client-url-fail-open=false",
        {"address": ":443", "stun_port": 34479, "tls": manual("/certs", "derp.example.com")},
    ),
    (
        "--hostname=127.0.0.1 --certmode=manual --certdir=/app/certs --stun=true --a=:443 "
        "--http-port=80 --verify-clients=false",
        {"address": ":443", "stun_port": 3478, "tls": manual("/app/certs", "127.0.0.1")},
    ),
    (  # behind a proxy that terminates TLS
        "--hostname=derp.example.com --certmode=letsencrypt --certdir=/app/certs --a=:8080 "
        "--stun=true --http-port=80 --verify-clients=true --home=",
        {"address": ":8080", "tls": None, "stun_port": 3478, "home": ""},
    ),
    (
        "-a 192.0.2.7:8443 -c /var/lib/derper/derper.key -stun-port 3479 "
        "-hostname=derp.example.com -certmode=manual -certdir=/certs -verify-clients -http-port=-1",
        {
            "address": "192.0.2.7:8443",
            "stun_port": 3479,
            "tls": manual("/certs", "derp.example.com", None),
        },
    ),
    (
        "-a=:3340 -stun=false -http-port=-1 -c=k -accept-connection-limit=+Inf "
        "-accept-connection-burst=9223372036854775807 -tcp-keepalive-time 10m0s "
        "-tcp-user-timeout=15s -tcp-write-timeout 1m30s -rate-config /etc/rate.json",
        {
            "address": ":3340",
            "tls": None,
            "stun_port": None,
            "accept_limit": float("inf"),
            "accept_burst": 2**63 - 1,
            "tcp_keepalive_time": 600,
            "tcp_user_timeout": 15,
            "write_timeout": 90,
            "rate_config": Path("/etc/rate.json"),
        },
    ),
    ("-dev -a :443 -stun", {"address": ":3340", "tls": None, "dev": True, "stun_port": 3478}),
    (
        "-hostname=derp.example.com -derp=false -ace=false "
        "-bootstrap-dns-names=a.example,b.example",
        {"derp": False},
    ),
]


@pytest.mark.parametrize(("line", "wanted"), SEEN)
def test_a_command_line_is_understood(
    plan: Callable[[str], Planned], line: str, wanted: dict[str, object]
) -> None:
    made, _ = plan(line)
    assert {name: getattr(made.config, name) for name in wanted} == wanted


def test_flags_about_clients_become_admission_settings(plan: Callable[[str], Planned]) -> None:
    admission = plan(SEEN[4][0])[0].config.admission
    assert (admission.url, admission.url_fail_open) == ("http://127.0.0.1:8080/verify", False)
    admission = plan("-a :1 -verify-clients -socket=/run/ts.sock")[0].config.admission
    assert (admission.tailscaled, admission.tailscaled_socket) == (True, Path("/run/ts.sock"))
    assert plan("-a :1 --verify-clients=T")[0].config.admission.tailscaled


def test_gcp_has_googles_authority_and_an_account(plan: Callable[[str], Planned]) -> None:
    tls = plan(
        "-certmode=gcp -hostname=x.example -acme-eab-kid=k -acme-eab-key=aa -acme-email=a@b"
    )[0].config.tls
    assert isinstance(tls, ACMETLS)
    assert (tls.directory, tls.eab_kid, tls.eab_key, tls.email) == (GOOGLE, "k", "aa", "a@b")


# Defaults


def test_the_default_key_is_that_of_derper(
    plan: Callable[[str], Planned], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert plan("-a :1")[0].key_file == Path("/var/lib/derper/derper.key")
    assert plan("-a :1 -c x")[0].key_file == Path("x")
    assert plan("-dev -c x")[0].key_file is None
    monkeypatch.setattr("os.geteuid", lambda: 1000)
    with pytest.raises(ConfigError, match="-c FILE is missing"):
        plan("-a :1")


def test_the_default_cache_directory_is_that_of_go(
    plan: Callable[[str], Planned], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", "/cache")
    tls = plan("-hostname=x.example")[0].config.tls
    assert tls is not None
    assert tls.certdir == Path("/cache/tailscale/derper-certs")


def test_the_mesh_key_is_found_at_home(
    plan: Callable[[str], Planned], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert plan("-a :1")[0].config.mesh_key is None
    (tmp_path / "keys").mkdir()
    (tmp_path / "keys" / "derp-mesh.key").write_text("AB" * 32 + "\n")
    config = plan("-a :1 -mesh-with=a.example,b.example/10.0.0.1")[0].config
    assert config.mesh_key is not None
    assert config.mesh_with == ("a.example", "b.example/10.0.0.1")
    assert plan("-dev")[0].config.mesh_key is None


def test_in_dev_the_mesh_key_is_in_the_environment(
    plan: Callable[[str], Planned], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TAILSCALE_DERPER_MESH_KEY", "ab" * 32)
    assert plan("-dev -mesh-psk-file=/none")[0].config.mesh_key is not None
    assert plan("-a=:1")[0].config.mesh_key is None
    monkeypatch.setenv("TAILSCALE_DERPER_MESH_KEY", "badf00d")
    with pytest.raises(ConfigError, match="TAILSCALE_DERPER_MESH_KEY") as caught:
        plan("-dev")
    assert "badf00d" not in str(caught.value)


def test_tailscale_s_own_name_is_never_the_default(plan: Callable[[str], Planned]) -> None:
    with pytest.raises(ConfigError, match="-hostname is missing"):
        plan("-a :443")
    assert plan("-certmode=manual -certdir=x")[0].config.hostname == "derp.tailscale.com"


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("-hostname=1.2.3.4", "give -acme-ip-certs .* or -certmode=manual"),
        ("-certmode=manual -hostname=x -acme-ip-certs", "-acme-ip-certs needs -certmode=letsenc"),
        ("-a=:1 -mesh-with=a", "-mesh-with needs -mesh-psk-file"),
        ("-a=:1 -secrets-url=https://x", "-secrets-url: .* setec is not built"),
        ("-a=:1 -ace", "-ace: the ACE proxy is not built"),
        ("-a=:1 -home=foo", "unknown home 'foo'"),
        ("-a=x", "invalid server address 'x'"),
    ],
)
def test_impossible_settings_are_reported_in_derper_s_spelling(
    plan: Callable[[str], Planned], line: str, expected: str
) -> None:
    with pytest.raises(ConfigError, match=expected):
        plan(line)


# Exit codes


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("-foo", "flag provided but not defined: -foo"),
        ("-c", "flag needs an argument: -c"),
        ("-stun=maybe", "invalid boolean value 'maybe' for -stun"),
        ("-http-port=x", "invalid value 'x' for -http-port"),
        ("-tcp-user-timeout=soon", "invalid value 'soon' for -tcp-user-timeout"),
        ("-certmode=magic", "invalid value 'magic' for -certmode"),
        ("---a=x", "bad flag syntax: ---a=x"),
        ("-=x", "bad flag syntax: -=x"),
        ("-verify-clients true -a :1", "'true' is not a flag"),
        ("-- -a :1", "'--' is not a flag"),
        ("-", "'-' is not a flag"),
        ("'' -a :1", "'' is not a flag"),
    ],
)
def test_a_wrong_command_line_exits_2_with_one_line(
    run: Callable[[str], Done], line: str, expected: str
) -> None:
    done = run(line)
    assert done.code == 2
    (line,) = done.err.splitlines()
    assert line.startswith(f"pyderp: {expected}")
    assert line.endswith("; `pyderp derper -help` lists all flags")
    assert done.out == ""


@pytest.mark.parametrize("line", ["-h", "--help", "-help", "-a :1 -h"])
def test_help_is_go_s_usage(run: Callable[[str], Done], line: str) -> None:
    done = run(line)
    assert done.code == 0
    assert "Usage of pyderp derper:\n  -a string\n    \t" in done.out
    assert "  -certmode string\n" in done.out
    assert '(default "letsencrypt")' in done.out
    assert "listen on :3340 whatever -a says" in done.out
    assert "(default 10m0s)" in done.out
    assert not re.search(r"duration\n.*default [\d.]+\)", done.out)
    assert "  -tcp-user-timeout duration\n" in done.out
    assert "  -dev\n" in done.out


def test_the_usage_names_flags_in_go_s_spelling() -> None:
    text = usage("x")
    assert not re.findall(r"--[a-z]\S*", text)
    assert "-health=false: none." in text
    assert "use -mesh-psk-file." in text


def test_the_version_is_printed(run: Callable[[str], Done]) -> None:
    for line in ("-version", "--version", "-version=true"):
        done = run(line)
        assert (done.code, done.err) == (0, "")
        assert done.out.startswith("pyderp ")


def test_a_fatal_error_is_one_line_and_exit_1(run: Callable[[str], Done]) -> None:
    done = run("-a=127.0.0.1 -home=foo")
    assert (done.code, done.out) == (1, "")
    assert done.err.startswith("pyderp: -a: invalid server address '127.0.0.1'")
    assert done.err.count("\n") == 1


def test_it_is_a_command_of_pyderp_too(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["pyderp", "derper", "-certmode=magic"])
    with pytest.raises(SystemExit) as caught:
        main()
    assert caught.value.code == 2
    assert "invalid value 'magic' for -certmode" in capsys.readouterr().err


# Against the real derper


def real(derper: Kind, *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [need(derper), *words], capture_output=True, text=True, timeout=30, check=False
    )


@each_derper
def test_all_flags_of_the_real_derper_are_known(derper: Kind) -> None:
    """Each with the same kind of value, or none."""
    theirs = re.findall(r"^  -(\S+)(?: (\S+))?$", real(derper, "-h").stderr, re.MULTILINE)
    ours = dict(re.findall(r"^  -(\S+)(?: (\S+))?$", usage("x"), re.MULTILINE))
    assert len(theirs) > 30
    for name, kind in theirs:
        # Go's help takes a quoted word for the kind of value; derper has one such help.
        assert ours[name] == (kind if kind != "0" else "string"), name


@each_derper
def test_the_real_derper_accepts_the_same_lines(derper: Kind) -> None:
    for line, _ in SEEN:
        assert real(derper, *shlex.split(line), "-version").returncode == 0, line
    for line in ("-foo", "-c", "-stun=maybe", "-http-port=x", "-tcp-user-timeout=soon", "---a=x"):
        assert real(derper, *shlex.split(line)).returncode == 2, line
