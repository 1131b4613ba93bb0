"""Command lines that are refused: the error, and the exit code."""

from __future__ import annotations

import socket
import sys
from pathlib import Path
from typing import Protocol

import pytest

from pyderp.cli.main import main
from pyderp.cli.relay import run as relayrun
from tests.cli.process import pyderp
from tests.server.certificates import write_pair
from tests.server.ways import NAME

from .test_run import LOCAL, secure


class Refused(Protocol):
    def __call__(self, *args: object, code: int = 1) -> str: ...


@pytest.fixture
def refused(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Refused:
    """Run `pyderp relay` in this process; returns its error when it refuses."""

    # It would change garbage collection of this process for good.
    monkeypatch.setattr(relayrun, "_quiet_collector", lambda: None)

    def run(*args: object, code: int = 1) -> str:
        monkeypatch.setattr(sys, "argv", ["pyderp", "relay", *map(str, args)])
        with pytest.raises(SystemExit) as caught:
            main()
        out, err = capsys.readouterr()
        assert caught.value.code == code, err
        assert out == ""
        return err

    return run


@pytest.mark.parametrize(
    ("flags", "code", "expected"),
    [
        (["--dev", "-a", "127.0.0.1"], 1, "pyderp: --address: invalid server address"),
        (["--dev", "--no-such-flag"], 2, "Usage:"),
        (["-a", "127.0.0.1:0", "-c", "/proc/none/key"], 1, "cannot make the key file"),
    ],
)
def test_a_refusal_is_an_exit_code_and_no_traceback(
    flags: list[str], code: int, expected: str
) -> None:
    result = pyderp("relay", *flags)
    assert result.returncode == code
    assert expected in result.stderr
    assert "Traceback" not in result.stderr
    assert result.stdout == ""


@pytest.mark.parametrize(
    ("address", "expected"),
    [
        ("127.0.0.1", "invalid server address '127.0.0.1'"),
        ("127.0.0.1:x", "'x' is not a port number"),
        ("192.0.2.1:0", "this machine does not have that address"),
    ],
)
def test_a_bad_address_is_explained(refused: Refused, address: str, expected: str) -> None:
    text = refused("--dev", "-a", address)
    assert text.startswith("pyderp: ")
    assert expected in text
    assert "another problem" not in text
    assert text.count("\n") == 1


def test_a_taken_port_is_explained(refused: Refused) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert "the port is taken" in refused("--dev", "-a", f"127.0.0.1:{port}")


@pytest.mark.parametrize(
    "flags",
    [
        ["--no-such-flag"],
        ["--http-port=70000"],
        ["--drain=-1"],
        ["--drain=soon"],
        ["--loop=trio"],
        ["--certmode=magic"],
        ["surplus"],
    ],
)
def test_a_wrong_command_line_exits_2(refused: Refused, flags: list[str]) -> None:
    assert "Usage:" in refused("--dev", *flags, code=2)


def test_a_value_after_a_switch_names_both_ways_to_write_it(refused: Refused) -> None:
    err = " ".join(refused("--verify-clients", "true", code=2).replace("│", " ").split())
    expected = "a switch takes no value: --verify-clients or --no-verify-clients"
    assert f"--verify-clients true: {expected}" in err


def test_a_network_is_quoted_once(refused: Refused) -> None:
    for flag in ("--debug-trusted", "--trusted-proxy"):
        err = " ".join(refused(f"{flag}=foo", code=2).replace("│", " ").split())
        assert err.count("'foo'") == 1
        assert "'foo' is not a network; want one such as 10.0.0.0/8" in err


@pytest.mark.parametrize("content", [None, b"\xff\xfe", b"not json", b"{}", b'{"PrivateKey": 1}'])
def test_an_unusable_key_file_is_named(
    refused: Refused, tmp_path: Path, content: bytes | None
) -> None:
    path = tmp_path / "relay.key"
    if content is None:
        path.mkdir()
    else:
        path.write_bytes(content)
    assert f"the key file {path}" in refused("--dev", *LOCAL, "-c", path)


def test_a_key_file_is_never_quoted(refused: Refused, tmp_path: Path) -> None:
    path = tmp_path / "relay.key"
    path.write_text('{"PrivateKey": "privkey:secretsecret"}')
    assert "secret" not in refused("--dev", *LOCAL, "-c", path)


@pytest.mark.parametrize("content", ["", "ab" * 31, "zz" * 32, "ab" * 33, "secret"])
def test_a_bad_mesh_key_is_refused_and_not_quoted(
    refused: Refused, tmp_path: Path, content: str
) -> None:
    path = tmp_path / "mesh.key"
    path.write_text(content)
    text = refused("--dev", *LOCAL, "--mesh-psk-file", path)
    assert f"the mesh key file {path} cannot be used" in text
    assert not content or content not in text.replace(str(path), "")


def test_a_missing_mesh_key_file_is_named(refused: Refused, tmp_path: Path) -> None:
    path = tmp_path / "none"
    assert f"cannot read the mesh key file {path}" in refused(
        "--dev", *LOCAL, "--mesh-psk-file", path
    )


def test_a_missing_certificate_directory_is_named(refused: Refused, tmp_path: Path) -> None:
    assert f"cannot read certificate {tmp_path / 'none'}" in refused(*secure(tmp_path / "none"))


@pytest.mark.parametrize(
    ("fault", "expected"),
    [
        ("names", "is not valid for 'derp.example.com': it names other.example.com"),
        ("password", "the key is encrypted"),
        ("certificate", "holds no certificate in PEM form"),
        ("key", "cannot use certificate"),
    ],
)
def test_a_certificate_that_cannot_be_used_is_explained(
    refused: Refused, tmp_path: Path, fault: str, expected: str
) -> None:
    names = ["other.example.com"] if fault == "names" else None
    write_pair(tmp_path, NAME, names=names, password="p" if fault == "password" else "")
    if fault == "certificate":
        (tmp_path / f"{NAME}.crt").write_text("garbage")
    if fault == "key":
        (tmp_path / f"{NAME}.key").write_text("garbage")
    assert expected in refused(*secure(tmp_path))


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        (["--certmode=manual", "--hostname=x"], "needs --certdir"),
        (["--certmode=manual", "--certdir=/x"], "needs --hostname"),
        (["--cert-file=x", "--cert-key-file=y"], "--cert-file needs --hostname, a name or IP"),
        (["--cert-key-file=y"], "--cert-key-file needs --hostname, a name or IP"),
        (["--cert-file=x", "--hostname=x"], "--cert-file and --cert-key-file belong together"),
        (
            ["--certmode=gcp", "--cert-file=x", "--hostname=x"],
            "--cert-file needs --certmode=manual",
        ),
        (
            ["--certmode=letsencrypt", "--any-server-name", "--hostname=x.example"],
            "--any-server-name needs --certmode=manual",
        ),
        (["--certmode=letsencrypt"], "needs --hostname"),
        (["--certmode=letsencrypt", "--hostname=192.0.2.1"], "--acme-ip-certs"),
        (["--certmode=gcp", "--hostname=x"], "needs --acme-eab-kid, --acme-eab-key, --acme-email"),
        (["--certmode=manual", "--hostname=::1", "--acme-ip-certs"], "it is manual"),
        (["--mesh-with=x"], "needs --mesh-psk-file"),
        (["--secrets-url=http://x"], "setec is not built"),
        (["--ace"], "not built"),
        (["--proxy-protocol"], "needs --trusted-proxy"),
        (["--login-timeout=0"], "--login-timeout is 0; want more than 0 seconds"),
        (["--home=nowhere"], "unknown home 'nowhere'"),
        (["--verify-client-url=x"], "neither http:// nor https://"),
        (["--tls"], "--certmode=manual"),
        (["--no-tls", "--certmode=manual"], "--no-tls and --certmode exclude each other"),
    ],
)
def test_flags_that_do_not_go_together_are_explained(
    refused: Refused, flags: list[str], expected: str
) -> None:
    assert expected in refused("--dev", *LOCAL, *flags)


