from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from pyderp.errors import ConfigError
from pyderp.net import settings as settings_module
from pyderp.net.settings import NetworkSettings, default_route_device, without_userinfo

HEAD = "Iface\tDestination\tGateway\tFlags\tRefCnt\tUse\tMetric\tMask\tMTU\tWindow\tIRTT\n"
SWITCHES = {
    "TS_DEBUG_USE_DERP_HTTP": "use_derp_http",
    "TS_DEBUG_DERP_WS_CLIENT": "websocket",
    "TS_DEBUG_TLS_DIAL": "verbose_tls",
    "TS_DEBUG_DNS_CACHE": "debug_dns",
}


def test_an_empty_environment_means_the_defaults() -> None:
    assert NetworkSettings.from_environment({}) == NetworkSettings()


def test_each_variable_has_its_field() -> None:
    settings = NetworkSettings.from_environment(
        {
            "HTTPS_PROXY": "a",
            "HTTP_PROXY": "b",
            "ALL_PROXY": "c",
            "NO_PROXY": "d",
            "TS_DEBUG_FAKE_PROXY_AUTH": "e",
            "SSLKEYLOGFILE": "f",
        }
    )
    assert settings == NetworkSettings(
        https_proxy="a",
        http_proxy="b",
        all_proxy="c",
        no_proxy="d",
        proxy_authorization="e",
        keylog_file="f",
    )


@pytest.mark.parametrize("name", ["HTTPS_PROXY", "HTTP_PROXY", "ALL_PROXY", "NO_PROXY"])
def test_lower_case_names_hold_where_upper_case_is_empty(name: str) -> None:
    field = name.lower()
    read = NetworkSettings.from_environment
    assert getattr(read({field: "low"}), field) == "low"
    assert getattr(read({field: "low", name: ""}), field) == "low"
    assert getattr(read({field: "low", name: "up"}), field) == "up"


def test_the_environment_of_the_process_is_read_by_default(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTPS_PROXY", "from.the.process")
    assert NetworkSettings.from_environment().https_proxy == "from.the.process"


@pytest.mark.parametrize(("name", "field"), SWITCHES.items())
@pytest.mark.parametrize("value", ["1", "t", "T", "TRUE", "true", "True"])
def test_switches_can_be_set(name: str, field: str, value: str) -> None:
    assert getattr(NetworkSettings.from_environment({name: value}), field) is True


@pytest.mark.parametrize("name", SWITCHES)
@pytest.mark.parametrize("value", ["", "0", "f", "F", "FALSE", "false", "False"])
def test_switches_can_be_unset(name: str, value: str) -> None:
    assert NetworkSettings.from_environment({name: value}) == NetworkSettings()


@pytest.mark.parametrize("name", [*SWITCHES, "TS_FORCE_LINUX_BIND_TO_DEVICE"])
@pytest.mark.parametrize("value", ["yes", "tRUE", " 1", "2"])
def test_an_error_names_the_variable_that_is_neither_true_nor_false(name: str, value: str) -> None:
    with pytest.raises(ConfigError) as caught:
        NetworkSettings.from_environment({name: value})
    assert str(caught.value) == f"{name}={value!r} is neither true nor false: use 1 or 0"


@pytest.mark.parametrize("field", ["proxy", "https_proxy", "http_proxy", "all_proxy"])
@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("http://me:secret@proxy:1", "http://***@proxy:1"),
        ("me:secret@proxy", "***@proxy"),
        ("socks5h://me:sec@ret@proxy", "socks5h://***@proxy"),
        ("http://me:sec\nret@proxy", "http://***@proxy"),
        ("http://me:se/cret@proxy", "http://***@proxy"),
        ("http://proxy", "http://proxy"),
    ],
)
def test_no_password_is_printed(field: str, url: str, shown: str) -> None:
    settings = NetworkSettings(**{field: url})  # type: ignore[arg-type]  # all are str
    assert repr(settings) == str(settings) == f"NetworkSettings({field}={shown!r})"
    assert without_userinfo(url) == shown


def test_a_verbatim_authorization_is_not_printed() -> None:
    settings = NetworkSettings(proxy_authorization="Basic c2VjcmV0", socket_mark=5)
    assert repr(settings) == "NetworkSettings(proxy_authorization='***', socket_mark=5)"


def route(device: str, *, to: str = "00000000", flags: str = "0003", metric: int = 0) -> str:
    mask = "00000000" if to == "00000000" else "00FFFFFF"
    return f"{device}\t{to}\t010200C0\t{flags}\t0\t0\t{metric}\t{mask}\t0\t0\t0\n"


@pytest.fixture
def routes(tmp_path: Path) -> Path:
    return tmp_path / "route"


@pytest.mark.parametrize(
    ("lines", "device"),
    [
        ([route("eth0"), route("eth0", to="000200C0", flags="0001")], "eth0"),
        ([route("wlan0", metric=600), route("eth0", metric=100)], "eth0"),
        ([route("down0", flags="0002"), route("eth0", metric=9)], "eth0"),
        ([route("lo", flags="0201"), route("ppp0", flags="0001", metric=9)], "ppp0"),
        ([route("lan0", to="000200C0"), route("eth0", metric=9)], "eth0"),
    ],
)
def test_the_default_route_with_the_lowest_metric_that_is_up(
    routes: Path, lines: list[str], device: str
) -> None:
    routes.write_text(HEAD + "".join(lines))
    assert default_route_device(routes) == device


def test_without_a_default_route_there_is_no_device(routes: Path) -> None:
    routes.write_text(HEAD + route("lan0", to="000200C0"))
    with pytest.raises(ConfigError, match=r"no default route in .*, so no device to bind to"):
        default_route_device(routes)
    with pytest.raises(ConfigError, match=r"no default route: cannot read .*: No such file"):
        default_route_device(routes.with_name("missing"))


def test_a_switch_binds_to_the_device_of_the_default_route(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(settings_module, "default_route_device", lambda: "eth7")
    read = NetworkSettings.from_environment
    assert read({"TS_FORCE_LINUX_BIND_TO_DEVICE": "true"}).bind_device == "eth7"
    assert read({"TS_FORCE_LINUX_BIND_TO_DEVICE": "0"}).bind_device is None


@pytest.mark.parametrize(
    ("name", "value", "want"),
    [
        ("proxy", 3, "str"),
        ("no_proxy", None, "str"),
        ("keylog_file", Path("x"), "str"),
        ("proxy_authorization", b"secret", "str"),
        ("socket_mark", "x", "int or None"),
        ("socket_mark", True, "int or None"),
        ("bind_device", 3, "str or None"),
        ("before_connect", 3, "a function or None"),
        ("websocket", "yes", "bool"),
        ("use_derp_http", 1, "bool"),
    ],
)
def test_a_setting_of_another_type_is_refused_by_name(name: str, value: Any, want: str) -> None:
    with pytest.raises(ConfigError, match=f"^{name} is a {type(value).__name__}; want {want}$"):
        NetworkSettings(**{name: value})
