"""Each flag of the relay: on the command line, in the environment and in the TOML file."""

from __future__ import annotations

import ast
import contextlib
import ipaddress
import re
from collections.abc import Callable
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import pytest

import pyderp
from pyderp.cli.relay.flags import BY_NAME, FLAGS, PARTS
from pyderp.config import ACMETLS, HealthRecipients, ManualTLS, RelayConfig
from pyderp.config.tls import GOOGLE, LETSENCRYPT, LETSENCRYPT_STAGING
from pyderp.errors import ConfigError
from pyderp.keys import MeshKey
from pyderp.native import NativeUse
from tests.server.certificates import write_pair

from .planning import Planned, planner


@pytest.fixture
def plan(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., Planned]:
    monkeypatch.chdir(tmp_path)
    for name in ("HOME", "XDG_STATE_HOME", "STATE_DIRECTORY", "TAILSCALE_DERPER_MESH_KEY"):
        monkeypatch.delenv(name, raising=False)
    for flag in FLAGS:
        for variable in filter(None, (flag.variable, flag.go_variable)):
            monkeypatch.delenv(variable, raising=False)
    (tmp_path / "mesh.key").write_text("ab" * 32)
    (tmp_path / "debug.key").write_text(" secret\n")
    write_pair(tmp_path, "x")
    return planner(monkeypatch)


@dataclass(frozen=True)
class Case:
    """A value of a flag other than its default."""

    flag: str
    text: str
    """In the form of the command line."""
    toml: str
    where: str
    """Where its value is seen: an attribute of the plan, dotted, or a flag in brackets."""
    value: Any
    beside: tuple[str, ...] = ("--dev",)
    """Other flags that it needs."""

    def __str__(self) -> str:
        return self.flag

    def seen(self, planned: Planned) -> Any:
        plan, settings = planned
        if self.where.startswith("["):
            return settings[self.where[1:-1]]
        found: Any = plan
        for name in self.where.split("."):
            found = getattr(found, name)
        return found


NETS = (ipaddress.ip_network("10.0.0.0/8"), ipaddress.ip_network("::1"))
ACME = ("-c", "k", "--hostname=x.example", "--certdir=d")
MANUAL = ("-c", "k", "--hostname=::1", "--certmode=manual")
GCP = (*ACME, "--acme-email=a@b", "--acme-eab-kid=i", "--acme-eab-key=aa")
PEM = Path("x.crt")

