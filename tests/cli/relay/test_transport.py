"""Whether a relay speaks TLS: one rule, and a line with the reason."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pyderp.cli.relay.goflags import _derper_defaults
from pyderp.cli.relay.layers import Settings, load_settings
from pyderp.cli.relay.transport import TRANSPORT_FLAGS, transport_of
from pyderp.errors import ConfigError
from tests.cli.commands import Done
from tests.cli.process import running

from .test_run import LOCAL


def settings(*, derper: bool = False, **given: Any) -> Settings:
    defaults = _derper_defaults() if derper else {}
    named = {name.replace("_", "-"): value for name, value in given.items()}
    return Settings(named, defaults=defaults, derper=derper)


@pytest.mark.parametrize(
    ("address", "given", "plain"),
    [
        (":443", {}, ""),
        (":8080", {}, ""),
        ("192.0.2.1:10443", {"hostname": "a.example", "public_port": 443}, ""),
        ("[2001:db8::1]:99", {}, ""),
        (":443", {"tls": False}, "--no-tls"),
        ("127.0.0.1:443", {}, "only this machine reaches 127.0.0.1:443"),
        ("127.0.0.2:99", {}, "only this machine reaches 127.0.0.2:99"),
        ("[::1]:99", {}, "only this machine reaches [::1]:99"),
        ("unix:/run/x", {}, "unix:/run/x is a Unix socket"),
        ("127.0.0.1:99", {"certmode": "manual"}, ""),
        ("127.0.0.1:99", {"tls": True}, ""),
        ("unix:/run/x", {"certmode": "letsencrypt"}, ""),
        (":3340", {"dev": True}, "--dev"),
        (":443", {"dev": True}, "--dev"),
        (":3340", {"dev": True, "certmode": "manual"}, ""),
    ],
)
def test_a_relay_speaks_tls_unless_only_this_machine_reaches_it(
    address: str, given: dict[str, Any], plain: str
) -> None:
    found = transport_of(settings(**given), address)
    assert (found.plain, found.warning) == (plain, "")


@pytest.mark.parametrize(
    ("address", "given", "tls"),
    [
        (":443", {}, True),
        ("127.0.0.1:443", {}, True),
        (":10443", {}, False),
        (":10443", {"certmode": "letsencrypt"}, False),
        (":10443", {"certmode": "manual"}, True),
        (":10443", {"certmode": "letsencrypt", "tls": True}, True),
    ],
)
def test_as_derper_tls_is_on_port_443_or_with_manual_certificates(
    address: str, given: dict[str, Any], tls: bool
) -> None:
    assert (not transport_of(settings(derper=True, **given), address).plain) == tls


def test_as_derper_certificate_flags_without_effect_are_warned_of() -> None:
    """A widely used image has these flags by default."""
    given: dict[str, Any]
    given = {"certmode": "letsencrypt", "certdir": Path("/c"), "hostname": "derp.example.com"}
    warning = transport_of(settings(derper=True, **given), ":10443").warning
    assert warning == (
        "plain HTTP on :10443: as derper, TLS is spoken on port 443 or with -certmode=manual only, "
        "so -hostname, -certmode, -certdir do nothing. For TLS give -tls, or -certmode=manual and "
        "the certificate's files; if a proxy in front ends TLS, -tls=false"
    )
    assert not transport_of(settings(derper=True), ":10443").warning
    given = {"tls": False, "hostname": "derp.example.com", "certdir": Path("/c")}
    assert not transport_of(settings(derper=True, **given), ":10443").warning


def test_flags_of_the_certificate_without_tls_are_warned_of() -> None:
    found = transport_of(settings(certdir=Path("/c"), acme_email="a@b"), "127.0.0.1:99")
    assert "--certdir, --acme-email do nothing; give --certmode for TLS, or --no-tls" in (
        found.warning
    )


def test_flags_of_the_certificate_beside_no_tls_are_warned_of(tmp_path: Path) -> None:
    given: dict[str, Any] = {"tls": False, "cert_file": Path("/c"), "cert_key_file": Path("/k")}
    found = transport_of(settings(**given), ":8443")
    assert found.plain == "--no-tls"
    assert found.warning == (
        "plain HTTP, since --no-tls: --cert-file, --cert-key-file do nothing; leave one or the "
        "other out"
    )
    assert not transport_of(settings(tls=False, hostname="a.example"), ":8443").warning
    # In a settings file it is a setting without the flag.
    file = tmp_path / "relay.toml"
    file.write_text('cert-file = "/c"\ncert-key-file = "/k"\n')
    in_file = load_settings({"tls": False, "config-file": file}, environment={})
    assert not transport_of(in_file.only(TRANSPORT_FLAGS), ":8443").warning


def test_a_directory_beside_files_of_the_certificate_is_warned_of() -> None:
    given: dict[str, Any] = {"cert_file": Path("/c"), "cert_key_file": Path("/k")}
    assert not transport_of(settings(**given), ":8443").warning
    for more in ({}, {"tls": True}):
        found = transport_of(settings(**given, **more, certdir=Path("/d")), ":8443")
        assert (found.plain, found.warning) == (
            "",
            "--certdir does nothing beside --cert-file, which names the certificate; leave it out",
        )
    found = transport_of(settings(certdir=Path("/d"), certmode="manual"), ":8443")
    assert not found.warning


def test_no_tls_and_a_certificate_mode_exclude_each_other() -> None:
    with pytest.raises(ConfigError, match="--no-tls and --certmode exclude each other"):
        transport_of(settings(tls=False, certmode="manual"), ":8443")
    with pytest.raises(ConfigError, match="-tls=false and -certmode exclude each other"):
        transport_of(settings(derper=True, tls=False, certmode="manual"), ":8443")


def test_a_public_address_needs_a_certificate(here: Callable[..., Done], tmp_path: Path) -> None:
    done = here("relay", "-a", ":8080", "-c", tmp_path / "k")
    assert done.code == 1
    assert "TLS on :8080 needs a certificate: give --hostname=NAME" in done.err
    assert "--no-tls for plain HTTP behind a proxy" in done.err


def test_check_prints_whether_and_why(here: Callable[..., Done], tmp_path: Path) -> None:
    key = ("-c", tmp_path / "k", "--no-stun", "--check")
    done = here("relay", "-a", ":0", "--no-tls", *key)
    assert "ok: no TLS, plain HTTP: --no-tls\n" in done.out
    done = here("relay", "-a", "127.0.0.1:0", "--certdir", tmp_path, *key)
    assert "ok: no TLS, plain HTTP: only this machine reaches 127.0.0.1:0\n" in done.out
    assert "warning: plain HTTP, since" in done.out


def test_the_log_of_the_start_says_whether_and_why(tmp_path: Path) -> None:
    key = ("-c", tmp_path / "k", "--no-stun")
    with running(*LOCAL, *key, "--certdir", tmp_path) as process:
        process.wait_for("no TLS, plain HTTP: only this machine reaches 127.0.0.1:0")
        process.wait_for("WARNING plain HTTP, since .*: --certdir does nothing")
    tls = ("--tls", "--hostname=127.0.0.1", "--certdir", tmp_path, "--http-port=-1")
    with running(*LOCAL, *key, *tls) as process:
        process.wait_for("TLS for 127.0.0.1, with a certificate from files")
