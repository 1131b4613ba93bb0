from __future__ import annotations

import socket
import sys

import pytest

from pyderp.aio.sockets import format_address, listen, parse_address, unmap
from pyderp.errors import ConfigError


@pytest.mark.parametrize(
    ("text", "want"),
    [
        (":443", ("", 443)),
        (":0", ("", 0)),
        ("127.0.0.1:3340", ("127.0.0.1", 3340)),
        ("[::1]:8443", ("::1", 8443)),
        ("[::]:65535", ("::", 65535)),
        ("derp.example.com:https", ("derp.example.com", 443)),
        (":http", ("", 80)),
    ],
)
def test_addresses_as_derper_takes_them(text: str, want: tuple[str, int]) -> None:
    assert parse_address(text) == want


@pytest.mark.parametrize(
    "text",
    [
        "",
        "127.0.0.1",
        "443",
        "::1",
        "::1:443",
        "127.0.0.1:",
        ":",
        ":65536",
        ":-1",
        ":+1",
        ": 80",
        ":80x",
        ":٤٤٣",
        ":" + "9" * 5000,
    ],
)
def test_other_addresses_are_refused_with_the_text_given(text: str) -> None:
    with pytest.raises(ConfigError, match="invalid server address"):
        parse_address(text)


def test_format_puts_brackets_around_ipv6_only() -> None:
    assert format_address("192.0.2.1", 80) == "192.0.2.1:80"
    assert format_address("2001:db8::1", 80) == "[2001:db8::1]:80"


@pytest.mark.parametrize(
    ("host", "want"),
    [
        ("::ffff:192.0.2.1", "192.0.2.1"),
        ("192.0.2.1", "192.0.2.1"),
        ("2001:db8::1", "2001:db8::1"),
        ("::1", "::1"),
        ("fe80::1%eth0", "fe80::1%eth0"),
    ],
)
def test_unmap_shows_ipv4_addresses_as_such(host: str, want: str) -> None:
    assert unmap(host) == want


def test_a_listener_listens_on_a_free_port_and_does_not_block() -> None:
    with listen("127.0.0.1", 0, keepalive_time=600, user_timeout=15) as sock:
        host, port = sock.getsockname()
        assert host == "127.0.0.1"
        assert port != 0
        assert sock.getblocking() is False
        with socket.create_connection((host, port), timeout=5):
            pass


def test_an_empty_host_listens_on_both_families() -> None:
    with listen("", 0, keepalive_time=0, user_timeout=0) as sock:
        port = sock.getsockname()[1]
        for address in ("127.0.0.1", "::1"):
            with socket.create_connection((address, port), timeout=5):
                pass


def test_without_ipv6_an_empty_host_listens_on_ipv4(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(socket, "has_dualstack_ipv6", lambda: False)
    with listen("", 0, keepalive_time=0, user_timeout=0) as sock:
        assert sock.family is socket.AF_INET
        assert sock.getsockname()[0] == "0.0.0.0"


@pytest.mark.skipif(sys.platform != "linux", reason="Linux hands options on to accepted sockets")
def test_accepted_sockets_carry_the_options_of_the_listener() -> None:
    with listen("127.0.0.1", 0, keepalive_time=600, user_timeout=15, notsent_lowat=16384) as sock:
        sock.setblocking(True)
        with socket.create_connection(sock.getsockname(), timeout=5):
            accepted, _ = sock.accept()
            with accepted:
                get = accepted.getsockopt
                assert get(socket.SOL_SOCKET, socket.SO_KEEPALIVE) == 1
                assert get(socket.IPPROTO_TCP, socket.TCP_NODELAY) == 1
                assert get(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE) == 600
                assert get(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL) == 15
                assert get(socket.IPPROTO_TCP, socket.TCP_KEEPCNT) == 9
                assert get(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT) == 15000
                assert get(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT) == 16384


@pytest.mark.skipif(sys.platform != "linux", reason="Linux hands options on to accepted sockets")
def test_zero_leaves_options_as_the_system_has_them() -> None:
    with listen("127.0.0.1", 0, keepalive_time=0, user_timeout=0) as sock:
        assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE) == 0
        assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT) == 0


@pytest.mark.parametrize("seconds", [1e5, 1e12, float("inf")])
def test_a_time_that_the_kernel_refuses_leaves_its_own(seconds: float) -> None:
    with listen("127.0.0.1", 0, keepalive_time=seconds, user_timeout=seconds) as sock:
        assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE) == 1


def test_a_system_without_an_option_does_without_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(socket, "TCP_USER_TIMEOUT")
    with listen("127.0.0.1", 0, keepalive_time=0, user_timeout=15):
        pass


def test_a_taken_port_is_explained() -> None:
    with listen("127.0.0.1", 0, keepalive_time=0, user_timeout=0) as sock:
        port = sock.getsockname()[1]
        with pytest.raises(ConfigError, match=rf"127\.0\.0\.1:{port}: the port is taken"):
            listen("127.0.0.1", port, keepalive_time=0, user_timeout=0)


def test_an_address_of_another_machine_is_explained() -> None:
    with pytest.raises(ConfigError, match="does not have that address"):
        listen("192.0.2.1", 0, keepalive_time=0, user_timeout=0)


@pytest.mark.parametrize("host", ["no such host", "a" * 70, "a..b", "x\0y"])
def test_a_host_that_is_no_name_is_explained(host: str) -> None:
    with pytest.raises(ConfigError, match="cannot listen on"):
        listen(host, 0, keepalive_time=0, user_timeout=0)


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (PermissionError(13, "Permission denied"), "CAP_NET_BIND_SERVICE"),
        (OSError(12, "Cannot allocate memory"), "Cannot allocate memory"),
        (OSError("odd"), "odd"),
    ],
)
def test_other_failures_are_explained(
    monkeypatch: pytest.MonkeyPatch, error: OSError, text: str
) -> None:
    def fail(*_: object, **__: object) -> socket.socket:
        raise error

    monkeypatch.setattr(socket, "create_server", fail)
    with pytest.raises(ConfigError, match=text):
        listen("127.0.0.1", 80, keepalive_time=0, user_timeout=0)