CASES = [
    Case("dev", "", "true", "config.address", "127.0.0.1:3340", ()),
    Case("address", "[::1]:99", '"[::1]:99"', "config.address", "[::1]:99"),
    Case("hostname", "a.example", '"a.example"', "public_name", "a.example"),
    Case("public-port", "8443", "8443", "public_port", 8443),
    Case("key-file", "a/b", '"a/b"', "key_file", Path("a/b")),
    Case("tls", "no", "false", "[tls]", False),
    Case("certmode", "gcp", '"gcp"', "config.tls.directory", GOOGLE, GCP),
    Case("certdir", "c", '"c"', "config.tls.certdir", Path("c"), MANUAL),
    Case(
        *("cert-file", "x.crt", '"x.crt"', "config.tls.cert_file", PEM),
        ("-c", "k", "--hostname=x.example", "--cert-key-file=x.key"),
    ),
    Case(
        *("cert-key-file", "x.key", '"x.key"', "config.tls.cert_key_file", Path("x.key")),
        ("-c", "k", "--hostname=x.example", "--cert-file=x.crt"),
    ),
    Case("any-server-name", "", "true", "config.tls.any_server_name", True, MANUAL),
    Case("http-port", "-1", "-1", "config.tls.http_port", None, ACME),
    Case("http-port", "8080", "8080", "config.tls.http_port", 8080, ACME),
    Case("acme-email", "a@b", '"a@b"', "config.tls.email", "a@b", ACME),
    Case("acme-eab-kid", "i", '"i"', "config.tls.eab_kid", "i", (*ACME, "--acme-eab-key=aa")),
    Case("acme-eab-key", "aa", '"aa"', "config.tls.eab_key", "aa", (*ACME, "--acme-eab-kid=i")),
    Case("acme-ip-certs", "", "true", "config.tls.ip_certs", True, ACME),
    Case("acme-directory", "https://a", '"https://a"', "config.tls.directory", "https://a", ACME),
    Case("acme-staging", "", "true", "config.tls.directory", LETSENCRYPT_STAGING, ACME),
    Case("acme-ca-file", "x.crt", '"x.crt"', "config.tls.ca_file", PEM, ACME),
    Case("verify-clients", "", "true", "config.admission.tailscaled", True),
    Case("socket", "/s", '"/s"', "config.admission.tailscaled_socket", Path("/s")),
    Case("verify-client-url", "http://a", '"http://a"', "config.admission.url", "http://a"),
    Case("verify-client-url-fail-open", "no", "false", "config.admission.url_fail_open", False),
    Case("allow-keys-file", "a", '"a"', "config.admission.keys_file", Path("a")),
    Case("deny-keys-file", "a", '"a"', "config.admission.deny_file", Path("a")),
    Case("admission-remember", "1m", '"1m"', "config.admission.remember", 60),
    Case("admission-recheck", "0", "0", "config.admission.recheck", 0),
    Case("rate-config", "r.json", '"r.json"', "config.rate_config", Path("r.json")),
    Case("accept-connection-limit", "2.5", "2.5", "config.accept_limit", 2.5),
    Case("accept-connection-burst", "7", "7", "config.accept_burst", 7),
    Case("mesh-psk-file", "mesh.key", '"mesh.key"', "config.mesh_key", MeshKey.parse("ab" * 32)),
    Case(
        *("mesh-with", "a, b/c,", '["a", "b/c"]', "config.mesh_with", ("a", "b/c")),
        beside=("--dev", "--mesh-psk-file=mesh.key"),
    ),
    Case("derp", "no", "false", "config.derp", False),
    Case("stun", "no", "false", "config.stun_port", None),
    Case("stun-host", "::", '"::"', "config.stun_host", "::"),
    Case("stun-port", "0", "0", "config.stun_port", 0),
    Case("home", "blank", '"blank"', "config.home", "blank"),
    Case("health", "all", '"all"', "config.health", HealthRecipients.ALL),
    Case("bootstrap-dns-names", "a,b", '"a,b"', "config.bootstrap_dns.published", ("a", "b")),
    Case(
        *("unpublished-bootstrap-dns-names", "a/t", '["a/t"]'),
        *("config.bootstrap_dns.unpublished", ("a/t",)),
    ),
    Case(
        "metrics-address", "127.0.0.1:9", '"127.0.0.1:9"', "config.metrics_address", "127.0.0.1:9"
    ),
    Case("debug-allow-ip", "192.0.2.1", '"192.0.2.1"', "config.debug.allow_ip", "192.0.2.1"),
    Case(
        "debug-hosts", "a.example, b", '["a.example","b"]', "config.debug.hosts", ("a.example", "b")
    ),
    Case("debug-trusted", "10.0.0.0/8,::1", '["10.0.0.0/8","::1"]', "config.debug.trusted", NETS),
    Case("debug-key-file", "debug.key", '"debug.key"', "config.debug.key", "secret"),
    Case("disallow-app-names", "a, b", '["a", " b"]', "config.disallow_app_names", ("a", " b")),
    Case("send-queue-depth", "7", "7", "config.send_queue_depth", 7),
    Case("sender-cardinality", "no", "false", "config.sender_cardinality", False),
    Case("native", "off", '"off"', "config.native", NativeUse.OFF),
    Case("rtt-stats", "no", "false", "config.rtt_stats", False),
    Case("trusted-proxy", "10.0.0.0/8, ::1", '"10.0.0.0/8,::1"', "config.trusted_proxies", NETS),
    Case(
        *("proxy-protocol", "", "true", "config.proxy_protocol", True),
        beside=("--dev", "--trusted-proxy=::1"),
    ),
    Case("login-timeout", "1m30s", "90", "config.login_timeout", 90),
    Case("tcp-keepalive-time", "1h", '"1h"', "config.tcp_keepalive_time", 3600),
    Case("tcp-user-timeout", "1.5s", "1.5", "config.tcp_user_timeout", 1.5),
    Case("tcp-write-timeout", "500ms", "0.5", "config.write_timeout", 0.5),
    Case("tcp-notsent-lowat", "0x10", "16", "config.tcp_notsent_lowat", 16),
    Case("reuse-port", "", "true", "config.reuse_port", True),
    Case("drain", "0", "0", "config.drain", 0),
    Case("loop", "asyncio", '"asyncio"', "[loop]", "asyncio"),
    Case("log-level", "debug", '"debug"', "[log-level]", "debug"),
    Case("log-format", "json", '"json"', "[log-format]", "json"),
    Case("secrets-path-prefix", "a", '"a"', "[secrets-path-prefix]", "a"),
    Case("secrets-cache-dir", "a", '"a"', "[secrets-cache-dir]", Path("a")),
]
REFUSED = {"secrets-url", "ace"}
ACTIONS = {"check", "show-map", "version", "config-file"}


