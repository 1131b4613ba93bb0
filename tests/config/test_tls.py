"""Settings that cannot work; twins of derper's TestCertModeIPCertsGating and TestGCPCertMode."""

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


def test_an_address_needs_ip_certs_and_both_ways_out_are_named() -> None:
    with pytest.raises(ConfigError, match=r"hostname=203.* give ip_certs.*certmode=manual"):
        acme(hostname="203.0.113.7")


@pytest.mark.parametrize("hostname", ["203.0.113.7", "2001:db8::7", "derp.example.com"])
def test_ip_certs_go_with_names_and_addresses(hostname: str) -> None:
    acme(hostname=hostname, ip_certs=True)


def test_ip_certs_need_plain_http() -> None:
    with pytest.raises(ConfigError, match=r"set http_port$"):
        acme(ip_certs=True, http_port=None)


def test_a_name_does_without_plain_http() -> None:
    acme(http_port=None)


def test_public_authorities_need_a_full_name() -> None:
    with pytest.raises(ConfigError, match="'relay' is no full DNS name"):
        acme(hostname="relay")
    acme(hostname="relay", directory="https://ca.internal/directory")


@pytest.mark.parametrize(
    "hostname", ["", "no name", "*.example.com", "a/b.example.com", "ex\n.com"]
)
def test_what_is_no_name_is_refused(hostname: str) -> None:
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
    ("more", "told"),
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
def test_googles_authority_wants_all_of_its_settings(more: dict[str, Any], told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        google(**more)


def test_googles_authority_is_content_with_all_of_them() -> None:
    google()


@pytest.mark.parametrize("encode", [base64.b64encode, base64.urlsafe_b64encode])
@pytest.mark.parametrize("padded", [True, False])
def test_the_key_of_a_binding_comes_in_both_base64s(encode: Any, padded: bool) -> None:
    text = encode(KEY).decode()
    text = text if padded else text.rstrip("=")
    assert parse_eab_key(text) == KEY
    google(eab_key=text)


@pytest.mark.parametrize("text", ["", "=", "a", "ab cd", "é", "ab\x00c"])
def test_a_bad_key_is_refused_and_not_repeated(text: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_eab_key(text)
    assert str(caught.value) == "invalid base64 encoding for EAB key"


def test_a_binding_needs_both_of_its_parts() -> None:
    for part in ({"eab_kid": "x"}, {"eab_key": "aa"}):
        with pytest.raises(ConfigError, match="needs both eab_kid and eab_key") as caught:
            acme(**part)
        assert caught.value.settings == ("tls.eab_kid", "tls.eab_key")


@pytest.mark.parametrize("directory", ["", "http://ca.internal", "ca.internal"])
def test_an_authority_is_asked_by_https(directory: str) -> None:
    with pytest.raises(ConfigError, match="is no https:// URL") as caught:
        acme(directory=directory)
    assert caught.value.settings == ("tls.directory",)


@pytest.mark.parametrize("name", ["1.2.3", "999.1.1.1", "5"])
def test_a_number_is_no_host_name(name: str) -> None:
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
def test_a_name_that_no_file_can_be_for_is_refused_as_such(name: str, why: str) -> None:
    with pytest.raises(ConfigError, match=why) as caught:
        ManualTLS(certdir=Path(), hostname=name)
    assert caught.value.settings == ("tls.hostname",)


@pytest.mark.parametrize("url", ["http://", "https://:443/x", "http://[::1", "http://h:99999"])
def test_a_url_of_an_admission_controller_names_a_host(url: str) -> None:
    with pytest.raises(ConfigError, match=r"admission URL .*(names no host|cannot be used)"):
        check_setting("admission.url", url)


def test_what_has_no_rule_takes_any_value() -> None:
    check_setting("tls.email", 5)
    check_setting("no.such", None)
