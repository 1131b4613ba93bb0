"""`pyderp relay --check` reports all problems at once, and creates nothing."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from pyderp.certs.schedule import Record
from pyderp.certs.store import Store
from pyderp.keys import NodePrivate, NodePublic
from tests.certs.authority import issue
from tests.cli.commands import Done
from tests.server.certificates import write_pair
from tests.server.ways import NAME

from .test_run import secure


@pytest.fixture
def check(
    here: Callable[..., Done], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> Callable[..., Done]:
    monkeypatch.setenv("STATE_DIRECTORY", str(tmp_path / "state"))
    return lambda *args: here("relay", "--check", *args)


@contextlib.contextmanager
def taken_udp() -> Iterator[int]:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.bind(("127.0.0.1", 0))
        yield sock.getsockname()[1]


@contextlib.contextmanager
def tailscaled(path: Path, key: NodePublic) -> Iterator[None]:
    """A tailscaled that answers one request: which key an address has."""
    body = json.dumps({"Self": {"PublicKey": str(key)}})
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(path))
        listening.listen()

        def answer() -> None:
            sock, _ = listening.accept()
            with sock:
                sock.recv(65536)
                head = f"HTTP/1.1 200 OK\r\nContent-Length: {len(body)}\r\n\r\n"
                sock.sendall(f"{head}{body}".encode())

        thread = threading.Thread(target=answer)
        thread.start()
        yield
        thread.join()


def tree(folder: Path) -> list[str]:
    return sorted(str(path) for path in folder.rglob("*"))


def test_settings_without_problems_are_listed(check: Callable[..., Done], tmp_path: Path) -> None:
    write_pair(tmp_path, NAME)
    key = NodePrivate.generate()
    (tmp_path / "relay.key").write_text(json.dumps({"PrivateKey": key.to_text()}))
    (tmp_path / "relay.key").chmod(0o600)
    (tmp_path / "mesh.key").write_text("ab" * 32)
    (tmp_path / "mesh.key").chmod(0o600)
    (tmp_path / "rate.json").write_text("{}")
    (tmp_path / "keys").write_text(f"{NodePrivate.generate().public} a laptop\n")
    (tmp_path / "relay.toml").write_text(f"""