def on_the_command_line(case: Case) -> list[str]:
    flag = BY_NAME[case.flag]
    if not flag.kind.switch:
        return [f"--{case.flag}={case.text}"]
    return [f"--no-{case.flag}" if case.text == "no" else f"--{case.flag}"]


def test_each_flag_has_a_case() -> None:
    assert {case.flag for case in CASES} == BY_NAME.keys() - REFUSED - ACTIONS


@pytest.mark.parametrize("case", CASES, ids=str)
def test_a_flag_does_the_same_in_all_places(
    plan: Callable[..., Planned], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, case: Case
) -> None:
    planned = plan(*case.beside, *on_the_command_line(case))
    assert case.seen(planned) == case.value
    assert planned[1].given(case.flag)

    monkeypatch.setenv(BY_NAME[case.flag].variable, case.text or "true")
    assert plan(*case.beside)[0] == planned[0]
    monkeypatch.delenv(BY_NAME[case.flag].variable)

    file = tmp_path / "relay.toml"
    file.write_text(f"{case.flag} = {case.toml}\n")
    from_file = plan(*case.beside, "--config-file", file)
    assert from_file[0] == planned[0]
    assert case.seen(from_file) == case.value


@pytest.mark.parametrize("case", CASES, ids=str)
def test_a_flag_does_the_same_in_go_s_spelling(
    plan: Callable[..., Planned], monkeypatch: pytest.MonkeyPatch, case: Case
) -> None:
    flag = BY_NAME[case.flag]
    name = flag.go_name or flag.name
    # -dev would take the place of the other flags, as in derper.
    beside = [each for each in case.beside if each != "--dev"]
    if "--dev" in case.beside:
        beside += ["-c=k", "-a=127.0.0.1:0"]
    if case.flag == "dev":
        assert plan("-dev", derper=True)[0].config.address == ":3340"
        return
    if flag.kind.switch:
        spellings = ["=false"] if case.text == "no" else ["", "=true"]
        lines = [[f"-{name}{each}"] for each in spellings]
    else:
        lines = [[f"-{name}", case.text], [f"-{name}={case.text}"], [f"--{name}={case.text}"]]
    if flag.kind.alone:  # a switch of Go takes no value as the next word
        del lines[0]
    for line in lines:
        assert case.seen(plan(*beside, *line, derper=True)) == case.value
    monkeypatch.setenv(flag.variable, case.text or "true")
    if case.flag not in ("address", "key-file"):
        assert case.seen(plan(*beside, derper=True)) == case.value


@pytest.mark.parametrize("case", CASES, ids=str)
def test_a_case_is_no_default(plan: Callable[..., Planned], case: Case) -> None:
    with contextlib.suppress(ConfigError):  # other flags need it
        assert case.seen(plan(*case.beside)) != case.value


