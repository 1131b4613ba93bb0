"""`pyderp relay --check`: everything that is wrong in one go, and nothing made."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from pyderp.keys import NodePrivate
from tests.aio.certificates import write_pair
from tests.aio.ways import NAME

from .commands import Done
from .test_relay import secure


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


def tree(folder: Path) -> list[str]:
    return sorted(str(path) for path in folder.rglob("*"))


def test_what_is_right_is_listed(check: Callable[..., Done], tmp_path: Path) -> None:
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
    assert any(line.startswith("ok: mesh with a.example.com, b.example.com") for line in lines)
    assert "ok: listening on 127.0.0.1:0" in lines
    assert "ok: STUN on UDP port 0" in lines
    assert lines[-1] == "ok: the relay can start"
    assert tree(tmp_path) == before


def test_all_problems_are_told(check: Callable[..., Done], tmp_path: Path) -> None:
    write_pair(tmp_path, NAME, names=["other.example.com"])
    (tmp_path / "relay.key").write_text("{}")
    (tmp_path / "rate.json").write_text("{")
    (tmp_path / "keys").write_text("nodekey:x\n")
    (tmp_path / "mesh.key").write_text("ab" * 32)
    (tmp_path / "mesh.key").chmod(0o600)
    (tmp_path / "relay.toml").write_text("drian = 5\nstun-port = 'x'\n")
    with socket.create_server(("127.0.0.1", 0)) as taken, taken_udp() as udp:
        done = check(
            *("--certmode=manual", "--certdir", tmp_path, "--hostname", NAME),
            *("-a", f"127.0.0.1:{taken.getsockname()[1]}"),
            *("--http-port", taken.getsockname()[1], "--stun-port", udp),
            *("-c", tmp_path / "relay.key", "--rate-config", tmp_path / "rate.json"),
            *("--allow-keys-file", tmp_path / "keys", "--mesh-with=a/b/c"),
            *("--mesh-psk-file", tmp_path / "mesh.key"),
            *("--config-file", tmp_path / "relay.toml"),
        )
    assert done.code == 1
    assert "the relay can start" not in done.out
    problems = done.err.splitlines()
    assert all(line.startswith("pyderp: ") for line in problems)
    told = [
        f"{tmp_path}/relay.toml, line 1: drian",
        f"{tmp_path}/relay.toml, line 2: stun-port",
        f"the key file {tmp_path}/relay.key lacks",
        f"certificate {tmp_path}/{NAME}.crt is not valid for '{NAME}'",
        f"{tmp_path}/rate.json",
        f"{tmp_path}/keys",
        "too many components in host tuple",
        "the port is taken",
        "--http-port=-1 does without",
        "STUN",
    ]
    assert len(problems) == len(told)
    for line, part in zip(problems, told, strict=True):
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
    assert done.out.splitlines() == ["ok: listening on 127.0.0.1:0"]
    problems = done.err.splitlines()
    told = [
        *("--ace", "--proxy-protocol", "--certmode=gcp needs --hostname", "mesh key file /none"),
        *("debug key file /none", f"the key file {tmp_path}", "rate config /none", "STUN"),
    ]
    assert len(problems) == len(told)
    for line, part in zip(problems, told, strict=True):
        assert part in line


def test_nothing_is_made_that_the_first_start_makes(
    check: Callable[..., Done], tmp_path: Path
) -> None:
    done = check("-a", "127.0.0.1:0", "--certmode=manual", "--hostname=::1", "--http-port=0")
    assert done.code == 0, done.err
    state = tmp_path / "state"
    assert f"ok: key file {state}/relay.key: made at the first start" in done.out
    assert f"ok: certificate {state}/certs/1.crt: self-signed, made at the first start" in done.out
    assert tree(tmp_path) == []


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_that_may_not_be_written_in_is_told(
    check: Callable[..., Done], tmp_path: Path
) -> None:
    tmp_path.chmod(0o500)
    done = check("-a", "127.0.0.1:0", "--certmode=manual", "--hostname=::1", "--http-port=0")
    assert done.err.count(f"no permission to write in {tmp_path}") == 2


def test_a_file_in_the_place_of_a_folder_is_told(
    check: Callable[..., Done], tmp_path: Path
) -> None:
    (tmp_path / "state").touch()
    done = check("-a", "127.0.0.1:0", "--certmode=manual", "--hostname=::1", "--http-port=0")
    assert done.code == 1
    assert "cannot look for" in done.err or done.err.count("state is no directory") == 2


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


def test_a_tailscaled_that_is_not_there_is_told(check: Callable[..., Done], tmp_path: Path) -> None:
    path = tmp_path / "tailscaled.sock"
    flags = ("--dev", "-a", "127.0.0.1:0", "--verify-clients", "--socket", path)
    assert f"tailscaled does not answer at {path}: No such file" in check(*flags).err
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(str(path))
        assert f"tailscaled does not answer at {path}: Connection refused" in check(*flags).err
        sock.listen()
        assert f"ok: tailscaled at {path}\n" in check(*flags).out


def test_a_taken_stun_port_is_none_where_nobody_asked_for_it(
    check: Callable[..., Done], monkeypatch: pytest.MonkeyPatch
) -> None:
    with taken_udp() as port:
        monkeypatch.setattr("pyderp.cli.relayflags.plan._stun_port", lambda *_: port)
        done = check("--dev", "-a", "127.0.0.1:0")
        assert done.code == 0
        assert "ok: no STUN: " in done.out
        assert check("--dev", "-a", "127.0.0.1:0", "--stun").code == 1


def test_a_file_that_is_no_toml_is_the_only_problem(
    check: Callable[..., Done], tmp_path: Path
) -> None:
    (tmp_path / "relay.toml").write_text("hostname = 'x\n")
    done = check("--config-file", tmp_path / "relay.toml")
    assert done.code == 1
    assert "relay.toml, line 1" in done.err
    assert done.err.count("\n") == 1


def test_a_missing_uvloop_is_told(
    check: Callable[..., Done], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "uvloop", None)
    assert "uvloop is not installed" in check("--dev", "--loop=uvloop", "-a", "127.0.0.1:0").err


def test_acme_is_checked_and_nobody_is_asked(check: Callable[..., Done], tmp_path: Path) -> None:
    ports = ("-a", "127.0.0.1:0", "--http-port=0", "--certmode=letsencrypt")
    done = check(*ports, "--hostname=relay.example.com")
    assert done.code == 0, done.err
    assert (
        "ok: certificate for relay.example.com: from https://acme-v02.api.letsencrypt.org"
        in done.out
    )
    assert tree(tmp_path) == []
    binding = ("--acme-eab-kid=k", "--acme-eab-key=%%")
    assert (
        "invalid base64 encoding for EAB key" in check(*ports, "--hostname=x.example", *binding).err
    )
    assert check(*ports, "--hostname=a b").code == 1