key-file = "{tmp_path}/relay.key"
rate-config = "{tmp_path}/rate.json"
allow-keys-file = "{tmp_path}/keys"
mesh-psk-file = "{tmp_path}/mesh.key"
mesh-with = ["a.example.com", "b.example.com/10.0.0.1"]
stun-port = 0
""")
    before = tree(tmp_path)
    done = check(*secure(tmp_path), "--config-file", tmp_path / "relay.toml")
    assert done.err == ""
    assert done.code == 0
    lines = done.out.splitlines()
    assert all(line.startswith("ok: ") for line in lines)
    assert f"ok: key file {tmp_path}/relay.key: key {key.public}" in lines
    assert any(f"{NAME}.crt: for {NAME}, until 20" in line for line in lines)
    assert f"ok: rate limits {tmp_path}/rate.json" in lines
    assert f"ok: allowed keys {tmp_path}/keys: 1" in lines
    assert f"ok: admits clients whose key is in {tmp_path}/keys (1 key)" in lines
    assert any(line.startswith("ok: mesh with a.example.com, b.example.com") for line in lines)
    assert "ok: listening on 127.0.0.1:0" in lines
    assert "ok: STUN on UDP port 0" in lines
    assert lines[-1] == "ok: the relay can start"
    assert tree(tmp_path) == before


def test_all_problems_are_reported(check: Callable[..., Done], tmp_path: Path) -> None:
    write_pair(tmp_path, NAME, names=["other.example.com"])
    (tmp_path / "relay.key").write_text("{}")
    (tmp_path / "rate.json").write_text("{")
    (tmp_path / "keys").write_text("nodekey:x\n")
    (tmp_path / "mesh.key").write_text("ab" * 32)
    (tmp_path / "mesh.key").chmod(0o600)
    (tmp_path / "relay.toml").write_text("drian = 5\nstun-port = 'x'\n")
    local = ("127.0.0.1", 0)
    with (
        socket.create_server(local) as taken,
        socket.create_server(local) as side,
        taken_udp() as udp,
    ):
        done = check(
            *("--certmode=manual", "--certdir", tmp_path, "--hostname", NAME),
            *("-a", f"127.0.0.1:{taken.getsockname()[1]}"),
            *("--http-port", side.getsockname()[1], "--stun-port", udp),
            *("-c", tmp_path / "relay.key", "--rate-config", tmp_path / "rate.json"),
            *("--allow-keys-file", tmp_path / "keys", "--mesh-with=a/b/c"),
            *("--mesh-psk-file", tmp_path / "mesh.key"),
            *("--config-file", tmp_path / "relay.toml"),
        )
    assert done.code == 1
    assert "the relay can start" not in done.out
    problems = done.err.splitlines()
    assert all(line.startswith("pyderp: ") for line in problems)
    expected = [
        f"{tmp_path}/relay.toml, line 1: drian",
        f"{tmp_path}/relay.toml, line 2: stun-port",
        "--mesh-with: more than one / in mesh host",
        f"the key file {tmp_path}/relay.key lacks",
        f"certificate {tmp_path}/{NAME}.crt is not valid for '{NAME}'",
        f"{tmp_path}/rate.json",
        f"{tmp_path}/keys",
        "the port is taken",
        "--http-port=-1 does without",
        "STUN",
    ]
    assert len(problems) == len(expected)
    for line, part in zip(problems, expected, strict=True):
        assert part in line


def test_wrong_flags_do_not_hide_each_other_or_files(
    check: Callable[..., Done], tmp_path: Path
) -> None:
    wrong = ("--ace", "--proxy-protocol", "--mesh-psk-file=/none", "--mesh-with=x")
    files = ("--debug-key-file=/none", "--rate-config=/none", "-c", tmp_path)
    with taken_udp() as port:
        address = ("-a", "127.0.0.1:0", "--certmode=gcp", "--stun-port", port)
        done = check(*wrong, *files, *address)
    assert done.code == 1
    assert done.out.splitlines() == [
        "ok: admits all clients that can reach it",
        "ok: listening on 127.0.0.1:0",
    ]
    problems = done.err.splitlines()
    expected = [
        *("--ace", "--certmode=gcp needs --hostname", "mesh key file /none"),
        *("debug key file /none", "--proxy-protocol needs --trusted-proxy"),
        *(f"the key file {tmp_path}", "rate config /none", "STUN"),
    ]
    assert len(problems) == len(expected)
    for line, part in zip(problems, expected, strict=True):
        assert part in line


def test_no_file_of_a_first_start_is_made(check: Callable[..., Done], tmp_path: Path) -> None:
    done = check("-a", "127.0.0.1:0", "--certmode=manual", "--hostname=::1", "--http-port=0")
    assert done.code == 0, done.err
    state = tmp_path / "state"
    assert f"ok: key file {state}/relay.key: made at the first start" in done.out
    assert (
        f"ok: TLS, certificate {state}/certs/1.crt: self-signed, made at the first start"
        in done.out
    )
    assert tree(tmp_path) == []


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_without_write_permission_is_reported(
    check: Callable[..., Done], tmp_path: Path
) -> None:
    tmp_path.chmod(0o500)
    done = check("-a", "127.0.0.1:0", "--certmode=manual", "--hostname=::1", "--http-port=0")
    assert done.err.count(f"no permission to write in {tmp_path}") == 2


def test_a_file_in_the_place_of_a_folder_is_reported(
    check: Callable[..., Done], tmp_path: Path
) -> None:
    (tmp_path / "state").touch()
    done = check("-a", "127.0.0.1:0", "--certmode=manual", "--hostname=::1", "--http-port=0")
    assert done.code == 1
    assert "cannot look for" in done.err or done.err.count("state is not a directory") == 2


def test_two_services_on_one_port_are_refused(check: Callable[..., Done], tmp_path: Path) -> None:
    done = check("--dev", "--no-stun", "-a", "127.0.0.1:8443", "--metrics-address=:8443")
    assert done.code == 1
    assert (
        "pyderp: --metrics-address is port 8443, as is the address of the relay; give each a port "
        "of its own\n"
    ) in done.err


def test_a_bad_debug_address_is_reported(
    check: Callable[..., Done], monkeypatch: pytest.MonkeyPatch
) -> None:
    flags = ("--dev", "--no-stun", "-a", "127.0.0.1:0")
    done = check(*flags, "--debug-allow-ip=foo")
    assert done.code == 1
    assert done.err.startswith("pyderp: --debug-allow-ip: 'foo' is not an IP address")
    monkeypatch.setenv("TS_ALLOW_DEBUG_IP", "foo")
    done = check(*flags)
    assert done.code == 1
    assert done.err.startswith("pyderp: TS_ALLOW_DEBUG_IP in the environment: 'foo' is not an IP")


def test_a_unix_socket_is_checked(check: Callable[..., Done], tmp_path: Path) -> None:
    path = tmp_path / "sock"
    assert check("--dev", "-a", f"unix:{path}").code == 0
    assert not path.exists()
    assert "none does not exist" in check("--dev", "-a", f"unix:{tmp_path}/none/sock").err
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(str(path))
        sock.listen()
        assert f"unix:{path}: something is there" in check("--dev", "-a", f"unix:{path}").err
    assert check("--dev", "-a", f"unix:{path}").code == 0  # left over
    path.unlink()
    path.touch()
    assert "something is there" in check("--dev", "-a", f"unix:{path}").err
    assert "want unix:/absolute/path" in check("--dev", "-a", "unix:sock").err


def test_a_missing_tailscaled_is_reported(check: Callable[..., Done], tmp_path: Path) -> None:
    path = tmp_path / "tailscaled.sock"
    flags = ("--dev", "-a", "127.0.0.1:0", "--verify-clients", "--socket", path)
    assert f"cannot connect to {path}: No such file" in check(*flags).err
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(str(path))
        assert f"cannot connect to {path}: Connection refused" in check(*flags).err


@pytest.mark.parametrize("key", [NodePrivate.generate().public, NodePublic(bytes(32))])
def test_a_tailscaled_that_is_not_logged_in_is_reported(
    check: Callable[..., Done], tmp_path: Path, key: NodePublic
) -> None:
    path = tmp_path / "tailscaled.sock"
    with tailscaled(path, key):
        done = check("--dev", "-a", "127.0.0.1:0", "--verify-clients", "--socket", path)
    if key.is_zero():
        assert "tailscaled is not logged in" in done.err
        assert done.code == 1
    else:
        assert f"ok: tailscaled at {path}\n" in done.out
        assert "ok: admits clients that the tailscaled of this machine knows\n" in done.out


def keys(path: Path, count: int) -> Path:
    path.write_text("".join(f"{NodePrivate.generate().public}\n" for _ in range(count)))
    return path


def admits(done: Done) -> list[str]:
    begin = "ok: admits "
    return [line.removeprefix(begin) for line in done.out.splitlines() if line.startswith(begin)]


def test_without_admission_all_clients_are_admitted(
    check: Callable[..., Done], tmp_path: Path
) -> None:
    all_clients = "all clients that can reach it"
    assert admits(check("--dev", "-a", "127.0.0.1:0")) == [all_clients]
    denied = keys(tmp_path / "denied", 2)
    done = check("--dev", "-a", "127.0.0.1:0", f"--deny-keys-file={denied}")
    assert admits(done) == [f"{all_clients}, but not the 2 keys in {denied}"]


def test_all_sources_of_admission_are_named_without_secrets(
    check: Callable[..., Done], tmp_path: Path
) -> None:
    allowed = keys(tmp_path / "allowed", 3)
    url = "https://me:secret@acl.example.com/derp?token=hidden"
    flags = ("--dev", "-a", "127.0.0.1:0", f"--allow-keys-file={allowed}")
    done = check(*flags, f"--verify-client-url={url}")
    begin = (
        f"clients whose key is in {allowed} (3 keys), and that https://acl.example.com/derp allows"
    )
    assert admits(done) == [f"{begin} (all, while it cannot be reached)"]
    assert "secret" not in done.out + done.err
    assert "hidden" not in done.out + done.err
    closed = check(*flags, f"--verify-client-url={url}", "--no-verify-client-url-fail-open")
    assert admits(closed) == [begin]


@pytest.mark.parametrize(
    "flags", [["--allow-keys-file=/none"], ["--verify-client-url=nonsense"], ["--no-derp"]]
)
def test_admission_that_is_wrong_or_off_is_left_out(
    check: Callable[..., Done], flags: list[str]
) -> None:
    assert admits(check("--dev", "-a", "127.0.0.1:0", *flags)) == []


# With --show-map

BY_IP = ("-a", "127.0.0.1:0", "--hostname=127.0.0.1", "--certmode=manual", "--http-port=-1")


def test_a_requested_map_follows(check: Callable[..., Done]) -> None:
    flags = ("-a", "127.0.0.1:0", "--no-tls", "--hostname=relay.example.com", "--stun-port=0")
    done = check(*flags, "--public-port=443", "--no-stun", "--show-map=json")
    assert (done.code, done.err) == (0, "")
    lines, _, derp_map = done.out.partition("\n\n")
    assert lines.endswith("ok: the relay can start")
    assert json.loads(derp_map)["Regions"]["900"]["RegionName"] == "relay.example.com"


def test_derper_s_command_line_can_show_the_map(here: Callable[..., Done], tmp_path: Path) -> None:
    write_pair(tmp_path, NAME)
    flags = ("-a", "127.0.0.1:8443", "-hostname", NAME, "-certmode=manual", "-certdir", tmp_path)
    more = ("-c", tmp_path / "key", "-http-port=-1", "-stun=false", "-reuse-port")
    done = here("derper", "-check", "-show-map=policy", *flags, *more)
    assert (done.code, done.err) == (0, "")
    assert 'ok: the relay can start\n\n"derpMap": {' in done.out


def test_a_certificate_that_is_missing_is_the_only_problem_of_the_map(
    check: Callable[..., Done], tmp_path: Path
) -> None:
    done = check(*secure(tmp_path), "--no-stun", "--show-map=json")
    assert done.code == 1
    assert len(done.err.splitlines()) == 1
    assert f"{NAME}.crt" in done.err
    assert "no DERP map" not in done.out


def test_a_map_that_cannot_be_made_is_a_problem(check: Callable[..., Done]) -> None:
    done = check("--dev", "-a", "127.0.0.1:0", "--show-map=json")
    assert done.code == 1
    assert "clients find a relay by its name or IP address: give --hostname" in done.err
    assert "can start" not in done.out


def test_a_check_makes_no_certificate_for_a_map(check: Callable[..., Done], tmp_path: Path) -> None:
    done = check(*BY_IP, "--show-map=json", "--no-stun")
    assert "warning: no DERP map: it needs the hash of the certificate" in done.out
    assert "Regions" not in done.out
    assert tree(tmp_path) == []


def test_a_certificate_that_expires_is_reported(check: Callable[..., Done], tmp_path: Path) -> None:
    flags = (*secure(tmp_path), "--no-stun")
    write_pair(tmp_path, NAME, days=-2)
    done = check(*flags)
    assert done.code == 1
    (line,) = done.err.splitlines()
    assert f"{NAME}.crt: clients that check refuse it: it expired on 20" in line
    write_pair(tmp_path, NAME, days=20)
    done = check(*flags)
    assert (done.code, done.err) == (0, "")
    assert f"warning: certificate {tmp_path}/{NAME}.crt: clients that check refuse it from" in (
        done.out
    )
    write_pair(tmp_path, NAME, days=60)
    assert "warning: " not in check(*flags).out


def test_unknown_members_of_the_rate_limits_are_reported(
    check: Callable[..., Done], tmp_path: Path
) -> None:
    file = tmp_path / "rate.json"
    file.write_text('{"PerClientRate": 5}')
    done = check("--dev", "-a", "127.0.0.1:0", "--no-stun", "--rate-config", file)
    assert done.code == 0
    assert f"warning: rate limits {file}: unknown members are ignored: PerClientRate\n" in done.out


def test_a_relay_without_derp_is_doubtful(check: Callable[..., Done]) -> None:
    flags = ("--dev", "--no-stun", "-a", "127.0.0.1:0")
    done = check(*flags, "--no-derp")
    assert done.code == 0
    assert "warning: /derp is not served here (--no-derp): no client can connect" in done.out
    assert "/derp is not" not in check(*flags).out


def test_stun_that_clients_cannot_reach_is_reported(check: Callable[..., Done]) -> None:
    flags = ("--dev", "-a", "127.0.0.1:0", "--hostname=x.example", "--public-port=443")
    assert "warning: STUN answers this machine only" in check(*flags).out
    assert "warning: " not in check(*flags, "--stun-host=::", "--stun-port=0").out


def test_health_frames_that_end_some_clients_are_doubtful(
    check: Callable[..., Done], tmp_path: Path
) -> None:
    """Whichever setting asks for them; a relay with such settings starts."""
    flags = ("--dev", "-a", "127.0.0.1:0", "--no-stun")
    line = "warning: --health=all: a single Health frame takes a tailscale-rs node off the relay"
    file = tmp_path / "relay.toml"
    file.write_text('health = "all"\n')
    for doubtful in (("--health=all",), ("--config-file", file)):
        done = check(*flags, *doubtful)
        assert (done.code, done.out.count(line)) == (0, 1)
    for fine in ((), ("--health=known",), ("--health=none",), ("--no-health",)):
        assert "warning: " not in check(*flags, *fine).out


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("verify-client-url = 'ftp://x'", "verify-client-url: admission URL 'ftp://x' begins"),
        ("home = 'x'", "home: unknown home 'x'"),
        ("address = 'x'", "address: invalid server address 'x'"),
        ("ace = true", "ace: the ACE proxy is not built"),
        (
            "mesh-with = ['a/b/c']\nmesh-psk-file='{}/mesh.key'",
            "mesh-with: more than one / in mesh host",
        ),
        ("bootstrap-dns-names = ['a/']", "bootstrap-dns-names: bootstrap DNS name 'a/'"),
        ("hostname = '1.2.3'", "hostname: '1.2.3' is not an IP address"),
        ("hostname = 5\ncertmode = 'manual'", "hostname: it is an integer; want a string"),
        ("trusted-proxy = 5\nproxy-protocol = true", "trusted-proxy: it is an integer"),
    ],
)
def test_an_inconsistent_setting_is_reported_once_with_its_line(
    check: Callable[..., Done], tmp_path: Path, line: str, expected: str
) -> None:
    (tmp_path / "mesh.key").write_text("ab" * 32)
    (tmp_path / "mesh.key").chmod(0o600)
    file = tmp_path / "relay.toml"
    file.write_text(f"\n{line.format(tmp_path)}\n")
    address = () if line.startswith("address") else ("-a", "127.0.0.1:0")
    done = check("--dev", "--no-stun", *address, "--config-file", file)
    assert done.code == 1
    assert done.err.startswith(f"pyderp: settings file {file}, line 2: {expected}")
    assert done.err.count("\n") == 1


def test_a_flag_in_an_error_is_shown_with_its_line(
    check: Callable[..., Done], tmp_path: Path
) -> None:
    file = tmp_path / "relay.toml"
    file.write_text("hostname = 'x.example'\ncertmode = 'gcp'\n")
    done = check("--dev", "--no-stun", "-a", "127.0.0.1:0", "--config-file", file)
    assert "pyderp: --certmode=gcp needs --acme-eab-kid" in done.err
    assert f"(settings file {file}, line 2: certmode)\n" in done.err
    file.write_text("hostname = 'x.example'\ncertmode = 'letsencrypt'\nacme-eab-kid = 'x'\n")
    done = check("--dev", "--no-stun", "-a", "127.0.0.1:0", "--config-file", file)
    assert "needs both --acme-eab-kid and --acme-eab-key" in done.err


def test_a_burst_of_zero_accepts_no_client(check: Callable[..., Done]) -> None:
    flags = ("--dev", "-a", "127.0.0.1:0", "--accept-connection-burst=0")
    assert check(*flags).code == 0
    assert "no client could connect" in check(*flags, "--accept-connection-limit=5").err


def test_a_settings_file_with_a_secret_that_others_may_read(
    check: Callable[..., Done], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    file = tmp_path / "relay.toml"
    file.write_text("acme-eab-key = 'aa'\nacme-eab-kid = 'x'\n")
    file.chmod(0o644)
    flags = ("--dev", "-a", "127.0.0.1:0", "--config-file", file)
    check(*flags)
    assert f"the secret in {file} has mode 0644" in caplog.text
    caplog.clear()
    file.chmod(0o600)
    check(*flags)
    assert "the secret" not in caplog.text


def test_a_taken_stun_port_is_no_problem_if_stun_was_not_asked_for(
    check: Callable[..., Done], monkeypatch: pytest.MonkeyPatch
) -> None:
    with taken_udp() as port:
        monkeypatch.setattr("pyderp.cli.relay.plan._stun_port", lambda *_: port)
        done = check("--dev", "-a", "127.0.0.1:0")
        assert done.code == 0
        assert "warning: no STUN: " in done.out
        assert "ok: no STUN" not in done.out
        assert check("--dev", "-a", "127.0.0.1:0", "--stun").code == 1


def test_a_file_that_is_no_toml_is_the_only_problem(
    check: Callable[..., Done], tmp_path: Path
) -> None:
    (tmp_path / "relay.toml").write_text("hostname = 'x\n")
    done = check("--config-file", tmp_path / "relay.toml")
    assert done.code == 1
    assert "relay.toml, line 1" in done.err
    assert done.err.count("\n") == 1


def test_a_missing_uvloop_is_reported(
    check: Callable[..., Done], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "uvloop", None)
    assert "uvloop is not installed" in check("--dev", "--loop=uvloop", "-a", "127.0.0.1:0").err


def test_a_required_native_part_that_is_missing_is_reported(
    check: Callable[..., Done], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only if it is required: otherwise the relay starts without it."""
    monkeypatch.setitem(sys.modules, "pyderp_fast", None)
    where = ("--dev", "--no-stun", "-a", "127.0.0.1:0")
    problem = check(*where, "--native=on").err
    assert "--native is on, but pyderp-fast cannot be loaded" in problem
    assert "; run make fast in pyderp's source, or give --native=auto" in problem
    for use in ("auto", "off"):
        assert not check(*where, f"--native={use}").err