def test_flag_wins_over_environment_over_file_over_default(
    plan: Callable[..., Planned], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    file = tmp_path / "relay.toml"
    file.write_text("dev = true\nhealth = false\ndrain = 1\nrtt-stats = false\nstun = false\n")
    monkeypatch.setenv("PYDERP_CONFIG_FILE", str(file))
    monkeypatch.setenv("PYDERP_DRAIN", "2")
    monkeypatch.setenv("PYDERP_STUN", "true")
    config = plan("--drain=3", "--health")[0].config
    assert (config.drain, config.health, config.rtt_stats) == (3, HealthRecipients.KNOWN, False)
    assert config.stun_port == 3478
    assert plan()[0].config.drain == 2
    assert plan("--no-stun")[0].config.stun_port is None
    monkeypatch.setenv("PYDERP_DRAIN", "")  # as compose files do it
    assert plan()[0].config.drain == 1
    assert plan("--no-dev", "-c", "k", "-a", ":1", "--no-tls")[0].config.dev is False


def test_variables_of_derper_count_below_those_of_pyderp(
    plan: Callable[..., Planned], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TS_ALLOW_DEBUG_IP", "192.0.2.1")
    monkeypatch.setenv("TS_DEBUG_TRUSTED_CIDRS", " 10.0.0.0/8 ,, ::1,")
    monkeypatch.setenv("TS_DEBUG_KEY_PATH", "debug.key")
    monkeypatch.setenv("TAILSCALE_DERPER_MESH_KEY", "cd" * 32)
    config = plan("--dev", "--mesh-with=x")[0].config
    assert (config.debug.allow_ip, config.debug.trusted, config.debug.key) == (
        *("192.0.2.1", NETS, "secret"),
    )
    assert config.mesh_key == MeshKey.parse("cd" * 32)
    assert plan("--dev", "--debug-allow-ip=::1")[0].config.debug.allow_ip == "::1"
    config = plan("--dev", "--mesh-psk-file=mesh.key")[0].config
    assert config.mesh_key == MeshKey.parse("ab" * 32)
    assert plan("-a", "127.0.0.1:1", "-c", "k")[0].config.mesh_key is None


@pytest.mark.parametrize(
    ("text", "depth"), [("7", 7), ("0", 32), ("-5", 32), ("1000", 1000), ("", 32)]
)
@pytest.mark.parametrize("derper", [False, True])
def test_a_queue_depth_that_is_none_counts_as_not_given(
    plan: Callable[..., Planned],
    monkeypatch: pytest.MonkeyPatch,
    text: str,
    depth: int,
    derper: bool,
) -> None:
    monkeypatch.setenv("TS_DEBUG_DERP_PER_CLIENT_SEND_QUEUE_DEPTH", text)
    arguments = ("-a", "127.0.0.1:1", "-c", "k")
    assert plan(*arguments, derper=derper)[0].config.send_queue_depth == depth
    if not derper:
        assert plan(*arguments, "--send-queue-depth=3")[0].config.send_queue_depth == 3


@pytest.mark.parametrize("derper", [False, True])
def test_senders_are_counted_unless_switched_off(
    plan: Callable[..., Planned], monkeypatch: pytest.MonkeyPatch, derper: bool
) -> None:
    arguments = ("-a", "127.0.0.1:1", "-c", "k")
    assert plan(*arguments, derper=derper)[0].config.sender_cardinality
    for text, expected in (("0", False), ("false", False), ("1", True), ("T", True)):
        monkeypatch.setenv("TS_DERP_SENDER_CARDINALITY", text)
        assert plan(*arguments, derper=derper)[0].config.sender_cardinality is expected
    if not derper:
        assert not plan(*arguments, "--no-sender-cardinality")[0].config.sender_cardinality


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("bad", ("bad",)),
        ("bad, b ad ,Bad", ("bad", " b ad ", "Bad")),
        ("bad,", ("bad", "")),
        (",", ("", "")),
    ],
)
def test_disallowed_app_names_are_kept_as_they_are(
    plan: Callable[..., Planned], text: str, names: tuple[str, ...]
) -> None:
    arguments = ("-a", "127.0.0.1:1", "-c", "k")
    config = plan(*arguments, f"--disallow-app-names={text}")[0].config
    assert config.disallow_app_names == names
    assert plan(*arguments, "-disallow-app-names", text, derper=True)[0].config == config
    assert len(config.idle_app_names()) == ("" in names)


# Defaults