def test_a_relay_that_cannot_start_makes_no_key_file(refused: Refused, tmp_path: Path) -> None:
    """Because of flags, the certificate, other files, or a port."""
    path = tmp_path / "keys" / "relay.key"
    broken = tmp_path / "broken"
    broken.write_text("{")
    write_pair(tmp_path, NAME)
    refused(*secure(tmp_path / "none"), "-c", path)
    refused(*secure(tmp_path), "-c", path, "--no-derp", "--http-port=x", code=2)
    refused("-a", "nonsense", "-c", path)
    refused(*secure(tmp_path), "-c", path, "--rate-config", broken)
    refused(*secure(tmp_path), "-c", path, "--allow-keys-file", broken)
    refused(*secure(tmp_path), "-c", path, "--mesh-psk-file", broken)
    refused(*secure(tmp_path), "-c", path, "--config-file", broken)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        refused("-a", f"127.0.0.1:{taken.getsockname()[1]}", "-c", path)
    assert not path.parent.exists()


def test_without_any_place_for_the_key_one_must_be_named(
    refused: Refused, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("os.geteuid", lambda: 1000)
    for name in ("STATE_DIRECTORY", "XDG_STATE_HOME", "HOME"):
        monkeypatch.delenv(name, raising=False)
    assert "-c FILE is missing" in refused("-a", "127.0.0.1:0")
    acme = refused("--dev", "-a", "127.0.0.1:0", "--certmode=letsencrypt", "--hostname=a.example")
    assert "there is no place to keep the certificates: --certdir DIR is missing" in acme


def test_without_uvloop_asking_for_it_is_refused_and_auto_is_not(
    refused: Refused, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "uvloop", None)
    assert "uvloop is not installed" in refused("--dev", *LOCAL, "--loop=uvloop")
    assert "does not have that address" in refused("--dev", "-a", "192.0.2.1:0")


def test_ctrl_c_before_the_relay_runs_exits_130(
    refused: Refused, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(relayrun, "_run", interrupt)
    refused("--dev", code=130)


def test_the_version_and_help_are_printed() -> None:
    assert pyderp("--version").stdout.startswith("pyderp ")
    result = pyderp("relay", "--help")
    assert result.returncode == 0
    for flag in ("--address", "--config", "--hostname", "--certdir", "--drain", "--dev"):
        assert flag in result.stdout


@pytest.mark.parametrize(
    ("flag", "advice"),
    [
        ("-certmode=manual", "--certmode=manual"),
        ("-config=x", "--config=x"),
        ("-a=127.0.0.1:0", "-a 127.0.0.1:0"),
        ("-dev", "--dev"),
    ],
)
def test_go_s_spelling_is_refused_and_nothing_is_made(
    refused: Refused, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, flag: str, advice: str
) -> None:
    """Otherwise it would be read as a bundle of short flags: a relay without TLS, a key file
    `ertmode`."""
    monkeypatch.chdir(tmp_path)
    assert advice in refused(flag, code=2)
    assert not list(tmp_path.iterdir())


def test_port_443_without_a_certificate_names_the_choices(refused: Refused) -> None:
    expected = refused("-a", ":443")
    assert "--certmode=manual" in expected
    assert "--dev" in expected


@pytest.mark.parametrize(
    ("hostname", "why"),
    [
        ("localhost:8443", "has a port: want the host name alone"),
        ("[::1]", "neither a host name nor an IP address"),
        ("a/b", "neither a host name nor an IP address"),
        ("999.1.1.1", "is not an IP address"),
        ("1.2.3", "is not an IP address"),
    ],
)
def test_an_invalid_hostname_is_refused(
    refused: Refused, tmp_path: Path, hostname: str, why: str
) -> None:
    expected = refused(
        "-a", "127.0.0.1:0", "--certmode=manual", f"--certdir={tmp_path}",
        "--http-port=-1", f"--hostname={hostname}", "-c", tmp_path / "key",
    )  # fmt: skip
    assert expected.startswith("pyderp: --hostname: ")
    assert why in expected