def test_acme_is_checked_without_asking_the_authority(
    check: Callable[..., Done], tmp_path: Path
) -> None:
    ports = ("-a", "127.0.0.1:0", "--http-port=0", "--certmode=letsencrypt")
    done = check(*ports, "--hostname=relay.example.com")
    assert done.code == 0, done.err
    assert (
        "ok: TLS, certificate for relay.example.com: from https://acme-v02.api.letsencrypt.org"
        in done.out
    )
    assert tree(tmp_path) == []
    binding = ("--acme-eab-kid=k", "--acme-eab-key=%%")
    assert (
        "invalid base64 encoding for EAB key" in check(*ports, "--hostname=x.example", *binding).err
    )
    assert check(*ports, "--hostname=a b").code == 1


def test_a_certificate_that_was_refused_fails_the_check(
    check: Callable[..., Done], tmp_path: Path
) -> None:
    ports = ("-a", "127.0.0.1:0", "--http-port=0", "--certmode=letsencrypt", "--no-stun")
    flags = (*ports, "--hostname=relay.example.com", "--certdir", tmp_path)
    for failures, attempts in ((7, "7 attempts"), (1, "1 attempt")):
        record = Record("", failures, 0.0, 0.0, "the CA is down")
        Store(tmp_path).save_record("relay.example.com", record)
        done = check(*flags)
        assert done.code == 1
        assert "no certificate for relay.example.com, so every handshake fails; " in done.err
        assert f"{attempts} failed, the last with: the CA is down" in done.err
    chain, key = issue("relay.example.com")
    (tmp_path / "relay.example.com").write_bytes(key + chain)
    assert check(*flags).code == 0