def test_a_name_is_enough_for_acme(
    plan: Callable[..., Planned], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("STATE_DIRECTORY", "/state/a:/state/b")
    made, _ = plan("--hostname=relay.example.com")
    assert made.config.address == ":443"
    assert made.config.tls == ACMETLS(
        certdir=Path("/state/a/certs"), hostname="relay.example.com", directory=LETSENCRYPT
    )
    assert made.config.tls is not None
    assert made.config.tls.http_port == 80
    assert made.config.stun_port == 3478
    assert not made.stun_if_free
    assert made.key_file == Path("/state/a/relay.key")
    assert made.public_name == "relay.example.com"


def test_an_address_is_enough_for_a_self_signed_certificate(
    plan: Callable[..., Planned], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("os.geteuid", lambda: 1000)
    monkeypatch.setenv("HOME", "/home/x")
    made, _ = plan("--hostname=203.0.113.7")
    state = Path("/home/x/.local/state/pyderp")
    assert made.config.tls == ManualTLS(
        certdir=state / "certs", hostname="203.0.113.7", http_port=80
    )
    assert made.key_file == state / "relay.key"
    monkeypatch.setenv("XDG_STATE_HOME", "/xdg")
    assert plan("--hostname=203.0.113.7")[0].key_file == Path("/xdg/pyderp/relay.key")


def test_an_address_gets_a_certificate_by_acme_if_asked(plan: Callable[..., Planned]) -> None:
    tls = plan("-c", "k", "--hostname=203.0.113.7", "--acme-ip-certs", "--certdir=d")[0].config.tls
    assert tls == ACMETLS(certdir=Path("d"), hostname="203.0.113.7", ip_certs=True)


def test_the_default_key_of_root_is_that_of_derper_if_it_exists(
    plan: Callable[..., Planned], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    theirs = tmp_path / "derper.key"
    monkeypatch.setattr("os.geteuid", lambda: 0)
    monkeypatch.setattr("pyderp.cli.relay.plan.DERPER_KEY_FILE", theirs)
    assert plan("-a", "127.0.0.1:1")[0].key_file == Path("/var/lib/pyderp/relay.key")
    theirs.write_text("{}")
    assert plan("-a", "127.0.0.1:1")[0].key_file == theirs
    monkeypatch.setenv("STATE_DIRECTORY", "/state")
    assert plan("-a", "127.0.0.1:1")[0].key_file == Path("/state/relay.key")


@pytest.mark.parametrize(
    ("flags", "port", "if_free"),
    [
        (["--dev"], 3478, True),
        (["--dev", "--stun"], 3478, False),
        (["-a", "127.0.0.1:0"], 3478, True),
        (["-a", "[::1]:0", "--stun-port=99"], 99, False),
        (["-a", ":1", "--no-tls"], 3478, False),
        (["-a", "192.0.2.1:1", "--no-tls"], 3478, False),
        (["-a", "unix:/x"], None, False),
        (["-a", "unix:/x", "--stun"], 3478, False),
        (["-a", ":1", "--no-tls", "--no-stun", "--stun-port=99"], None, False),
    ],
)
def test_a_taken_stun_port_is_allowed_only_where_stun_was_not_asked_for(
    plan: Callable[..., Planned], flags: list[str], port: int | None, if_free: bool
) -> None:
    made, _ = plan("-c", "k", *flags)
    assert made.config.stun_port == port
    assert made.stun_if_free == if_free


def test_each_setting_has_a_flag() -> None:
    settings = {each.name for each in fields(RelayConfig)} - PARTS.keys()
    settings |= {f"{part}.{each.name}" for part, kind in PARTS.items() for each in fields(kind)}
    assert {flag.setting for flag in FLAGS if flag.setting} == settings - {"admission.decide"}


def test_only_the_command_line_names_flags() -> None:
    """Lower layers name settings, as a program that embeds a relay has no flags."""
    root = Path(pyderp.__file__).parent
    found = []
    for path in root.rglob("*.py"):
        if path.is_relative_to(root / "cli"):
            continue
        tree = ast.parse(path.read_text())
        docstrings = {id(each.value) for each in ast.walk(tree) if isinstance(each, ast.Expr)}
        found += [
            (path.name, each.value)
            for each in ast.walk(tree)
            if isinstance(each, ast.Constant) and isinstance(each.value, str)
            if id(each) not in docstrings and re.search(r"--[a-z]", each.value)
        ]
    assert found == []


def test_help_is_in_panels(
    plan: Callable[..., Planned],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setenv("NO_COLOR", "1")
    with pytest.raises(IndexError):
        plan("--help")
    text = capsys.readouterr().out
    for flag in FLAGS:
        assert re.search(rf"--{flag.name}[ ,]", text)
        assert f"─ {flag.panel} ─" in text
        assert flag.variable in text


@pytest.mark.parametrize(
    ("words", "recipients"),
    [
        (["--no-health"], HealthRecipients.NONE),
        (["--health", "none"], HealthRecipients.NONE),
        (["--health=false"], HealthRecipients.NONE),
        (["--health=true"], HealthRecipients.KNOWN),
        (["--health"], HealthRecipients.KNOWN),
        (["--health", "--drain=1"], HealthRecipients.KNOWN),
        ([], HealthRecipients.KNOWN),
    ],
)
def test_health_may_stand_alone_or_take_a_word(
    plan: Callable[..., Planned],
    monkeypatch: pytest.MonkeyPatch,
    words: list[str],
    recipients: HealthRecipients,
) -> None:
    if words:
        monkeypatch.setenv("PYDERP_HEALTH", "all")
    assert plan("--dev", *words)[0].config.health is recipients


@pytest.mark.parametrize(("word", "recipients"), [("false", "none"), ("true", "known")])
def test_health_of_old_settings_files_and_programs(
    plan: Callable[..., Planned], tmp_path: Path, word: str, recipients: str
) -> None:
    file = tmp_path / "relay.toml"
    file.write_text(f"health = {word}\n")
    config = plan("--dev", "--config-file", file)[0].config
    assert config.health is HealthRecipients(recipients)
    old: Any = word == "true"
    assert RelayConfig(health=old).health is config.health
