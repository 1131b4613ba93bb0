"""Entries of the list of other relays in a mesh."""

from __future__ import annotations

import asyncio

import pytest

from pyderp import ConfigError, NetworkSettings
from pyderp.net.link import Link
from pyderp.server.mesh.hosts import MeshHost, parse_mesh_host


@pytest.mark.parametrize(
    ("text", "url", "dial"),
    [
        ("derp1.example.com", "https://derp1.example.com/derp", ""),
        ("derp1.example.com:8443", "https://derp1.example.com:8443/derp", ""),
        ("localhost:8443/10.0.0.1", "https://localhost:8443/derp", "10.0.0.1"),
        ("derp1/derp1-vpc.internal", "https://derp1/derp", "derp1-vpc.internal"),
        ("derp1/fd00::1", "https://derp1/derp", "fd00::1"),
        ("derp1/[fd00::1]", "https://derp1/derp", "fd00::1"),
        ("[fd00::1]:444", "https://[fd00::1]:444/derp", ""),
        ("203.0.113.7", "https://203.0.113.7/derp", ""),
        ("http://a:3340/derp", "http://a:3340/derp", ""),
        ("https://a/x/derp", "https://a/x/derp", ""),
        ("http://[::1]:3340/derp", "http://[::1]:3340/derp", ""),
    ],
)
@pytest.mark.parametrize("space", ["", "  "])
def test_a_valid_entry_is_parsed(text: str, url: str, dial: str, space: str) -> None:
    """Space around an entry does not matter."""
    assert parse_mesh_host(space + text + space) == MeshHost(text, url, dial)


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("", "empty entry in the list of mesh hosts"),
        (" \t", "empty entry in the list of mesh hosts"),
        ("a/b/c", 'more than one / in mesh host "a/b/c"'),
        ("a//", 'more than one / in mesh host "a//"'),
        ("/10.0.0.1", "'' is not a host name"),
        ("a/", "'' is not a dial host"),
        ("a b", "'a b' is not a host name"),
        ("a/b c", "'b c' is not a dial host"),
        ("a/10.0.0.1:443", "the port is that before the slash"),
        ("user@a", "'user@a' is not a host name"),
        ("a?x", "'a?x' is not a host name"),
        ("a#x", "'a#x' is not a host name"),
        ("fd00::1", "IPv6 addresses stand in brackets"),
        ("a:0", "'a:0' is neither host nor host:port"),
        ("a:https", "'a:https' is neither host nor host:port"),
        ("a:65536", "'a:65536' is neither host nor host:port"),
        ("ü.example", "'ü.example' is neither host nor host:port"),
        ("ftp://a/derp", "neither http:// nor https://"),
        ("https://a", "the path is missing"),
        ("https://a/", "the path is missing"),
        ("https:///derp", "no host in the URL"),
        ("https://a:x/derp", "port of the URL"),
    ],
)
def test_an_invalid_entry_is_refused(text: str, what: str) -> None:
    """The error says what is wrong, and quotes the entry."""
    with pytest.raises(ConfigError) as caught:
        parse_mesh_host(text)
    assert what in str(caught.value)
    if text.strip() and "://" not in text:
        assert text in str(caught.value)


def test_passwords_are_neither_logged_nor_in_errors() -> None:
    host = parse_mesh_host("https://user:hunter2@a/derp?key=hunter2")
    assert "hunter2" in host.url
    assert "hunter2" not in repr(host)
    assert host.label == "https://xxxxx@a/derp?xxxxx"
    for bad in ("https://user:hunter2@a", "ftp://user:hunter2@a/derp", "https://u:hunter2@a:x/d"):
        with pytest.raises(ConfigError) as caught:
            parse_mesh_host(bad)
        assert "hunter2" not in str(caught.value)


def test_an_entry_without_a_dial_host_has_no_dialer() -> None:
    assert parse_mesh_host("a").dialer(NetworkSettings()) is None


async def test_a_dial_host_is_dialed_without_the_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is in the operator's own network; only the port is taken from the URL."""
    monkeypatch.setenv("ALL_PROXY", "socks5://127.0.0.1:1")

    server = await asyncio.start_server(lambda _, writer: writer.close(), "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    dialer = parse_mesh_host(f"nowhere.invalid:{port}/127.0.0.1").dialer(None)
    assert dialer is not None
    async with asyncio.timeout(5):
        link = await dialer("nowhere.invalid", port)
        assert isinstance(link, Link)
        assert link.remote_address == ("127.0.0.1", port)
        assert await link.read() == b""
    link.abort()
    server.close()
    await server.wait_closed()
