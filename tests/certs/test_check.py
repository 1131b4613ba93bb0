"""Settings that cannot work; twins of derper's TestCertModeIPCertsGating and TestGCPCertMode."""

from __future__ import annotations

import base64
from pathlib import Path
from typing import Any

import pytest

from pyderp.certs.check import check_acme, eab_key, normal_name
from pyderp.config import ACMETLS, GOOGLE
from pyderp.errors import ConfigError
from tests.server.certificates import write_pair

KEY = b"\xfb\xef\xbe secret key \xff\xff"


def acme(**more: Any) -> ACMETLS:
    return ACMETLS(**{"certdir": Path("/nowhere"), "hostname": "derp.example.com", **more})


def test_an_address_needs_ip_certs_and_both_ways_out_are_named() -> None:
    with pytest.raises(ConfigError, match=r"--acme-ip-certs.*--certmode=manual"):
        check_acme(acme(hostname="203.0.113.7"))


@pytest.mark.parametrize("hostname", ["203.0.113.7", "2001:db8::7", "derp.example.com"])
def test_ip_certs_go_with_names_and_addresses(hostname: str) -> None:
    check_acme(acme(hostname=hostname, ip_certs=True))


def test_ip_certs_need_plain_http() -> None:
    with pytest.raises(ConfigError, match="--http-port"):
        check_acme(acme(ip_certs=True, http_port=None))


def test_a_name_does_without_plain_http() -> None:
    check_acme(acme(http_port=None))


def test_public_authorities_need_a_full_name() -> None:
    with pytest.raises(ConfigError, match="'relay' is no full DNS name"):
        check_acme(acme(hostname="relay"))
    check_acme(acme(hostname="relay", directory="https://ca.internal/directory"))


@pytest.mark.parametrize(
    "hostname", ["", "no name", "*.example.com", "a/b.example.com", "ex\n.com"]
)
def test_what_is_no_name_is_refused(hostname: str) -> None:
    with pytest.raises(ConfigError, match="neither a host name nor an IP address"):
        check_acme(acme(hostname=hostname))


def google(**more: Any) -> ACMETLS:
    given = {
        "directory": GOOGLE,
        "email": "ops@example.com",
        "eab_kid": "kid",
        "eab_key": base64.b64encode(KEY).decode(),
    }
    return acme(**{**given, **more})


@pytest.mark.parametrize(
    ("more", "told"),
    [
        (
            {"eab_kid": "", "eab_key": "", "email": ""},
            "--certmode=gcp needs --acme-eab-kid, --acme-eab-key, --acme-email$",
        ),
        ({"eab_kid": "", "eab_key": ""}, "needs --acme-eab-kid, --acme-eab-key$"),
        ({"email": ""}, "needs --acme-email$"),
        ({"eab_key": "not base64!"}, "invalid base64 encoding for EAB key"),
        ({"hostname": "203.0.113.7"}, "needs a DNS name"),
        ({"ip_certs": True}, "--acme-ip-certs requires --certmode=letsencrypt"),
    ],
)
def test_googles_authority_wants_all_of_its_settings(more: dict[str, Any], told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        check_acme(google(**more))


def test_googles_authority_is_content_with_all_of_them() -> None:
    check_acme(google())


@pytest.mark.parametrize("encode", [base64.b64encode, base64.urlsafe_b64encode])
@pytest.mark.parametrize("padded", [True, False])
def test_the_key_of_a_binding_comes_in_both_base64s(encode: Any, padded: bool) -> None:
    text = encode(KEY).decode()
    text = text if padded else text.rstrip("=")
    assert eab_key(text) == KEY
    check_acme(google(eab_key=text))


@pytest.mark.parametrize("text", ["", "=", "a", "ab cd", "é", "ab\x00c"])
def test_a_bad_key_is_refused_and_not_repeated(text: str) -> None:
    with pytest.raises(ConfigError) as caught:
        eab_key(text)
    assert str(caught.value) == "invalid base64 encoding for EAB key"


def test_a_ca_file_must_hold_certificates(tmp_path: Path) -> None:
    bad = tmp_path / "bad.pem"
    bad.write_text("none")
    with pytest.raises(ConfigError, match=r"bad\.pem: it holds no certificate"):
        check_acme(acme(ca_file=bad))
    with pytest.raises(ConfigError, match=r"gone\.pem: No such file"):
        check_acme(acme(ca_file=tmp_path / "gone.pem"))
    write_pair(tmp_path, "ca")
    check_acme(acme(ca_file=tmp_path / "ca.crt"))


@pytest.mark.parametrize(
    ("given", "normal"),
    [
        ("DERP.Example.COM.", "derp.example.com"),
        ("Bücher.example", "xn--bcher-kva.example"),
        ("xn--bcher-kva.example", "xn--bcher-kva.example"),
    ],
)
def test_names_have_one_form(given: str, normal: str) -> None:
    assert normal_name(given) == normal


@pytest.mark.parametrize("name", ["straße.example", "ü" * 70 + ".example", "ü..example"])
def test_international_names_that_are_in_doubt_are_refused(name: str) -> None:
    with pytest.raises(ConfigError, match=r"international|ASCII form"):
        normal_name(name)
