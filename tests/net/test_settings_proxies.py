from __future__ import annotations

import logging

import pytest

from pyderp.errors import ConfigError
from pyderp.net.settings import (
    NetworkSettings,
    Proxy,
    connect_proxy_from_environment,
    explicit_proxy,
    is_exempt,
    parse_proxy,
    socks_proxy_from_environment,
)


@pytest.mark.parametrize(
    ("text", "proxy"),
    [
        ("http://proxy", Proxy(scheme="http", host="proxy", port=80)),
        ("http://proxy:3128/", Proxy(scheme="http", host="proxy", port=3128)),
        ("https://proxy", Proxy(scheme="https", host="proxy", port=443)),
        ("HTTPS://Proxy", Proxy(scheme="https", host="proxy", port=443)),
        ("socks5://proxy", Proxy(scheme="socks5", host="proxy", port=1080)),
        ("socks5h://[::1]:9", Proxy(scheme="socks5h", host="::1", port=9)),
        ("proxy", Proxy(scheme="http", host="proxy", port=80)),
        ("proxy:3128", Proxy(scheme="http", host="proxy", port=3128)),
        ("10.0.0.1:3128", Proxy(scheme="http", host="10.0.0.1", port=3128)),
        ("me@proxy", Proxy(scheme="http", host="proxy", port=80, user="me")),
        ("me:@proxy", Proxy(scheme="http", host="proxy", port=80, user="me", password="")),
        (
            "me%40home:p%3Aw%2F@proxy:1",
            Proxy(scheme="http", host="proxy", port=1, user="me@home", password="p:w/"),
        ),
    ],
)
def test_a_proxy_is_parsed(text: str, proxy: Proxy) -> None:
    assert parse_proxy(text) == proxy


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("ftp://proxy", "proxy: its scheme is none of http, https, socks5, socks5h"),
        ("socks4://u:pw@h", "proxy: its scheme is none of http, https, "),
        ("http://", "proxy: no host; want [http://][USER:PASSWORD@]HOST[:PORT]"),
        ("http://u:pw@:80", "proxy: no host"),
        ("http://proxy:0", "proxy: no port"),
        ("joe:pw", "proxy: its port is not a number from 1 to 65535"),
        ("http://u:pw@proxy:99999", "proxy: its port is not a number"),
        ("http://[::1", "proxy: not a URL; "),
        ("http://h:x/pw", "proxy: its port is not a number"),
        ("http://[pw]/", "proxy: not a URL; "),
        ("pw://h", "proxy: its scheme is none of"),
        ("http://pro xy", "proxy: spaces or control characters in it"),
        ("http://u:pw@proxy\r\nX: y", "proxy: spaces or control characters in it"),
        ("http://u:pw[@proxy", "proxy: not a URL"),
    ],
)
def test_a_text_that_is_no_proxy_is_refused_without_a_password(text: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_proxy(text)
    assert str(caught.value).startswith(message)
    assert "pw" not in str(caught.value)
    assert caught.value.__cause__ is None


def test_printing_a_proxy_shows_no_password() -> None:
    proxy = parse_proxy("https://user:secret@[2001:db8::1]")
    assert proxy.redacted == "https://***@[2001:db8::1]:443"
    assert str(proxy) == repr(proxy) == "<Proxy https://***@[2001:db8::1]:443>"
    assert parse_proxy("h").redacted == "http://h:80"


EXEMPT = [
    # (NO_PROXY, host, port, exempt?)
    ("", "derp.example.com", 443, False),
    (" , ,", "derp.example.com", 443, False),
    # this machine
    ("", "localhost", 443, True),
    ("", "LocalHost", 443, True),
    ("", "127.0.0.1", 443, True),
    ("", "127.9.9.9", 443, True),
    ("", "::1", 443, True),
    ("", "::ffff:127.0.0.1", 443, True),
    ("", "localhost.example.com", 443, False),
    # all hosts
    ("*", "derp.example.com", 443, True),
    ("*", "192.0.2.1", 443, True),
    ("other.example, *", "derp.example.com", 443, True),
    # domains, themselves and below
    ("example.com", "example.com", 443, True),
    ("example.com", "derp.example.com", 443, True),
    ("example.com", "a.b.example.com", 443, True),
    ("example.com", "badexample.com", 443, False),
    ("example.com", "example.com.evil.net", 443, False),
    ("EXAMPLE.com", "Derp.Example.COM", 443, True),
    (" example.com ", "derp.example.com", 443, True),
    ("a.net,example.com,b.net", "derp.example.com", 443, True),
    # only below
    (".example.com", "derp.example.com", 443, True),
    (".example.com", "example.com", 443, False),
    ("*.example.com", "derp.example.com", 443, True),
    ("*.example.com", "example.com", 443, False),
    # ports
    ("example.com:443", "derp.example.com", 443, True),
    ("example.com:443", "derp.example.com", 80, False),
    (".example.com:80", "derp.example.com", 80, True),
    ("*.example.com:80", "derp.example.com", 443, False),
    (":443", "derp.example.com", 443, False),
    # names in other alphabets
    ("bücher.example", "xn--bcher-kva.example", 443, True),
    (".bücher.example", "www.bücher.example", 443, True),
    # addresses
    ("192.0.2.1", "192.0.2.1", 443, True),
    ("192.0.2.1", "192.0.2.10", 443, False),
    ("192.0.2.1", "::ffff:192.0.2.1", 443, True),
    ("192.0.2.1:443", "192.0.2.1", 443, True),
    ("192.0.2.1:80", "192.0.2.1", 443, False),
    ("2001:db8::1", "2001:db8::1", 443, True),
    ("2001:db8:0:0::1", "2001:db8::1", 443, True),
    ("[2001:db8::1]:443", "2001:db8::1", 443, True),
    ("[2001:db8::1]:80", "2001:db8::1", 443, False),
    ("[2001:db8::1]", "2001:db8::1", 443, True),
    ("192.0.2.1", "derp.example.com", 443, False),
    # blocks
    ("192.0.2.0/24", "192.0.2.77", 443, True),
    ("192.0.2.99/24", "192.0.2.77", 443, True),
    ("192.0.2.0/24", "192.0.3.1", 443, False),
    ("192.0.2.0/24", "::ffff:192.0.2.77", 443, True),
    ("2001:db8::/32", "2001:db8:1::1", 443, True),
    ("2001:db8::/32", "192.0.2.1", 443, False),
    ("192.0.2.0/24", "derp.example.com", 443, False),
    ("192.0.2.0/99", "192.0.2.1", 443, False),
    ("0.0.0.0/0", "2001:db8::1", 443, False),
    # names that DNS cannot encode stay as they are
    ("a..b", "a..b", 443, True),
    ("a..b", "c", 443, False),
]


@pytest.mark.parametrize(("no_proxy", "host", "port", "exempt"), EXEMPT)
def test_no_proxy_exempts_hosts(no_proxy: str, host: str, port: int, exempt: bool) -> None:
    assert is_exempt(no_proxy, host, port) is exempt


def test_https_and_http_have_their_own_proxies() -> None:
    settings = NetworkSettings(https_proxy="secure:1", http_proxy="plain:2", no_proxy="a.net:443")
    tls = connect_proxy_from_environment(settings, "derp.example.com", 443, tls=True)
    plain = connect_proxy_from_environment(settings, "derp.example.com", 80, tls=False)
    assert (tls, plain) == (parse_proxy("secure:1"), parse_proxy("plain:2"))
    assert connect_proxy_from_environment(settings, "a.net", 443, tls=True) is None
    assert connect_proxy_from_environment(NetworkSettings(), "a.net", 443, tls=True) is None


@pytest.mark.parametrize(("tls", "name"), [(True, "HTTPS_PROXY"), (False, "HTTP_PROXY")])
def test_a_connect_proxy_that_cannot_be_used_is_ignored_with_a_warning(
    tls: bool, name: str, caplog: pytest.LogCaptureFixture
) -> None:
    settings = NetworkSettings(https_proxy="ftp://u:pw@p", http_proxy="ftp://u:pw@p")
    assert connect_proxy_from_environment(settings, "a.net", 443, tls=tls) is None
    (record,) = caplog.records
    assert (record.name, record.levelno) == ("pyderp.net", logging.WARNING)
    assert record.getMessage().startswith(f"ignoring {name}: proxy: its scheme")


def test_all_proxy_is_used_for_socks5_only(caplog: pytest.LogCaptureFixture) -> None:
    def proxy(all_proxy: str, host: str = "derp.example.com") -> Proxy | None:
        settings = NetworkSettings(all_proxy=all_proxy, no_proxy="a.net")
        return socks_proxy_from_environment(settings, host, 443)

    assert proxy("socks5://p") == Proxy(scheme="socks5", host="p", port=1080)
    assert proxy("socks5h://p:9") == Proxy(scheme="socks5h", host="p", port=9)
    for other in ("", "http://p", "p:1080", "socks4://p", "socks5://"):
        assert proxy(other) is None
    assert proxy("socks5://p", "a.net") is None
    assert proxy("socks5://p", "127.0.0.1") is None
    assert not caplog.records


def test_an_explicit_proxy_must_be_valid() -> None:
    assert explicit_proxy(NetworkSettings()) is None
    assert explicit_proxy(NetworkSettings(proxy="p:1")) == parse_proxy("p:1")
    with pytest.raises(ConfigError, match="its scheme is none of"):
        explicit_proxy(NetworkSettings(proxy="ftp://p"))
