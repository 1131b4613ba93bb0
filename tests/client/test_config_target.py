"""Port, scheme, Host, request target and the URL as shown."""

from __future__ import annotations

import traceback

import pytest

from pyderp import Client, ConfigError, DERPNode, DERPRegion
from pyderp.client.config import node_url, parse_url, region_label


@pytest.mark.parametrize(
    ("url", "tls", "host", "port", "header", "target"),
    [
        ("https://h.example/derp", True, "h.example", 443, "h.example", "/derp"),
        ("http://h.example/derp", False, "h.example", 80, "h.example", "/derp"),
        ("HTTP://h.example/derp", False, "h.example", 80, "h.example", "/derp"),
        ("https://h:8443/derp", True, "h", 8443, "h:8443", "/derp"),
        ("http://h:3340/derp", False, "h", 3340, "h:3340", "/derp"),
        ("https://h:443/derp", True, "h", 443, "h:443", "/derp"),
        # No /derp is added; path and query stay as they are.
        ("https://h", True, "h", 443, "h", "/"),
        ("https://h/a%20b/../c?x=1&y=%2f", True, "h", 443, "h", "/a%20b/../c?x=1&y=%2f"),
        ("https://h?x=1", True, "h", 443, "h", "/?x=1"),
        ("https://h/derp#part", True, "h", 443, "h", "/derp"),
        ("https://[2001:db8::1]/derp", True, "2001:db8::1", 443, "[2001:db8::1]", "/derp"),
        ("http://[::1]:3340/derp", False, "::1", 3340, "[::1]:3340", "/derp"),
        ("https://h:/derp", True, "h", 443, "h", "/derp"),
        ("https://user:pw@h:8443/derp", True, "h", 8443, "h:8443", "/derp"),
    ],
)
def test_a_url_decides_address_tls_and_request_target(
    url: str, tls: bool, host: str, port: int, header: str, target: str
) -> None:
    found = parse_url(url)
    assert found.tls is tls
    assert (found.host, found.port) == (host, port)
    assert found.host_header == header
    assert found.request_target == target


@pytest.mark.parametrize(
    ("url", "text"),
    [
        ("ftp://h/derp", 'derphttp.NewClient: invalid URL scheme "ftp"; want https:// or http://'),
        # A port does not make another scheme TLS.
        (
            "ftp://h:12/derp",
            'derphttp.NewClient: invalid URL scheme "ftp"; want https:// or http://',
        ),
        (
            "ws://h:12/derp",
            'derphttp.NewClient: invalid URL scheme "ws"; want https:// or http://, w',
        ),
        (
            "wss://h/derp",
            'derphttp.NewClient: invalid URL scheme "wss"; want https:// or http://, w',
        ),
        ("//h/derp", 'derphttp.NewClient: invalid URL scheme ""; want https:// or http://'),
        (
            "relay.example.com/derp",
            "derphttp.NewClient: 'relay.example.com/derp' has no scheme: "
            "write https://relay.example.com/derp, or http://relay.example.com/derp for a",
        ),
        (
            "127.0.0.1:3340",
            "derphttp.NewClient: '127.0.0.1:3340' has no scheme: "
            "write https://127.0.0.1:3340/derp, or http://127.0.0.1:3340/derp for a",
        ),
        ("localhost:3340", "derphttp.NewClient: 'localhost:3340' has no scheme"),
        ("me:secret@relay.example.com", "derphttp.NewClient: no host in"),
        ("https:///derp", "derphttp.NewClient: no host in"),
        ("", "derphttp.NewClient: no host in"),
        ("https://h:99999/derp", "derphttp.NewClient: the port"),
        ("https://h:x/derp", "derphttp.NewClient: the port"),
        ("https://[::1/derp", "derphttp.NewClient: "),
    ],
)
def test_a_url_without_host_or_port_is_refused(url: str, text: str) -> None:
    """A URL without host or port is refused when the client is made, with Go's text."""
    with pytest.raises(ConfigError) as caught:
        Client.for_url(url)
    assert str(caught.value).startswith(text)


@pytest.mark.parametrize(
    "url",
    [
        "https://user:s3cret@h:99999/derp",
        "https://user:s3cret@h:x/derp",
        "https://user:s3cret@[::1/derp",
        "https://user:s3cret@/derp",
        "ftp://user:s3cret@h/derp",
        # For a parser, the password ends the host, and looks like a port.
        "https://user:s3cret/more@h/derp",
        # This character is equivalent to a /, and the standard library's error repeats the URL.
        "https://user:s3cret@h\u2100/derp",
    ],
)
def test_errors_do_not_show_the_password(url: str) -> None:
    """Neither the error nor its traceback contains the password."""
    with pytest.raises(ConfigError) as caught:
        parse_url(url)
    assert "s3cret" not in "".join(traceback.format_exception_only(caught.value))
    cause = caught.value.__cause__ or (
        None if caught.value.__suppress_context__ else caught.value.__context__
    )
    assert "s3cret" not in str(cause)


def test_password_is_kept_for_a_websocket_only() -> None:
    """Name and password are decoded, and not in the URL as shown."""
    found = parse_url("https://us%40er:p%2Fw@h/derp")
    assert found.userinfo == ("us@er", "p/w")
    assert found.text == "https://xxxxx@h/derp"
    assert "p/w" not in repr(found)
    assert parse_url("https://token@h/derp?password=x").text == "https://xxxxx@h/derp?xxxxx"
    assert "p%2Fw" not in str(Client.for_url("https://user:p%2Fw@h/derp"))
    assert parse_url("https://user@h/derp").userinfo == ("user", "")
    assert parse_url("https://h/derp").userinfo is None


@pytest.mark.parametrize(
    ("derp_port", "tls", "port", "text"),
    [
        (0, True, 443, "https://n.example/derp"),
        (443, True, 443, "https://n.example/derp"),
        (8443, True, 8443, "https://n.example:8443/derp"),
        (80, True, 80, "https://n.example:80/derp"),
        (0, False, 3340, "http://n.example/derp"),
        (80, False, 80, "http://n.example/derp"),
        (443, False, 443, "http://n.example:443/derp"),
        (3340, False, 3340, "http://n.example:3340/derp"),
    ],
)
def test_a_nodes_port_is_left_out_if_it_is_the_schemes_own(
    derp_port: int, tls: bool, port: int, text: str
) -> None:
    node = DERPNode(name="1a", region_id=1, host_name="n.example", derp_port=derp_port)
    found = node_url(node, tls=tls)
    assert found.text == text
    assert found.tls is tls
    assert (found.host, found.port) == ("n.example", port)
    assert found.host_header == text.split("/")[2]
    assert found.request_target == "/derp"


def test_a_node_with_an_ipv6_address_as_host_name_gets_brackets() -> None:
    node = DERPNode(name="1a", region_id=1, host_name="::1", derp_port=444)
    assert node_url(node, tls=True).host_header == "[::1]:444"
    assert node_url(node, tls=True).host == "::1"


def test_a_region_is_named_as_in_go() -> None:
    assert region_label(DERPRegion(region_id=7, region_code="x")) == "region 7 (x)"
