"""Settings that cannot work raise a ConfigError that names them."""

from __future__ import annotations

import contextlib
import copy
from pathlib import Path
from typing import Any

import pytest

from pyderp import ConfigError, ManualTLS, RelayConfig
from pyderp.config import AdmissionConfig, BootstrapDNSConfig, DebugAccess


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("address", 3340),
        ("private_key", "privkey:00"),
        ("mesh_key", "0123"),
        ("tls", "manual"),
        ("login_timeout", 0),
        ("login_timeout", -1),
        ("login_timeout", float("nan")),
        ("login_timeout", float("inf")),
        ("login_timeout", 1e308),
        ("login_timeout", "10"),
        ("login_timeout", True),
        ("write_timeout", "2"),
        ("write_timeout", -1),
        ("drain", float("nan")),
        ("tcp_notsent_lowat", None),
        ("send_queue_depth", 0),
        ("send_queue_depth", "32"),
        ("sender_cardinality", "yes"),
        ("disallow_app_names", "bad"),
        ("disallow_app_names", None),
        ("send_queue_depth", True),
    ],
)
def test_a_wrong_value_is_named(name: str, value: Any) -> None:
    with pytest.raises(ConfigError, match=f"^{name} is "):
        RelayConfig(**{name: value})


@pytest.mark.parametrize("port", [-1, 65536, "80"])
def test_an_invalid_port_is_refused(port: Any) -> None:
    with pytest.raises(ConfigError, match=r"^http_port is "):
        ManualTLS(certdir=Path(), hostname="h", http_port=port)


def test_names_that_refuse_no_client_are_listed() -> None:
    config = RelayConfig(disallow_app_names=("bad", "", "é", "", "x" * 33, "b ad"))
    empty, accent, long = config.idle_app_names()
    assert empty.startswith("disallowed app names: an empty item is dropped")
    assert 'é" refuses no client' in accent
    assert f'"{"x" * 33}" refuses no client' in long
    with pytest.raises(ConfigError, match="an item of disallow_app_names is a int"):
        RelayConfig(disallow_app_names=(1,))  # type: ignore[arg-type]


def test_certdir_may_be_a_string() -> None:
    tls: Any = ManualTLS(certdir="folder", hostname="h")  # type: ignore[arg-type]
    assert tls.certdir == Path("folder")


@pytest.mark.parametrize(
    ("values", "error", "settings"),
    [
        (
            {"mesh_with": ("a",)},
            "mesh_with needs mesh_key, the key that all relays of the mesh share",
            ("mesh_with", "mesh_key"),
        ),
        (
            {"proxy_protocol": True},
            "proxy_protocol needs trusted_proxies: the networks",
            ("proxy_protocol", "trusted_proxies"),
        ),
        (
            {"accept_limit": 1, "accept_burst": 0},
            "accept_burst is 0, so no client could connect",
            ("accept_burst", "accept_limit"),
        ),
        ({"home": "{x}"}, "unknown home '{x}'", ("home",)),
        ({"drain": -1}, "drain is -1; want 0 or more", ("drain",)),
        ({"send_queue_depth": 0}, "send_queue_depth is 0; want 1 or more", ("send_queue_depth",)),
    ],
)
def test_an_error_lists_the_settings_it_is_about(
    values: dict[str, Any], error: str, settings: tuple[str, ...]
) -> None:
    with pytest.raises(ConfigError) as caught:
        RelayConfig(**values)
    assert str(caught.value).startswith(error)
    assert caught.value.settings == settings


def test_errors_of_nested_settings_name_them_in_full() -> None:
    with pytest.raises(ConfigError, match="admission URL 'x' begins") as caught:
        AdmissionConfig(url="x")
    assert caught.value.settings == ("admission.url",)
    with pytest.raises(ConfigError, match=r"^recheck is -1") as caught:
        AdmissionConfig(recheck=-1)
    assert caught.value.settings == ("admission.recheck",)
    with pytest.raises(ConfigError, match="bootstrap DNS name 'a/'") as caught:
        BootstrapDNSConfig(unpublished=("b/c", "a/"))
    assert caught.value.settings == ("bootstrap_dns.unpublished",)


@pytest.mark.parametrize("text", ["foo", "192.0.2.0/24", "192.0.2.1:80", "[::1]", "%eth0"])
def test_an_invalid_debug_address_is_refused(text: str) -> None:
    """An invalid address would exclude the monitoring without any error."""
    with pytest.raises(ConfigError, match="not an IP address, so it would let no") as caught:
        DebugAccess(allow_ip=text)
    assert caught.value.settings == ("debug.allow_ip",)
    for fine in ("", "192.0.2.1", "fe80::1%eth0"):
        DebugAccess(allow_ip=fine)


@pytest.mark.parametrize("name", ["https://a.example", "a.example:80", "a.example b.example"])
def test_a_debug_host_that_is_no_host_name_is_refused(name: str) -> None:
    with pytest.raises(ConfigError, match="is not a host name") as caught:
        DebugAccess(hosts=("ok.example", name))
    assert caught.value.settings == ("debug.hosts",)
    DebugAccess(hosts=("a.example", "relay.tailnet.ts.net.", "", "2001:db8::1"))


def test_a_copied_error_keeps_its_text_and_settings() -> None:
    with pytest.raises(ConfigError) as caught:
        RelayConfig(proxy_protocol=True)
    again = copy.copy(caught.value)
    assert str(again) == str(caught.value)
    assert again.spelled(str.upper).startswith("PROXY_PROTOCOL needs TRUSTED_PROXIES")


@pytest.mark.parametrize(
    ("address", "http_port", "metrics", "refused"),
    [
        ("127.0.0.1:81", None, "127.0.0.1:81", "metrics_address is port 81, as is the address"),
        (":81", None, "127.0.0.1:81", "metrics_address is port 81"),
        ("127.0.0.1:81", None, "[::]:81", "metrics_address is port 81"),
        ("127.0.0.1:81", 81, "", "http_port is port 81, as is the address"),
        (":82", 81, "127.0.0.1:81", "metrics_address is port 81, as is plain HTTP beside TLS"),
        ("unix:/run/x", 81, ":81", "metrics_address is port 81, as is plain HTTP"),
        ("127.0.0.1:81", None, "127.0.0.2:81", ""),
        ("127.0.0.1:0", 0, "127.0.0.1:0", ""),
        ("unix:/run/x", None, ":81", ""),
    ],
)
def test_two_services_on_one_port_are_refused(
    address: str, http_port: int | None, metrics: str, refused: str
) -> None:
    """With SO_REUSEPORT the kernel allows it, and spreads connections over both services."""
    tls = ManualTLS(certdir=Path(), hostname="h", http_port=http_port)
    expected = pytest.raises(ConfigError, match=refused) if refused else contextlib.nullcontext()
    with expected:
        RelayConfig(address=address, tls=tls, metrics_address=metrics, reuse_port=True)
