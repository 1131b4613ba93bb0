"""TLS settings that cannot work; twins of TestCertModeIPCertsGating and TestGCPCertMode."""

from __future__ import annotations

import base64
from pathlib import Path
from typing import Any

import pytest

from pyderp.config import ACMETLS, ManualTLS
from pyderp.config.rules import check_setting, parse_eab_key
from pyderp.config.tls import GOOGLE
from pyderp.errors import ConfigError

KEY = b"\xfb\xef\xbe secret key \xff\xff"


def acme(**more: Any) -> ACMETLS:
    return ACMETLS(**{"certdir": Path("/nowhere"), "hostname": "derp.example.com", **more})


def test_an_address_needs_ip_certs_and_the_error_names_both_remedies() -> None:
    with pytest.raises(ConfigError, match=r"hostname=203.* give ip_certs.*certmode=manual"):
        acme(hostname="203.0.113.7")


@pytest.mark.parametrize("hostname", ["203.0.113.7", "2001:db8::7", "derp.example.com"])
def test_ip_certs_work_with_names_and_addresses(hostname: str) -> None:
    acme(hostname=hostname, ip_certs=True)


def test_ip_certs_need_plain_http() -> None:
    with pytest.raises(ConfigError, match=r"set http_port$"):
        acme(ip_certs=True, http_port=None)


def test_a_name_needs_no_plain_http() -> None:
    acme(http_port=None)


def test_public_authorities_need_a_full_name() -> None:
    with pytest.raises(
        ConfigError, match=r"relay is not a full DNS name such as relay\.example\.com; Let's"
    ):
        acme(hostname="relay")
    acme(hostname="relay", directory="https://ca.internal/directory")


@pytest.mark.parametrize(
    "hostname", ["", "no name", "*.example.com", "a/b.example.com", "ex\n.com"]
)
def test_an_invalid_hostname_is_refused(hostname: str) -> None:
    with pytest.raises(ConfigError, match="neither a host name nor an IP address"):
        acme(hostname=hostname)


def google(**more: Any) -> ACMETLS:
    given = {
        "directory": GOOGLE,
        "email": "ops@example.com",
        "eab_kid": "kid",
        "eab_key": base64.b64encode(KEY).decode(),
    }
    return acme(**{**given, **more})


@pytest.mark.parametrize(
    ("more", "error"),
    [
        (
            {"eab_kid": "", "eab_key": "", "email": ""},
            "certmode=gcp needs eab_kid, eab_key, email$",
        ),
        ({"eab_kid": "", "eab_key": ""}, "needs eab_kid, eab_key$"),
        ({"email": ""}, "needs email$"),
        ({"eab_key": "not base64!"}, "invalid base64 encoding for EAB key"),
        ({"hostname": "203.0.113.7"}, "needs a DNS name"),
        ({"ip_certs": True}, "ip_certs needs certmode=letsencrypt; it is gcp"),
    ],
)
def test_googles_authority_needs_all_of_its_settings(more: dict[str, Any], error: str) -> None:
    with pytest.raises(ConfigError, match=error):
        google(**more)


def test_googles_authority_with_all_of_its_settings_is_accepted() -> None:
    google()


@pytest.mark.parametrize("encode", [base64.b64encode, base64.urlsafe_b64encode])
@pytest.mark.parametrize("padded", [True, False])
def test_an_eab_key_may_be_in_either_base64_alphabet(encode: Any, padded: bool) -> None:
    text = encode(KEY).decode()
    text = text if padded else text.rstrip("=")
    assert parse_eab_key(text) == KEY
    google(eab_key=text)


@pytest.mark.parametrize("text", ["", "=", "a", "ab cd", "é", "ab\x00c"])
def test_a_bad_eab_key_is_refused_and_not_quoted(text: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_eab_key(text)
    assert str(caught.value) == "invalid base64 encoding for EAB key"


def test_external_account_binding_needs_both_of_its_settings() -> None:
    for part in ({"eab_kid": "x"}, {"eab_key": "aa"}):
        with pytest.raises(ConfigError, match="needs both eab_kid and eab_key") as caught:
            acme(**part)
        assert caught.value.settings == ("tls.eab_kid", "tls.eab_key")


@pytest.mark.parametrize("directory", ["", "http://ca.internal", "ca.internal"])
def test_the_directory_of_an_authority_must_be_an_https_url(directory: str) -> None:
    with pytest.raises(ConfigError, match="is not an https:// URL") as caught:
        acme(directory=directory)
    assert caught.value.settings == ("tls.directory",)


@pytest.mark.parametrize("name", ["1.2.3", "999.1.1.1", "5"])
def test_a_hostname_that_ends_in_a_number_is_refused(name: str) -> None:
    with pytest.raises(ConfigError, match="no name ends in a number"):
        ManualTLS(certdir=Path(), hostname=name)
    with pytest.raises(ConfigError, match="no name ends in a number"):
        check_setting("tls.hostname", name)


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("https://relay.example.com", "is a URL: want the host name alone"),
        ("relay.example.com:443", "has a port: want the host name alone"),
        ("a..b", "a part between its dots is empty or longer than 63 characters"),
        ("x" * 64, "a part between its dots is empty or longer than 63 characters"),
        ("*.example.com", "neither a host name nor an IP address"),
    ],
)
def test_a_hostname_that_cannot_be_used_is_refused_with_the_reason(name: str, why: str) -> None:
    with pytest.raises(ConfigError, match=why) as caught:
        ManualTLS(certdir=Path(), hostname=name)
    assert caught.value.settings == ("tls.hostname",)


@pytest.mark.parametrize("url", ["http://", "https://:443/x", "http://[::1", "http://h:99999"])
def test_an_admission_url_must_name_a_host(url: str) -> None:
    with pytest.raises(ConfigError, match=r"admission URL .*(names no host|cannot be used)"):
        check_setting("admission.url", url)


def test_a_setting_without_a_rule_accepts_any_value() -> None:
    check_setting("tls.email", 5)
    check_setting("no.such", None)
